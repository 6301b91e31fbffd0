// The epilogues of Linear as kernels of their own, after a product that cublasLt wrote: `product` [rows][n] bf16.
#pragma once

#include <cuda_bf16.h>

#include "absl/status/status.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

struct Best;

// Linear by cublasLt and these kernels, whatever the shape.
absl::Status LibraryLinear(LinearParams params, const LaunchContext& context);
// Applies params.epilogue (kResidual, kSwiglu or kQkv) to rows first_row .. first_row + rows - 1 of the call.
absl::Status ApplyEpilogue(const LinearParams& params, const __nv_bfloat16* product, int first_row, int rows,
                           const LaunchContext& context);
// token[i] = lowest index of the largest of `logits` [rows][n]; either output may be null.
absl::Status ArgmaxRows(const __nv_bfloat16* logits, int rows, int n, int32_t* token, __nv_bfloat16* best,
                        const LaunchContext& context);
// The same from the best of each of `slots` strips of columns, [rows][slots]; n columns in all.
absl::Status ArgmaxStrips(const Best* strips, int rows, int slots, int n, int32_t* token, __nv_bfloat16* best,
                          const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
