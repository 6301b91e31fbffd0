#include <algorithm>

#include "kernels/gemm/linear_chain_tuning.h"
#include "kernels/gemm/skinny.h"
#include "kernels/gemm/skinny_kernel.cuh"
#include "kernels/tile/tensor_map.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSharedLimit = 224 * 1024;
// Two kernels of a chain share an SM only if both fit in its 228 KiB.
constexpr LinearChainTuning kSingle = {6, 112 * 1024, 0, 2};
constexpr int kMinStages = 2;
constexpr size_t kMaxNextBytes = size_t{32} << 20;  // what surely survives in L2 until it is used
constexpr int kMaxResidentBytes = 48 * 1024;        // larger x streams, if it needs no norm
constexpr size_t kCountersOffset = 4096;            // in the zero part of the workspace; the LM head's counter is at 0

LinearParams Op(const LinearChainParams& params, int i) {
  return i < params.count ? params.ops[i] : params.head->linear;
}
int Count(const LinearChainParams& params) { return params.count + (params.head != nullptr ? 1 : 0); }
int TokenTiles(int m) { return m <= 8 ? 1 : 2; }
bool XStreams(const LinearParams& p) { return p.norm_weight == nullptr && 2 * p.m * p.k > kMaxResidentBytes; }

// Bytes of dynamic shared memory: ring | x | norm weights | partial sums.
struct Layout {
  int x_bytes = 0;
  int norm_bytes = 0;
  int token_tiles = 1;

  explicit Layout(const LinearChainParams& params) {
    for (int i = 0; i < Count(params); ++i) {
      const LinearParams p = Op(params, i);
      token_tiles = TokenTiles(p.m);
      x_bytes = std::max(x_bytes, XStreams(p) ? kSkinnyXSlots * SkinnyXSlotBytes(token_tiles) : 2 * p.m * p.k);
      if (p.norm_weight != nullptr) norm_bytes += 2 * p.k;
    }
  }
  int Bytes(int stages) const {
    return 1024 + stages * kSkinnyStageBytes + x_bytes + norm_bytes + SkinnyPartialBytes(token_tiles);
  }
  int Stages(const LinearChainTuning& tuning) const {
    int stages = std::clamp(tuning.stages, kMinStages, kSkinnyMaxStages);
    while (stages > kMinStages && Bytes(stages) > std::min(tuning.shared_bytes, kSharedLimit)) --stages;
    return stages;
  }
};

bool ShapeFits(const LinearParams& p) {
  if (p.m < 1 || p.m > kSkinnyMaxRows || p.n <= 0 || p.n % kSkinnyTileRows != 0 || p.k <= 0 ||
      p.k % kSkinnyChunk != 0) {
    return false;
  }
  if (p.epilogue != LinearEpilogue::kQkv) return true;
  const int head_dim = static_cast<int>(p.qkv.kv.head_dim);
  return head_dim > 0 && head_dim % kSkinnyTileRows == 0 &&
         p.n == (p.qkv.q_heads + 2 * static_cast<int>(p.qkv.kv.kv_heads)) * head_dim;
}
bool Fits(const LinearChainParams& params) {
  for (int i = 0; i < Count(params); ++i) {
    if (!ShapeFits(Op(params, i))) return false;
  }
  return Layout(params).Bytes(kMinStages) <= kSharedLimit;
}

// Row-major [rows][k] as boxes of 64 k x box_rows x 16 chunks of 64 k; in shared memory [chunk][row][128 bytes].
absl::Status EncodeChunks(const __nv_bfloat16* base, int rows, int k, int box_rows, CUtensorMap* map) {
  TensorShape shape;
  shape.rank = 3;
  shape.size[0] = kSkinnyChunk;
  shape.size[1] = static_cast<uint64_t>(rows);
  shape.size[2] = static_cast<uint64_t>(k / kSkinnyChunk);
  shape.stride[0] = static_cast<uint64_t>(k) * 2;
  shape.stride[1] = kSkinnyChunk * 2;
  shape.box[0] = kSkinnyChunk;
  shape.box[1] = static_cast<uint32_t>(box_rows);
  shape.box[2] = kSkinnyStageChunks;
  return EncodeBf16(base, shape, map);
}

template <int kTokenTiles>
cudaError_t Run(const SkinnyArgs& args, int grid, int shared, const LaunchContext& context) {
  static const cudaError_t prepared = [] {
    auto* kernel = SkinnyKernel<kTokenTiles>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedLimit);
    if (error != cudaSuccess) return error;
    // An SM cannot move the border between L1 and shared memory while a kernel runs: kernels overlap only if both want
    // it at the same place.
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }();
  if (prepared != cudaSuccess) return prepared;
  return Launch(context, SkinnyKernel<kTokenTiles>, dim3(grid), dim3(kSkinnyBlock), shared, 1, args);
}

