#include "kernels/gemm/tile_gemm.h"

#include <algorithm>

#include "kernels/gemm/tile_args.h"
#include "kernels/tile/tensor_map.h"

namespace agentserve::kernels::cuda {
namespace {

struct ShapeInfo {
  const char* name;
  int block_m, block_n, warpgroup_n, cluster;
  bool splits;
  bool deferred = false;
};
constexpr ShapeInfo kShapes[] = {
    {"tile 128x256", 128, 256, 256, 1, false},
    {"tile 128x256 multicast", 128, 256, 256, 2, false},
    {"tile 128x192", 128, 192, 192, 1, false},
    {"tile 128x128", 128, 128, 128, 1, true},
    {"tile 64x256", 64, 256, 128, 1, false},
    {"tile 64x128", 64, 128, 64, 1, true},
    {"tile 128x256 deferred", 128, 256, 256, 1, false, true},
    {"tile 128x256 deferred multicast", 128, 256, 256, 2, false, true},
    {"tile 128x192 deferred", 128, 192, 192, 1, false, true},
    {"tile 128x128 deferred", 128, 128, 128, 1, false, true},
};
static_assert(std::size(kShapes) == static_cast<size_t>(TileShape::kCount));

// Rows of x that a super-row of the raster spans: 16 tiles of 128 x 256 x K 2048 keep 17 MB of x and w in L2.
constexpr int kSuperRows = 2048;

const ShapeInfo& InfoOf(TileShape shape) { return kShapes[static_cast<size_t>(shape)]; }
int CeilDiv(int a, int b) { return (a + b - 1) / b; }
int TilesOf(int m, int n, const ShapeInfo& info) { return CeilDiv(m, info.block_m) * CeilDiv(n, info.block_n); }

absl::Status EncodeMaps(const LinearParams& p, const ShapeInfo& info, TileArgs* args) {
  const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n), k = static_cast<uint64_t>(p.k);
  uint64_t columns = n;
  if (p.epilogue == LinearEpilogue::kSwiglu) columns = n / 2;
  if (p.epilogue == LinearEpilogue::kQkv) columns = static_cast<uint64_t>(p.qkv.q_heads) * p.qkv.kv.head_dim;
  absl::Status status = EncodeMatrix(p.x, m, k, static_cast<uint32_t>(info.block_m), 64, &args->x);
  if (status.ok()) status = EncodeMatrix(p.w, n, k, static_cast<uint32_t>(info.block_n / info.cluster), 64, &args->w);
  if (status.ok()) status = EncodeMatrix(p.y, m, columns, 64, 64, &args->y);
  if (status.ok() && p.epilogue == LinearEpilogue::kResidual) {
    status = EncodeMatrix(p.residual, m, n, 64, 64, &args->residual);
  }
  return status;
}

}  // namespace

const char* TileShapeName(TileShape shape) { return InfoOf(shape).name; }

size_t TilePartialBytes(int m, int n, const TilePlan& plan) {
  const ShapeInfo& info = InfoOf(plan.shape);
  if (plan.splits == 1) return 0;
  return static_cast<size_t>(TilesOf(m, n, info)) * static_cast<size_t>(plan.splits) *
         static_cast<size_t>(info.block_m * info.block_n) * sizeof(float);
}

bool TileSupports(const LinearParams& p, const TilePlan& plan) {
  const ShapeInfo& info = InfoOf(plan.shape);
  if (p.norm_weight != nullptr) return false;
  const int swiglu_group = info.deferred ? 16 : 128;
  if (p.epilogue == LinearEpilogue::kSwiglu && info.warpgroup_n % swiglu_group != 0) return false;
  if (p.epilogue == LinearEpilogue::kQkv) {
    const int dim = static_cast<int>(p.qkv.kv.head_dim);
    if ((dim != 64 && dim != 128) || info.warpgroup_n % dim != 0) return false;
  }
  if (plan.splits == 1) return true;
  const size_t counters = static_cast<size_t>(TilesOf(p.m, p.n, info)) * 2 * sizeof(int);
  return info.splits && plan.splits <= p.k / 64 && counters <= kWorkspaceZeroBytes && p.workspace != nullptr &&
         p.workspace_bytes >= kWorkspaceZeroBytes + TilePartialBytes(p.m, p.n, plan);
}

absl::Status TileLinear(const LinearParams& p, const TilePlan& plan, const LaunchContext& context) {
  const ShapeInfo& info = InfoOf(plan.shape);
  TileArgs args = {};
  if (absl::Status status = EncodeMaps(p, info, &args); !status.ok()) return status;
  args.epilogue = p.epilogue;
  args.qkv = p.qkv;
  args.y_rows = p.y;
  if (p.epilogue == LinearEpilogue::kResidual) args.residual_rows = p.residual;
  args.m = p.m;
  args.n = p.n;
  args.k = p.k;
  args.units_m = CeilDiv(p.m, info.block_m * info.cluster);
  args.tiles_n = CeilDiv(p.n, info.block_n);
  args.group_m = std::max(1, kSuperRows / (info.block_m * info.cluster));
  args.splits = plan.splits;
  if (plan.splits > 1) {
    args.counters = static_cast<int*>(p.workspace);
    args.partials = reinterpret_cast<float*>(static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes);
  }
  const int work = args.units_m * args.tiles_n * args.splits;
  const int grid = std::min(work, context.num_sms / info.cluster) * info.cluster;
  const bool split = plan.splits > 1;
  if (info.deferred) return LaunchTileDeferred(plan.shape, args, grid, context);
  switch (p.epilogue) {
    case LinearEpilogue::kNone:
      return LaunchTilePlain(plan.shape, split, args, grid, context);
    case LinearEpilogue::kResidual:
      return LaunchTileResidual(plan.shape, split, args, grid, context);
    case LinearEpilogue::kSwiglu:
      return LaunchTileSwiglu(plan.shape, split, args, grid, context);
    case LinearEpilogue::kQkv:
      return LaunchTileQkv(plan.shape, split, args, grid, context);
  }
  return absl::InternalError("unknown epilogue");
}

}  // namespace agentserve::kernels::cuda
