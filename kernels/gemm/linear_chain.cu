#include <algorithm>

#include "kernels/gemm/linear_chain.h"
#include "kernels/gemm/linear_chain_kernel.cuh"
#include "kernels/gemm/linear_chain_tuning.h"
#include "kernels/gemm/skinny.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSharedLimit = 225 * 1024;
constexpr int kMaxRows = 8;
constexpr size_t kCountersOffset = 4096;  // in the zero part of the workspace; the LM head's counter is at 0

struct Layout {
  int x_bytes = 0;
  int norm_bytes = 0;
};

LinearParams Op(const LinearChainParams& params, int i) {
  return i < params.count ? params.ops[i] : params.head->linear;
}
int Count(const LinearChainParams& params) { return params.count + (params.head != nullptr ? 1 : 0); }

Layout LayoutOf(const LinearChainParams& params) {
  Layout layout;
  for (int i = 0; i < Count(params); ++i) {
    const LinearParams p = Op(params, i);
    layout.x_bytes = std::max(layout.x_bytes, p.m * (2 * p.k + 64));
    if (p.norm_weight != nullptr) layout.norm_bytes += 2 * p.k;
  }
  return layout;
}
int SharedBytes(const Layout& layout, int stages) {
  return SkinnyPartialBytes(1) + kSkinnyWarps * stages * SkinnyStageBytes(1, true) + layout.x_bytes + layout.norm_bytes;
}

absl::Status FillHead(const LinearChainParams& params, SkinnyArgs* a) {
  const LinearParams& p = params.head->linear;
  if (p.workspace_bytes < SkinnyWorkspaceBytes(p.m, p.n, p.k)) {
    return absl::InvalidArgumentError("linear chain: workspace too small");
  }
  a->argmax = params.head->argmax;
  a->best = params.head->best;
  a->arrivals = static_cast<unsigned*>(p.workspace);
  a->partials = reinterpret_cast<SkinnyBest*>(static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes);
  return absl::OkStatus();
}

}  // namespace

bool LinearChainSupports(const LinearChainParams& params) {
  const int count = Count(params);
  if (count < 1 || count > kMaxChainLength) return false;
  for (int i = 0; i < count; ++i) {
    const LinearParams p = Op(params, i);
    if (p.m > kMaxRows || p.m != Op(params, 0).m || p.workspace != Op(params, 0).workspace) return false;
    if (p.mode != LinearMode::kFast || !SkinnyShapeFits(p) || p.workspace == nullptr) return false;
  }
  return SharedBytes(LayoutOf(params), 3) <= kSharedLimit;
}

absl::Status LaunchLinearChain(const LinearChainParams& params, const LinearChainTuning& tuning,
                               const LaunchContext& context) {
  if (!LinearChainSupports(params)) return absl::InvalidArgumentError("linear chain: unsupported");
  static const cudaError_t prepared = [] {
    const cudaError_t error =
        cudaFuncSetAttribute(LinearChainKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedLimit);
    if (error != cudaSuccess) return error;
    return cudaFuncSetAttribute(LinearChainKernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                cudaSharedmemCarveoutMaxShared);
  }();
  if (prepared != cudaSuccess) return ToStatus(prepared, "linear chain");
  const Layout layout = LayoutOf(params);
  ChainArgs args;
  args.count = Count(params);
  args.x_bytes = layout.x_bytes;
  args.stages = std::clamp(tuning.stages, 3, kSkinnyMaxStages);
  while (args.stages > 3 && SharedBytes(layout, args.stages) > std::min(tuning.shared_bytes, kSharedLimit)) {
    --args.stages;
  }
  const int grid = context.num_sms;
  int tiles = 0, norm_offset = 0;
  for (int i = 0; i < args.count; ++i) {
    ChainOp& op = args.ops[i];
    op.a.p = Op(params, i);
    op.a.tiles = op.a.p.n / kSkinnyTileRows;
    op.a.chunks = op.a.p.k / kSkinnyChunk;
    op.a.x_pitch = 2 * op.a.p.k + 64;
    op.a.rotated_heads = op.a.p.qkv.q_heads + static_cast<int>(op.a.p.qkv.kv.kv_heads);
    op.shift = (grid - tiles % grid) % grid;
    tiles += op.a.tiles;
    op.norm_offset = norm_offset;
    if (op.a.p.norm_weight != nullptr) norm_offset += 2 * op.a.p.k;
    if (i == params.count) {
      if (absl::Status status = FillHead(params, &op.a); !status.ok()) return status;
    }
  }
  args.counters = reinterpret_cast<unsigned*>(static_cast<std::byte*>(args.ops[0].a.p.workspace) + kCountersOffset);
  return ToStatus(
      Launch(context, LinearChainKernel, dim3(grid), dim3(kSkinnyThreads), SharedBytes(layout, args.stages), 1, args),
      "linear chain");
}

absl::Status LinearChain(const LinearChainParams& params, const LaunchContext& context) {
  return LaunchLinearChain(params, LinearChainTuning(), context);
}

}  // namespace agentserve::kernels::cuda
