// The few-rows family behind Linear (kernels/gemm/linear_cuda.h): every weight is read once, at close to the rate of
// the memory. linear_cuda.cc asks SkinnySupports and calls SkinnyLinear; nobody else does.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

// Whether SkinnyLinear takes these parameters (shape, epilogue, mode, fused norm). Looks at no device memory.
bool SkinnySupports(const LinearParams& params);
// Requires SkinnySupports. Same contract as Linear.
absl::Status SkinnyLinear(const LinearParams& params, const LaunchContext& context);
// Bytes of LinearParams::workspace that SkinnyLinear and LmHead need for every call within these bounds, including the
// kWorkspaceZeroBytes at its start.
size_t SkinnyWorkspaceBytes(int max_m, int max_n, int max_k);
// e.g. "skinny m8".
const char* SkinnyPlanName(const LinearParams& params);

}  // namespace agentserve::kernels::cuda
