// y = weight * (x / sqrt(mean(x^2) + eps)), as LlamaRMSNorm in Hugging Face's modeling_llama.py, in fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace agentserve::kernels {

struct RmsNormParams {
  float* x = nullptr;            // [rows][n] contiguous
  const float* delta = nullptr;  // [rows][n] or null; if given, x += delta first and x keeps the sum (residual stream)
  const uint16_t* weight = nullptr;  // [n] bf16
  float* y = nullptr;                // [rows][n]; may be x only if the residual is no longer needed
  size_t rows = 0;
  size_t n = 0;  // multiple of 16
  float eps = 0;
};

void RmsNorm(const RmsNormParams& params);
void RmsNormReference(const RmsNormParams& params);  // the same in double, for tests

}  // namespace agentserve::kernels
