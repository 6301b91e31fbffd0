// y = epilogue(x W^T) on the GPU: bf16 operands, fp32 accumulation, one rounding of the product to bf16, then the
// epilogue with the roundings of Hugging Face's eager bf16 Llama (docs/numerics.md).
//
// Two families of kernels behind one call: `skinny` (few rows, bound by reading W once) and `tile` (wgmma, and cublasLt
// where it wins). Which runs is decided by a table per shape and mode; LinearPlanName says what was picked.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention/paged_kv.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

enum class LinearEpilogue : uint8_t {
  kNone,      // y[m][n] = p
  kResidual,  // y[m][n] = bf16(p + residual); residual may be y
  kSwiglu,    // W rows interleave gate and up in groups of 8: rows 16 j .. 16 j + 7 are gate features 8 j .. 8 j + 7,
              // rows 16 j
              // + 8 .. 16 j + 15 the up features. y[m][n / 2] = bf16(bf16(silu(gate)) * up)
  kQkv,       // W rows are [q | k | v]. q and k are rotated (three roundings, HF's bf16 cos and sin); q goes to
              // y[m][q_size], k and v to the paged pool
};

enum class LinearMode : uint8_t {
  kFast,       // whatever is fastest; bits of a row may depend on m
  kInvariant,  // bits of a row depend on that row alone, at any m, on every call
};

// For kQkv.
struct QkvOutput {
  PagedKv kv;                          // device pool, offsets of this layer
  const __nv_bfloat16* cos = nullptr;  // [positions][head_dim / 2]
  const __nv_bfloat16* sin = nullptr;  // [positions][head_dim / 2]
  const int32_t* positions = nullptr;  // [m]
  const int32_t* slots =
      nullptr;      // [m] block * block_tokens + row in the block; -1: K and V of this row are not written
  int q_heads = 0;  // q_size = q_heads * kv.head_dim
};

struct LinearParams {
  const __nv_bfloat16* x = nullptr;  // [m][k] contiguous, 16-byte aligned
  const __nv_bfloat16* w = nullptr;  // [n][k] contiguous, 16-byte aligned
  __nv_bfloat16* y = nullptr;        // contiguous; shape per epilogue
  const __nv_bfloat16* residual = nullptr;
  int m = 0, n = 0, k = 0;  // n multiple of 16, k multiple of 64
  LinearEpilogue epilogue = LinearEpilogue::kNone;
  LinearMode mode = LinearMode::kFast;
  QkvOutput qkv;
  // If set, x is normalised first: x' = RMSNorm(x, norm_weight, eps) with HF's roundings. Only for m <=
  // kMaxFusedNormRows (then saves a kernel); FAILED_PRECONDITION beyond.
  const __nv_bfloat16* norm_weight = nullptr;  // [k]
  float norm_eps = 0;
  // Scratch of at least LinearWorkspaceBytes(...). Shared by successive calls of one stream; its first
  // kWorkspaceZeroBytes must be zero before the first call ever, and every call leaves them zero.
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};
inline constexpr int kMaxFusedNormRows = 16;
inline constexpr size_t kWorkspaceZeroBytes = 1 << 16;

// Enough for every call with m <= max_m, n <= max_n, k <= max_k.
size_t LinearWorkspaceBytes(int max_m, int max_n, int max_k);
absl::Status Linear(const LinearParams& params, const LaunchContext& context);
// Name of the kernel that Linear would run, e.g. "skinny m8 split4", "tile 128x256", "cublasLt + swiglu".
const char* LinearPlanName(const LinearParams& params, const LaunchContext& context);

// What ends attention and the MLP: y = bf16(x w^T + residual) as Linear does it, then normed = RMSNorm(y), the input of
// the products that follow. Saves a pass over the rows where the product's epilogue would be a kernel of its own.
struct ResidualNormParams {
  LinearParams linear;                         // epilogue kResidual, norm_weight null
  const __nv_bfloat16* norm_weight = nullptr;  // [n]
  float norm_eps = 0;
  __nv_bfloat16* normed = nullptr;  // [m][n]
};
absl::Status LinearResidualNorm(const ResidualNormParams& params, const LaunchContext& context);

// LM head with greedy choice: token[i] = lowest index of the largest bf16-rounded logit of row i. `logits` [m][n] may
// be null (then they are not stored). Fuses RMSNorm like Linear if norm_weight is set.
struct LmHeadParams {
  LinearParams linear;            // y = logits or null, epilogue kNone
  int32_t* argmax = nullptr;      // [m] or null
  __nv_bfloat16* best = nullptr;  // [m] the largest logit, or null
};
absl::Status LmHead(const LmHeadParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
