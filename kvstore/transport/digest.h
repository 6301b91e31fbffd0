// Digest of a block's content; docs/kv_block_format.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kv_layout.h"

namespace agentserve::kvstore {

// XXH3-64 over rows [0, tokens) of every (layer, K|V, head) piece of the block at `block` (layout.BlockBytes() bytes),
// never 0. Requires tokens <= layout.block_tokens. Thread-safe. About memory speed for full blocks.
uint64_t BlockDigest(const engine::KvLayout& layout, const std::byte* block, uint32_t tokens);

}  // namespace agentserve::kvstore
