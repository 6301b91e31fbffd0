// LM head with greedy choice. Few rows: the skinny kernel keeps the best logit of each row on the side. Many rows: the
// logits go to memory and a second kernel looks for the best one.
#include <algorithm>

#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/skinny.h"
#include "kernels/gemm/skinny_args.h"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kArgmaxThreads = 1024;

// One block per row of logits [rows][n].
__global__ __launch_bounds__(kArgmaxThreads) void ArgmaxRowsKernel(const __nv_bfloat16* logits, int n, int32_t* argmax,
                                                                   __nv_bfloat16* best) {
  PdlWait();
  PdlTrigger();
  __shared__ Best scratch[kArgmaxThreads / 32];
  const __nv_bfloat16* row = logits + static_cast<size_t>(blockIdx.x) * n;
  Best b{-INFINITY, INT32_MAX};
  for (int i = static_cast<int>(threadIdx.x) * 8; i < n; i += kArgmaxThreads * 8) {
    float x[8];
    Unpack8(__ldcg(reinterpret_cast<const uint4*>(row + i)), x);
#pragma unroll
    for (int e = 0; e < 8; ++e) b = BestOp()(b, Best{x[e], i + e});
  }
  b = LaneBest(b);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = b;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  b = LaneBest(scratch[threadIdx.x]);
  if (threadIdx.x != 0) return;
  if (argmax != nullptr) argmax[blockIdx.x] = b.index == INT32_MAX ? 0 : b.index;
  if (best != nullptr) best[blockIdx.x] = __float2bfloat16_rn(b.value);
}

absl::Status FewRows(const LmHeadParams& params, const LaunchContext& context) {
  const LinearParams& p = params.linear;
  SkinnyArgs args;
  args.p = p;
  args.tuning = DefaultSkinnyTuning(p);
  args.argmax = params.argmax;
  args.best = params.best;
  if (p.workspace == nullptr || p.workspace_bytes < SkinnyWorkspaceBytes(p.m, p.n, p.k)) {
    return absl::InvalidArgumentError("LM head: workspace too small");
  }
  args.arrivals = static_cast<unsigned*>(p.workspace);
  args.partials = reinterpret_cast<SkinnyBest*>(static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes);
  return LaunchSkinny(args, context);
}

}  // namespace

absl::Status LmHead(const LmHeadParams& params, const LaunchContext& context) {
  const LinearParams& p = params.linear;
  if (p.m == 0) return absl::OkStatus();
  if (p.epilogue != LinearEpilogue::kNone) return absl::InvalidArgumentError("LM head: its epilogue is kNone");
  if (p.m > kSkinnyMaxRows && p.mode == LinearMode::kFast && p.y != nullptr && p.norm_weight == nullptr) {
    if (absl::Status status = Linear(p, context); !status.ok()) return status;
    return ToStatus(Launch(context, ArgmaxRowsKernel, dim3(p.m), dim3(kArgmaxThreads), 0, 1,
                           static_cast<const __nv_bfloat16*>(p.y), p.n, params.argmax, params.best),
                    "argmax of logits");
  }
  // Groups of rows, each of which reads all weights; the bits of a row do not depend on its group.
  for (int row = 0; row < p.m; row += kSkinnyMaxRows) {
    LmHeadParams group = params;
    group.linear.m = std::min(kSkinnyMaxRows, p.m - row);
    group.linear.x = p.x + static_cast<size_t>(row) * p.k;
    if (p.y != nullptr) group.linear.y = p.y + static_cast<size_t>(row) * p.n;
    if (params.argmax != nullptr) group.argmax = params.argmax + row;
    if (params.best != nullptr) group.best = params.best + row;
    if (absl::Status status = FewRows(group, context); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace agentserve::kernels::cuda
