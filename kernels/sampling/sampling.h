// Passes over one row of logits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::kernels {

struct MaxLogit {
  float value = 0;
  size_t index = 0;    // the lowest of equals
  bool found = false;  // false: n == 0 or no element is a number above -infinity
};

// NaN never wins.
MaxLogit ArgMax(const float* logits, size_t n);

// Sum of exp((logits[i] - most) * scale), sixteen partial sums folded in a fixed tree. NaN and -infinity count as 0.
float SumExp(const float* logits, size_t n, float most, float scale);

}  // namespace agentserve::kernels
