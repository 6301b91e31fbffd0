// Digests of a block's content; docs/kv_block_format.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kv_layout.h"

namespace agentserve::kvstore {

// Sum over rows [0, tokens) of the (K|V, head) pieces of layers [first, first + count) of the block at `block`
// (layout.BlockBytes() bytes of host memory). Sums of disjoint layers add up, modulo 2^64, in any order. Requires
// tokens
// <= layout.block_tokens. Thread-safe.
struct LayerRange {
  uint32_t first = 0, count = 0;
};
uint64_t LayerSum(const engine::KvLayout& layout, const std::byte* block, LayerRange layers, uint32_t tokens);

// The digest of a block whose layers sum up to `sum`; never 0.
uint64_t DigestOfSum(uint64_t sum, uint32_t tokens);

// Of a whole block.
uint64_t BlockDigest(const engine::KvLayout& layout, const std::byte* block, uint32_t tokens);

}  // namespace agentserve::kvstore
