#include <algorithm>

#include "kernels/gemm/skinny_wide_kernel.cuh"
#include "kernels/tile/tensor_map.h"

namespace agentserve::kernels::cuda {
namespace {

int SharedBytes(int groups, int stages) { return stages * WideStageBytes(groups) + 1024; }

template <int kGroups>
cudaError_t Run(const WideArgs& args, const CUtensorMap& w_map, const CUtensorMap& x_map,
                const LaunchContext& context) {
  static const cudaError_t prepared = [] {
    auto* kernel = WideKernel<kGroups>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 226 * 1024);
    if (error != cudaSuccess) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }();
  if (prepared != cudaSuccess) return prepared;
  const int grid = args.a.p.n / (64 * kGroups) * args.splits;
  return Launch(context, WideKernel<kGroups>, dim3(grid), dim3(kGroups * 128 + 32), SharedBytes(kGroups, args.stages),
                args.splits, args, w_map, x_map);
}

}  // namespace

bool WideShapeFits(const LinearParams& p) {
  if (p.m < 1 || p.m > kWideMaxRows || p.n <= 0 || p.n % 64 != 0 || p.k <= 0 || p.k % 64 != 0) return false;
  if (p.norm_weight != nullptr) return false;
  if (p.epilogue != LinearEpilogue::kQkv) return true;
  const int head_dim = static_cast<int>(p.qkv.kv.head_dim);
  return head_dim > 0 && head_dim % 64 == 0 &&
         p.n == (p.qkv.q_heads + 2 * static_cast<int>(p.qkv.kv.kv_heads)) * head_dim;
}

WideTuning DefaultWideTuning(const LinearParams& params, int num_sms) {
  WideTuning tuning;
  tuning.groups = params.n % 128 == 0 ? 2 : 1;
  const int tiles = params.n / (64 * tuning.groups), chunks = params.k / 64;
  tuning.splits = std::clamp(num_sms / tiles, 1, std::min(8, std::max(1, chunks / 2)));
  tuning.stages = tuning.groups == 2 ? 4 : 6;
  return tuning;
}

absl::Status LaunchWide(const LinearParams& params, const WideTuning& tuning, const LaunchContext& context) {
  if (!WideShapeFits(params) || params.n % (64 * tuning.groups) != 0) {
    return absl::InvalidArgumentError("wide skinny linear: unsupported shape");
  }
  WideArgs args;
  args.a.p = params;
  args.chunks = params.k / 64;
  args.a.rotated_heads = params.qkv.q_heads + static_cast<int>(params.qkv.kv.kv_heads);
  args.splits = std::clamp(tuning.splits, 1, std::min(8, args.chunks));
  args.stages = std::clamp(tuning.stages, 2, kWideMaxStages);
  while (SharedBytes(tuning.groups, args.stages) > 225 * 1024) --args.stages;
  args.box_rows = params.epilogue == LinearEpilogue::kQkv ? 8 : 64;
  CUtensorMap w_map, x_map;
  const auto n = static_cast<uint64_t>(params.n), k = static_cast<uint64_t>(params.k);
  if (absl::Status s = EncodeMatrix(params.w, n, k, static_cast<uint32_t>(args.box_rows), 64, &w_map); !s.ok())
    return s;
  if (absl::Status s = EncodeMatrix(params.x, static_cast<uint64_t>(params.m), k, 64, 64, &x_map); !s.ok()) return s;
  const cudaError_t error =
      tuning.groups == 2 ? Run<2>(args, w_map, x_map, context) : Run<1>(args, w_map, x_map, context);
  return ToStatus(error, "wide skinny linear");
}

}  // namespace agentserve::kernels::cuda
