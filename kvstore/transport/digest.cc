#include "kvstore/transport/digest.h"

#define XXH_STATIC_LINKING_ONLY  // the streaming state as a local object
#include <xxhash.h>

#include "base/check.h"
#include "kernels/kv_copy/kv_digest.h"

namespace agentserve::kvstore {
namespace {

// 0 is reserved for "not known".
uint64_t NonZero(uint64_t digest) { return digest == 0 ? 1 : digest; }

uint64_t Xxh3Digest(const engine::KvLayout& layout, const std::byte* block, uint32_t tokens) {
  if (tokens == layout.block_tokens) return NonZero(XXH3_64bits(block, layout.BlockBytes()));
  alignas(64) XXH3_state_t state;
  XXH3_64bits_reset(&state);
  const size_t row_bytes = size_t{tokens} * layout.head_dim * layout.ElementBytes();
  const size_t pieces = size_t{2} * layout.num_layers * layout.num_kv_heads;
  for (size_t i = 0; i < pieces; ++i) XXH3_64bits_update(&state, block + i * layout.HeadBytes(), row_bytes);
  return NonZero(XXH3_64bits_digest(&state));
}

}  // namespace

std::string_view ToString(DigestAlgorithm algorithm) {
  return algorithm == DigestAlgorithm::kXxh3 ? "xxh3" : "positional-sum";
}

uint64_t BlockDigest(DigestAlgorithm algorithm, const engine::KvLayout& layout, const std::byte* block,
                     uint32_t tokens) {
  AS_CHECK_LE(tokens, layout.block_tokens);
  if (algorithm == DigestAlgorithm::kXxh3) return Xxh3Digest(layout, block, tokens);
  const kernels::KvDigestShape shape{layout.BlockBytes(), layout.HeadBytes(), layout.head_dim * layout.ElementBytes()};
  return kernels::KvDigest(block, shape, tokens);
}

}  // namespace agentserve::kvstore
