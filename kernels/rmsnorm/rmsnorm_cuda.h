// RMSNorm on the GPU with the roundings of LlamaRMSNorm in bf16 (docs/numerics.md): y = bf16(w * bf16(x *
// rsqrt(mean(x^2) + eps))), mean in fp32.
#pragma once

#include <cuda_bf16.h>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct RmsNormParams {
  const __nv_bfloat16* x = nullptr;      // [rows][n]
  const __nv_bfloat16* delta = nullptr;  // [rows][n] or null; if given the input is s = bf16(x + delta)
  // Instead of delta: it is bf16 of the sum, in ascending order, of these [splits][rows][n] (a product whose k was
  // divided; splits at most kMaxPartials). Only for n a multiple of 128, at most kMaxPartialColumns.
  const float* partials = nullptr;
  int splits = 0;
  __nv_bfloat16* sum = nullptr;           // [rows][n] receives s (may be x), only with delta or partials
  const __nv_bfloat16* weight = nullptr;  // [n]
  __nv_bfloat16* y = nullptr;             // [rows][n]; may be x if delta is null
  int rows = 0;
  int n = 0;  // multiple of 64, at most 16384
  float eps = 0;
  // True: one order of summation for any number of rows, so that a row's bits depend on that row alone; slower for many
  // rows.
  bool invariant = false;
};
inline constexpr int kMaxPartials = 16, kMaxPartialColumns = 4096;
absl::Status RmsNorm(const RmsNormParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
