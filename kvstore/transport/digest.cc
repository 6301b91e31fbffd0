#include "kvstore/transport/digest.h"

#include "base/check.h"
#include "kernels/kv_copy/kv_digest.h"

namespace agentserve::kvstore {

uint64_t LayerSum(const engine::KvLayout& layout, const std::byte* block, LayerRange layers, uint32_t tokens) {
  AS_CHECK_LE(tokens, layout.block_tokens);
  const kernels::KvDigestShape shape{layout.BlockBytes(), layout.HeadBytes(), layout.head_dim * layout.ElementBytes()};
  const kernels::KvRange range{layers.first * layout.LayerBytes(), layers.count * layout.LayerBytes()};
  return kernels::KvDigestSum(block, shape, range, tokens);
}

uint64_t DigestOfSum(uint64_t sum, uint32_t tokens) { return kernels::KvDigestFinish(sum, tokens); }

uint64_t BlockDigest(const engine::KvLayout& layout, const std::byte* block, uint32_t tokens) {
  return DigestOfSum(LayerSum(layout, block, {0, layout.num_layers}, tokens), tokens);
}

}  // namespace agentserve::kvstore
