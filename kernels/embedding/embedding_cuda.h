// Rows of the embedding matrix for a step's tokens.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct EmbeddingParams {
  const __nv_bfloat16* table = nullptr;  // [vocab][n]
  const int32_t* ids = nullptr;          // [rows]
  // Tokens sampled by the step before, still on the device: from[i] >= 0 takes sampled[from[i]] instead of ids[i]. Both
  // may be null.
  const int32_t* sampled = nullptr;
  const int32_t* from = nullptr;  // [rows]
  __nv_bfloat16* out = nullptr;   // [rows][n]
  int rows = 0;
  int n = 0;  // multiple of 8
};
absl::Status Embedding(const EmbeddingParams& params, const LaunchContext& context);

// out[i] = rows[index[i]], n bf16 each; for keeping only the rows that sample.
absl::Status GatherRows(const __nv_bfloat16* rows, const int32_t* index, int count, int n, __nv_bfloat16* out,
                        const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
