#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/bf16/bf16.h"

namespace agentserve::kernels {

void AttentionReference(const AttentionParams& p) {
  const size_t d = p.kv.head_dim;
  const uint32_t group = p.heads / p.kv.kv_heads;
  for (const AttentionSeq& seq : p.seqs) {
    for (size_t row = 0; row < seq.rows; ++row) {
      const uint32_t length = seq.start + static_cast<uint32_t>(row) + 1;
      for (uint32_t head = 0; head < p.heads; ++head) {
        const float* q = seq.q + row * p.ld + head * d;
        std::vector<double> score(length);
        for (uint32_t j = 0; j < length; ++j) {
          const uint16_t* k = p.kv.Row(seq.blocks, j, p.kv.k_offset, head / group);
          for (size_t i = 0; i < d; ++i) score[j] += double{q[i]} * Bf16ToFloat(k[i]);
          score[j] /= std::sqrt(static_cast<double>(d));
        }
        const double most = *std::max_element(score.begin(), score.end());
        double sum = 0;
        for (double& s : score) sum += s = std::exp(s - most);
        std::vector<double> out(d);
        for (uint32_t j = 0; j < length; ++j) {
          const uint16_t* v = p.kv.Row(seq.blocks, j, p.kv.v_offset, head / group);
          for (size_t i = 0; i < d; ++i) out[i] += score[j] / sum * Bf16ToFloat(v[i]);
        }
        for (size_t i = 0; i < d; ++i) seq.out[row * p.ld + head * d + i] = static_cast<float>(out[i]);
      }
    }
  }
}

}  // namespace agentserve::kernels
