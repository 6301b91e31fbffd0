// gate = silu(gate) * up, silu(x) = x / (1 + exp(-x)), in place, fp32.
#pragma once

#include <cstddef>

namespace agentserve::kernels {

struct SwigluParams {
  float* gate = nullptr;  // [n], replaced by the result
  const float* up = nullptr;
  size_t n = 0;  // multiple of 16
};

void Swiglu(const SwigluParams& params);
void SwigluReference(const SwigluParams& params);  // in double, for tests

}  // namespace agentserve::kernels
