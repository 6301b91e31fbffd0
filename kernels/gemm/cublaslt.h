// cuBLASLt, loaded at run time: the baseline of our GEMMs and the fallback where they do not win. Programs start and
// run without the library; then CublasLtAvailable is false.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"

namespace agentserve::kernels::cuda {

struct CublasLtGemmParams {
  const __nv_bfloat16* x = nullptr;  // [m][k]
  const __nv_bfloat16* w = nullptr;  // [n][k]
  __nv_bfloat16* y = nullptr;        // [m][n] = bf16(x w^T), fp32 accumulation (split-K partials stay fp32)
  int m = 0, n = 0, k = 0;
  void* workspace = nullptr;  // 256-byte aligned
  size_t workspace_bytes = 0;
};
inline constexpr size_t kCublasLtWorkspaceBytes = size_t{32} << 20;

bool CublasLtAvailable();
// Asynchronous on `stream`. The algorithm of a shape is asked for once per device and remembered; the first call on a
// device creates the library's handle, which allocates: make one call before capturing a graph. Thread safe.
absl::Status CublasLtGemm(const CublasLtGemmParams& params, cudaStream_t stream);

}  // namespace agentserve::kernels::cuda
