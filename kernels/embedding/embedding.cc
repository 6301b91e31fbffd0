#include "kernels/embedding/embedding.h"

#include "kernels/bf16/bf16.h"

namespace agentserve::kernels {

void Embedding(const EmbeddingParams& p) {
  for (size_t row = 0; row < p.rows; ++row) {
    const uint16_t* __restrict from = p.table + size_t{p.ids[row]} * p.n;
    float* __restrict to = p.y + row * p.n;
    for (size_t i = 0; i < p.n; ++i) to[i] = Bf16ToFloat(from[i]);
  }
}

}  // namespace agentserve::kernels
