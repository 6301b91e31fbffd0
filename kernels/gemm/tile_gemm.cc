#include "kernels/gemm/tile_gemm.h"

#include <algorithm>

#include "kernels/gemm/tile_args.h"
#include "kernels/tile/tensor_map.h"

namespace agentserve::kernels::cuda {
namespace {

struct ShapeInfo {
  const char* name;
  int block_m, block_n;
  bool splits = false;
  bool deferred = false;
  bool stream = false;
};
constexpr ShapeInfo kShapes[] = {
    {"tile 128x256", 128, 256},
    {"tile 128x192", 128, 192},
    {"tile 128x128", 128, 128, true},
    {"tile 64x128", 64, 128, true},
    {"tile 128x256 deferred", 128, 256, false, true},
    {"tile 128x192 deferred", 128, 192, false, true},
    {"tile 128x128 deferred", 128, 128, false, true},
    {"tile 64x256 deferred", 64, 256, false, true},
    {"tile 64x192 deferred", 64, 192, false, true},
    {"tile 64x128 deferred", 64, 128, false, true},
    {"tile 64x128 stream", 64, 128, false, false, true},
    {"tile 128x128 stream", 128, 128, false, false, true},
};
static_assert(std::size(kShapes) == static_cast<size_t>(TileShape::kCount));

// Rows of x that a super-row of the raster spans: 16 tiles of 128 x 256 x K 2048 keep 17 MB of x and w in L2.
constexpr int kSuperRows = 2048;

const ShapeInfo& InfoOf(TileShape shape) { return kShapes[static_cast<size_t>(shape)]; }
int CeilDiv(int a, int b) { return (a + b - 1) / b; }

absl::Status EncodeMaps(const LinearParams& p, const ShapeInfo& info, TileArgs* args) {
  const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n), k = static_cast<uint64_t>(p.k);
  absl::Status status = EncodeMatrix(p.x, m, k, static_cast<uint32_t>(info.block_m), 64, &args->x);
  if (status.ok()) status = EncodeMatrix(p.w, n, k, static_cast<uint32_t>(info.block_n), 64, &args->w);
  if (info.deferred || info.stream || args->splits > 1) return status;  // these write y by ordinary stores
  if (status.ok()) status = EncodeMatrix(p.y, m, n, 64, 64, &args->y);
  if (status.ok() && p.epilogue == LinearEpilogue::kResidual) {
    status = EncodeMatrix(p.residual, m, n, 64, 64, &args->residual);
  }
  return status;
}

absl::Status MakeArgs(const LinearParams& p, const ShapeInfo& info, int splits, TileArgs* args) {
  args->splits = splits;
  if (absl::Status status = EncodeMaps(p, info, args); !status.ok()) return status;
  args->epilogue = p.epilogue;
  args->qkv = p.qkv;
  args->y_rows = p.y;
  if (p.epilogue == LinearEpilogue::kResidual) args->residual_rows = p.residual;
  args->m = p.m;
  args->n = p.n;
  args->k = p.k;
  args->units_m = CeilDiv(p.m, info.block_m);
  args->tiles_n = CeilDiv(p.n, info.block_n);
  args->group_m = std::max(1, kSuperRows / (info.block_m));
  return absl::OkStatus();
}

}  // namespace

const char* TileShapeName(TileShape shape) { return InfoOf(shape).name; }

bool TileSupports(const LinearParams& p, const TilePlan& plan) {
  const ShapeInfo& info = InfoOf(plan.shape);
  if (p.norm_weight != nullptr) return false;
  const bool fused = p.epilogue == LinearEpilogue::kSwiglu || p.epilogue == LinearEpilogue::kQkv;
  if (fused && !info.deferred && !info.stream && plan.splits == 1) return false;
  if (p.epilogue == LinearEpilogue::kQkv) {
    const int dim = static_cast<int>(p.qkv.kv.head_dim);
    if ((dim != 64 && dim != 128) || info.block_n % dim != 0) return false;
  }
  return plan.splits == 1 || (info.splits && (plan.splits == 2 || plan.splits == 4) && plan.splits <= p.k / 64);
}

absl::Status TileLinear(const LinearParams& p, const TilePlan& plan, const LaunchContext& context) {
  const ShapeInfo& info = InfoOf(plan.shape);
  TileArgs args = {};
  if (absl::Status status = MakeArgs(p, info, plan.splits, &args); !status.ok()) return status;
  if (plan.splits > 1) return LaunchTileSplit(plan, args, args.units_m * args.tiles_n, context);
  const int work = args.units_m * args.tiles_n;
  if (info.stream) return LaunchTileStream(plan.shape, args, work, context);
  const int grid = std::min(work, context.num_sms);
  if (info.deferred) return LaunchTileDeferred(plan.shape, args, grid, context);
  switch (p.epilogue) {
    case LinearEpilogue::kNone:
      return LaunchTilePlain(plan.shape, args, grid, context);
    case LinearEpilogue::kResidual:
      return LaunchTileResidual(plan.shape, args, grid, context);
    default:
      return absl::InvalidArgumentError("tile gemm: this epilogue is compiled deferred only");
  }
}

absl::Status TilePartials(const LinearParams& p, const TilePlan& plan, float* partials, const LaunchContext& context) {
  const ShapeInfo& info = InfoOf(plan.shape);
  if (!info.stream || plan.splits > p.k / 64 || p.norm_weight != nullptr) {
    return absl::InvalidArgumentError("tile gemm: partial sums come from stream shapes");
  }
  TileArgs args = {};
  if (absl::Status status = MakeArgs(p, info, plan.splits, &args); !status.ok()) return status;
  args.partials = partials;
  return LaunchTileStream(plan.shape, args, args.units_m * args.tiles_n, context);
}

int TileBestSlots(int n, TileShape shape) { return CeilDiv(n, 128) * (shape == TileShape::kStream64 ? 2 : 1); }

absl::Status TileBest(const LinearParams& p, TileShape shape, Best* best, const LaunchContext& context) {
  const ShapeInfo& info = InfoOf(shape);
  if (!info.stream || p.norm_weight != nullptr || p.epilogue != LinearEpilogue::kNone) {
    return absl::InvalidArgumentError("tile gemm: the best of a row comes from stream shapes without an epilogue");
  }
  TileArgs args = {};
  if (absl::Status status = MakeArgs(p, info, 1, &args); !status.ok()) return status;
  args.best = best;
  args.best_slots = TileBestSlots(p.n, shape);
  return LaunchTileStream(shape, args, args.units_m * args.tiles_n, context);
}

}  // namespace agentserve::kernels::cuda