absl::Status FillHead(const LmHeadParams& head, SkinnyArgs* args) {
  const LinearParams& p = head.linear;
  if (p.workspace == nullptr || p.workspace_bytes < SkinnyWorkspaceBytes(p.m, p.n, p.k)) {
    return absl::InvalidArgumentError("skinny LM head: workspace too small");
  }
  args->argmax = head.argmax;
  args->best = head.best;
  args->arrivals = static_cast<unsigned*>(p.workspace);
  args->partials = reinterpret_cast<SkinnyBest*>(static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes);
  return absl::OkStatus();
}

absl::Status FillOps(const LinearChainParams& params, int grid, SkinnyArgs* args) {
  int tiles = 0, norm_offset = 0;
  for (int i = 0; i < args->count; ++i) {
    SkinnyOp& op = args->ops[i];
    op.p = Op(params, i);
    op.tiles = op.p.n / kSkinnyTileRows;
    op.stages_per_tile = (op.p.k + kSkinnyStageK - 1) / kSkinnyStageK;
    op.shift = (grid - tiles % grid) % grid;
    tiles += op.tiles;
    op.norm_offset = norm_offset;
    if (op.p.norm_weight != nullptr) norm_offset += 2 * op.p.k;
    op.x_streams = XStreams(op.p);
    op.rotated_heads = op.p.qkv.q_heads + static_cast<int>(op.p.qkv.kv.kv_heads);
    if (absl::Status status = EncodeChunks(op.p.w, op.p.n, op.p.k, 8, &args->w_maps[i]); !status.ok()) return status;
    if (!op.x_streams) continue;
    absl::Status status = EncodeChunks(op.p.x, op.p.m, op.p.k, 8 * TokenTiles(op.p.m), &args->x_maps[i]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LaunchLinearChain(const LinearChainParams& params, const LinearChainTuning& tuning,
                               const LaunchContext& context) {
  if (Count(params) < 1 || Count(params) > kSkinnyMaxOps || !Fits(params)) {
    return absl::InvalidArgumentError("skinny linear: unsupported shape");
  }
  const Layout layout(params);
  SkinnyArgs args;
  args.count = Count(params);
  args.stages = layout.Stages(tuning);
  args.x_bytes = layout.x_bytes;
  args.norm_bytes = layout.norm_bytes;
  args.prefetch_stages = tuning.prefetch_stages;
  args.trigger_lead = tuning.trigger_lead;
  args.next_weights = static_cast<const std::byte*>(params.next_weights);
  args.next_bytes = params.next_weights == nullptr ? 0 : std::min(params.next_bytes, kMaxNextBytes);
  const LinearParams first = Op(params, 0);
  const int grid = args.count > 1 ? context.num_sms : std::min(context.num_sms, first.n / kSkinnyTileRows);
  if (absl::Status status = FillOps(params, grid, &args); !status.ok()) return status;
  if (params.head != nullptr) {
    if (absl::Status status = FillHead(*params.head, &args); !status.ok()) return status;
  }
  if (args.count > 1) {
    args.counters = reinterpret_cast<unsigned*>(static_cast<std::byte*>(first.workspace) + kCountersOffset);
  }
  const int shared = layout.Bytes(args.stages);
  const cudaError_t error =
      layout.token_tiles == 1 ? Run<1>(args, grid, shared, context) : Run<2>(args, grid, shared, context);
  return ToStatus(error, "skinny linear");
}

bool LinearChainSupports(const LinearChainParams& params) {
  const int count = Count(params);
  if (count < 1 || count > kMaxChainLength || !Fits(params)) return false;
  for (int i = 0; i < count; ++i) {
    const LinearParams p = Op(params, i);
    if (p.m != Op(params, 0).m || p.mode != LinearMode::kFast) return false;
    if (p.workspace == nullptr || p.workspace != Op(params, 0).workspace) return false;
  }
  return true;
}

absl::Status LinearChain(const LinearChainParams& params, const LaunchContext& context) {
  return LaunchLinearChain(params, LinearChainTuning(), context);
}

bool SkinnySupports(const LinearParams& params) {
  return params.mode == LinearMode::kFast && Fits({&params, 1, nullptr});
}

absl::Status SkinnyLinear(const LinearParams& params, const LaunchContext& context) {
  return LaunchLinearChain({&params, 1, nullptr}, kSingle, context);
}

bool SkinnyLmHeadSupports(const LmHeadParams& params) {
  return params.linear.epilogue == LinearEpilogue::kNone && Fits({nullptr, 0, &params});
}

absl::Status SkinnyLmHead(const LmHeadParams& params, const LaunchContext& context) {
  return LaunchLinearChain({nullptr, 0, &params}, kSingle, context);
}

size_t SkinnyWorkspaceBytes(int max_m, int max_n, int max_k) {
  static_cast<void>(max_n), static_cast<void>(max_k);
  constexpr size_t kMaxBlocks = 256;
  return kWorkspaceZeroBytes + kMaxBlocks * static_cast<size_t>(std::min(max_m, kSkinnyMaxRows)) * sizeof(SkinnyBest);
}

const char* SkinnyPlanName(const LinearParams& params) { return params.m <= 8 ? "skinny m8" : "skinny m16"; }

}  // namespace agentserve::kernels::cuda
