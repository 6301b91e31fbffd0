#include "kernels/read_words/read_words.h"

namespace agentserve::kernels {

uint64_t SumWords(const uint64_t* words, size_t n) {
  constexpr size_t kChains = 32;  // enough loads in flight
  uint64_t sums[kChains] = {};
  size_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (size_t j = 0; j < kChains; ++j) sums[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t s : sums) total += s;
  for (; i < n; ++i) total += words[i];
  return total;
}

}  // namespace agentserve::kernels
