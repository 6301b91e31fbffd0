// Digests of a block's content; docs/kv_block_format.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/kv_layout.h"

namespace agentserve::kvstore {

// Values are in the pool's header, in the handshake and (plus one) on the wire. The owner of a pool picks the one that
// its memory computes fast; a reader computes the owner's.
enum class DigestAlgorithm : uint32_t { kXxh3 = 0, kPositionalSum = 1 };
std::string_view ToString(DigestAlgorithm algorithm);

// Digest of rows [0, tokens) of every (layer, K|V, head) piece of the block at `block` (layout.BlockBytes() bytes of
// host memory), never 0. Requires tokens <= layout.block_tokens. Thread-safe. XXH3 runs at about memory speed for full
// blocks.
uint64_t BlockDigest(DigestAlgorithm algorithm, const engine::KvLayout& layout, const std::byte* block,
                     uint32_t tokens);
inline uint64_t BlockDigest(const engine::KvLayout& layout, const std::byte* block, uint32_t tokens) {
  return BlockDigest(DigestAlgorithm::kXxh3, layout, block, tokens);
}

}  // namespace agentserve::kvstore
