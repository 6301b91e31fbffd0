#include <algorithm>

#include "absl/types/span.h"
#include "kernels/gemm/linear_chain.h"
#include "kernels/gemm/linear_chain_kernel.cuh"
#include "kernels/gemm/linear_chain_tuning.h"
#include "kernels/gemm/skinny.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSharedLimit = 225 * 1024;
constexpr int kDepths1[] = {11, 8, 6, 4}, kDepths2[] = {6, 4};  // rings that are compiled, per token tiles
constexpr size_t kCountersOffset = 4096;  // in the zero part of the workspace; the LM head's counter is at 0

struct Layout {
  int token_tiles = 1;
  int x_bytes = 0;
  int norm_bytes = 0;
};

LinearParams Op(const LinearChainParams& params, int i) {
  return i < params.count ? params.ops[i] : params.head->linear;
}
int Count(const LinearChainParams& params) { return params.count + (params.head != nullptr ? 1 : 0); }
// Whether x of this op is too large to stay in shared memory.
bool XFromL2(const LinearParams& p) { return p.m > 8 && p.k > 4096 && p.norm_weight == nullptr; }

Layout LayoutOf(const LinearChainParams& params) {
  Layout layout;
  for (int i = 0; i < Count(params); ++i) {
    const LinearParams p = Op(params, i);
    layout.token_tiles = p.m <= 8 ? 1 : 2;
    if (!XFromL2(p)) layout.x_bytes = std::max(layout.x_bytes, p.m * (2 * p.k + 64));
    if (p.norm_weight != nullptr) layout.norm_bytes += 2 * p.k;
  }
  return layout;
}
int SharedBytes(const Layout& layout, int stages) {
  return SkinnyPartialBytes(layout.token_tiles) + kSkinnyWarps * stages * SkinnyStageBytes(1, true) + layout.x_bytes +
         layout.norm_bytes;
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

template <int kTokenTiles, int kStages>
cudaError_t Run(const ChainArgs& args, int shared, const LaunchContext& context) {
  static const cudaError_t prepared = [] {
    auto* kernel = LinearChainKernel<kTokenTiles, kStages>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedLimit);
    if (error != cudaSuccess) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }();
  if (prepared != cudaSuccess) return prepared;
  return Launch(context, LinearChainKernel<kTokenTiles, kStages>, dim3(context.num_sms), dim3(kSkinnyThreads), shared,
                1, args);
}

cudaError_t RunDepth(const ChainArgs& args, const Layout& layout, int stages, const LaunchContext& context) {
  const int shared = SharedBytes(layout, stages);
  if (layout.token_tiles == 2) {
    return stages == 6 ? Run<2, 6>(args, shared, context) : Run<2, 4>(args, shared, context);
  }
  switch (stages) {
    case 11:
      return Run<1, 11>(args, shared, context);
    case 8:
      return Run<1, 8>(args, shared, context);
    case 6:
      return Run<1, 6>(args, shared, context);
    default:
      return Run<1, 4>(args, shared, context);
  }
}

}  // namespace

bool LinearChainSupports(const LinearChainParams& params) {
  const int count = Count(params);
  if (count < 1 || count > kMaxChainLength) return false;
  for (int i = 0; i < count; ++i) {
    const LinearParams p = Op(params, i);
    if (p.m > kSkinnyMaxRows || p.m != Op(params, 0).m || p.workspace != Op(params, 0).workspace) return false;
    if (p.mode != LinearMode::kFast || !SkinnyShapeFits(p) || p.workspace == nullptr) return false;
  }
  return SharedBytes(LayoutOf(params), 4) <= kSharedLimit;
}

absl::Status LaunchLinearChain(const LinearChainParams& params, const LinearChainTuning& tuning,
                               const LaunchContext& context) {
  if (!LinearChainSupports(params)) return absl::InvalidArgumentError("linear chain: unsupported");
  const Layout layout = LayoutOf(params);
  const int limit = std::min(tuning.shared_bytes, kSharedLimit);
  int stages = 4;
  for (const int depth : layout.token_tiles == 1 ? absl::Span<const int>(kDepths1) : absl::Span<const int>(kDepths2)) {
    if (depth > tuning.stages || SharedBytes(layout, depth) > limit) continue;
    stages = depth;
    break;
  }
  ChainArgs args;
  args.count = Count(params);
  args.x_bytes = layout.x_bytes;
  const int grid = context.num_sms;
  int tiles = 0, norm_offset = 0;
  for (int i = 0; i < args.count; ++i) {
    ChainOp& op = args.ops[i];
    op.a.p = Op(params, i);
    op.a.tiles = op.a.p.n / kSkinnyTileRows;
    op.a.chunks = op.a.p.k / kSkinnyChunk;
    op.a.x_pitch = XFromL2(op.a.p) ? 0 : 2 * op.a.p.k + 64;
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
  return ToStatus(RunDepth(args, layout, stages, context), "linear chain");
}

absl::Status LinearChain(const LinearChainParams& params, const LaunchContext& context) {
  return LaunchLinearChain(params, LinearChainTuning(), context);
}

}  // namespace agentserve::kernels::cuda
