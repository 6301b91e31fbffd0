#include "kernels/kv_write/kv_write.h"

#include "kernels/bf16/bf16.h"

namespace agentserve::kernels {
namespace {

void RoundRow(const float* __restrict from, uint16_t* __restrict to, size_t n) {
  for (size_t i = 0; i < n; ++i) to[i] = FloatToBf16(from[i]);
}

}  // namespace

void KvWrite(const KvWriteParams& p) {
  const size_t d = p.kv.head_dim;
  for (size_t row = 0; row < p.rows; ++row) {
    const uint32_t position = p.start + static_cast<uint32_t>(row);
    for (uint32_t head = 0; head < p.kv.kv_heads; ++head) {
      RoundRow(p.k + row * p.ld + head * d, p.kv.Row(p.blocks, position, p.kv.k_offset, head), d);
      RoundRow(p.v + row * p.ld + head * d, p.kv.Row(p.blocks, position, p.kv.v_offset, head), d);
    }
  }
}

}  // namespace agentserve::kernels
