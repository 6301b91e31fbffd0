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
// The LM head for the same few rows (linear.y may be null): the best logit of each row is kept on the side.
// kInvariant too: the bits of a row do not depend on m within this family.
bool SkinnyLmHeadSupports(const LmHeadParams& params);
absl::Status SkinnyLmHead(const LmHeadParams& params, const LaunchContext& context);
// Bytes of LinearParams::workspace that SkinnyLmHead needs within these bounds, including the
// kWorkspaceZeroBytes at its start; SkinnyLinear needs none.
size_t SkinnyWorkspaceBytes(int max_m, int max_n, int max_k);
// e.g. "skinny m8".
const char* SkinnyPlanName(const LinearParams& params);

}  // namespace agentserve::kernels::cuda
