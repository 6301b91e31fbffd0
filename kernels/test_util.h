// Random inputs for kernel tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/bf16/bf16.h"

namespace agentserve::kernels {

inline std::vector<float> RandomFloats(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(gen);
  return out;
}

inline std::vector<uint16_t> RandomBf16(size_t n, uint32_t seed, float scale = 1.0f) {
  std::vector<uint16_t> out(n);
  const std::vector<float> f = RandomFloats(n, seed, scale);
  for (size_t i = 0; i < n; ++i) out[i] = FloatToBf16(f[i]);
  return out;
}

}  // namespace agentserve::kernels
