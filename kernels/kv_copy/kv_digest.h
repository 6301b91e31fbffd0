// Digest of a KV block that thousands of threads can compute at once, and layer by layer: the CPU's side of KvGather
// and KvSums in kv_copy_cuda.h, and the constants both share. Specified in docs/kv_block_format.md, section 4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::kernels {

inline constexpr uint64_t kKvDigestKeyA = 0x9E3779B97F4A7C15u;
inline constexpr uint64_t kKvDigestKeyB = 0xC2B2AE3D27D4EB4Fu;
inline constexpr uint64_t kKvDigestKeyTokens = 0x165667B19E3779F9u;

struct KvDigestShape {
  size_t block_bytes = 0;
  size_t piece_bytes = 0;  // block_tokens * head_dim * element bytes; divides block_bytes
  size_t row_bytes = 0;    // head_dim * element bytes; multiple of 16, divides piece_bytes
};

// Bytes of a block, whole pieces.
struct KvRange {
  size_t offset = 0, bytes = 0;
};

// Of the first `tokens` rows of every (layer, K|V, head) piece in `range`; `block` is the start of the block. The sums
// of parts, modulo 2^64, are the sum of the whole, in any order.
uint64_t KvDigestSum(const std::byte* block, const KvDigestShape& shape, KvRange range, uint32_t tokens);

// The digest of a block whose parts sum up to `sum`. Never 0.
uint64_t KvDigestFinish(uint64_t sum, uint32_t tokens);

// Of the whole block.
inline uint64_t KvDigest(const std::byte* block, const KvDigestShape& shape, uint32_t tokens) {
  return KvDigestFinish(KvDigestSum(block, shape, {0, shape.block_bytes}, tokens), tokens);
}

}  // namespace agentserve::kernels
