#include "kernels/gemm/linear_plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "kernels/gemm/cublaslt.h"
#include "kernels/gemm/skinny.h"
#include "kernels/rmsnorm/rmsnorm_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// Times in microseconds on a busy H200, fitted to linear_bench: per step of 64 k values, per tile beyond its steps, and
// once per call. The stream shapes are not among them: PlanStream says where they run.
struct TileCost {
  int block_m, block_n;
  double step, tile, call;
};
constexpr std::array<TileCost, static_cast<size_t>(TileShape::kStream64)> kCosts = {{
    {128, 256, 0.78, 4.0, 3.5},
    {128, 192, 0.595, 3.0, 3.5},
    {128, 128, 0.40, 1.5, 3.5},
    {64, 128, 0.255, 1.0, 3.5},
    {128, 256, 0.78, 0.5, 8.5},
    {128, 192, 0.595, 0.5, 7.0},
    {128, 128, 0.40, 0.5, 6.7},
    {64, 256, 0.41, 0.5, 6.7},
    {64, 192, 0.36, 0.5, 6.0},
    {64, 128, 0.30, 0.5, 5.5},
}};
constexpr double kSplitCall = 2.5;  // sums exchanged within a cluster

double Estimate(const LinearParams& p, const TilePlan& plan, int num_sms) {
  const TileCost& cost = kCosts[static_cast<size_t>(plan.shape)];
  const int tiles = CeilDiv(p.m, cost.block_m) * CeilDiv(p.n, cost.block_n);
  // Clusters of four do not fill every group of SMs: 28 were resident, 32 were not.
  const int resident = plan.splits == 4 ? num_sms / 4 - 5 : num_sms / plan.splits;
  if (plan.splits > 1 && tiles > resident) return std::numeric_limits<double>::infinity();
  const int waves = CeilDiv(tiles, resident);
  double steps = CeilDiv(p.k / 64, plan.splits) * cost.step;
  // Kept up for long, tiles of this size are held back by the L2 cache.
  const int outputs = cost.block_m * cost.block_n;
  if (waves > 2 && outputs == 128 * 128) steps *= 1.05;
  double once = cost.call + (plan.splits > 1 ? kSplitCall : 0);
  if (p.epilogue == LinearEpilogue::kQkv) {
    once += 1.5;
    // A deferred RoPE and KV write takes this long, however short the products over it are.
    if (waves > 1) steps = std::max(steps, 2.5 + 8e-4 * outputs);
  }
  return waves * (steps + cost.tile) + once;
}

// Time of cublasLt and the separate epilogue, in microseconds: its usual rate, and the epilogue's bytes.
double EstimateLibrary(const LinearParams& p) {
  const double outputs = static_cast<double>(p.m) * p.n;
  const double product = 2 * outputs * p.k / (p.epilogue == LinearEpilogue::kQkv ? 640e6 : 670e6) + 2;
  switch (p.epilogue) {
    case LinearEpilogue::kNone:
      return product;
    case LinearEpilogue::kResidual:
      return product + 1.3 + outputs * 6 / 4.2e6;
    case LinearEpilogue::kSwiglu:
      return product + 1.3 + outputs * 3 / 4.2e6;
    case LinearEpilogue::kQkv:
      return product + 1.3 + outputs * 4 / 3.2e6;
  }
  return product;
}

// Below kEstimatedRows a call is mostly fixed costs, which the estimates do not catch: there the library runs, but for
// these ranges of rows, where linear_bench saw tiles level or ahead.
constexpr int kEstimatedRows = 513;
struct TileRange {
  LinearEpilogue epilogue;
  int n, k, first, last;
};
// clang-format off
constexpr TileRange kTileRanges[] = {
    {LinearEpilogue::kQkv, 3072, 2048, 17, 64},  // Llama 3.2 1B
    {LinearEpilogue::kResidual, 2048, 2048, 17, 64},
    {LinearEpilogue::kResidual, 2048, 2048, 449, 512},
    {LinearEpilogue::kSwiglu, 16384, 2048, 1, 64},
    {LinearEpilogue::kSwiglu, 16384, 2048, 81, 128},
    {LinearEpilogue::kSwiglu, 16384, 2048, 241, 256},
    {LinearEpilogue::kSwiglu, 16384, 2048, 449, 512},
    {LinearEpilogue::kResidual, 2048, 8192, 33, 64},
    {LinearEpilogue::kResidual, 2048, 8192, 449, 512},
    {LinearEpilogue::kResidual, 3072, 3072, 17, 64},  // Llama 3.2 3B
    {LinearEpilogue::kSwiglu, 16384, 3072, 1, 64},
    {LinearEpilogue::kSwiglu, 16384, 3072, 81, 128},
    {LinearEpilogue::kSwiglu, 16384, 3072, 241, 256},
    {LinearEpilogue::kSwiglu, 16384, 3072, 449, 512},
    {LinearEpilogue::kResidual, 3072, 8192, 17, 64},
    {LinearEpilogue::kResidual, 3072, 8192, 97, 128},
};
// clang-format on

// What a library call costs a forward pass beyond its own time: its kernels neither begin before the one before ends
// nor let the next one begin. (1B, QKV of 1024 rows: level with tiles alone, 7.7 us a layer slower in the pass.)
constexpr double kLibraryInPass = 5;

bool LibraryWins(const LinearParams& p, const TilePlan& tile, int num_sms) {
  if (p.m >= kEstimatedRows) return EstimateLibrary(p) + kLibraryInPass < Estimate(p, tile, num_sms);
  for (const TileRange& range : kTileRanges) {
    const bool same = range.epilogue == p.epilogue && range.n == p.n && range.k == p.k;
    if (same && p.m >= range.first && p.m <= range.last) return false;
  }
  return true;
}

}  // namespace

std::optional<TilePlan> PlanTile(const LinearParams& params, const LaunchContext& context) {
  LinearParams plain = params;
  plain.norm_weight = nullptr;  // normed rows come from a kernel before
  const int max_splits = params.mode == LinearMode::kFast && params.m <= 512 ? 4 : 1;
  std::optional<TilePlan> best;
  double best_time = std::numeric_limits<double>::infinity();
  for (size_t shape = 0; shape < kCosts.size(); ++shape) {
    for (int splits = 1; splits <= max_splits; splits *= 2) {
      const TilePlan plan{static_cast<TileShape>(shape), splits};
      if (!TileSupports(plain, plan)) continue;
      const double time = Estimate(plain, plan, context.num_sms);
      if (time < best_time) best = plan, best_time = time;
    }
  }
  return best;
}

namespace {

constexpr int kMaxStreamRows = 64;
constexpr int kMaxStreamWidth = 2048;
constexpr int kMostParts = 8;

// Decode batches of models as wide as the 1B (3B steps at 64 rows were measured 2 % slower so). The products before a
// norm leave their sums in as many parts of k as occupy the GPU; gate-up is one tile a block where that fills it.
std::optional<LinearPlan> PlanStream(const LinearParams& p, const LaunchContext& context, bool norm_follows) {
  if (p.m <= kMaxFusedNormRows || p.m > kMaxStreamRows || std::min(p.n, p.k) > kMaxStreamWidth) return std::nullopt;
  const int tiles = CeilDiv(p.n, 128);
  LinearPlan plan;
  plan.tile.shape = TileShape::kStream64;
  if (p.epilogue == LinearEpilogue::kSwiglu) {
    if (tiles > context.num_sms || tiles < context.num_sms * 9 / 10) return std::nullopt;
    plan.family = LinearFamily::kTile;
    return plan;
  }
  if (!norm_follows || p.n % 128 != 0 || p.n > kMaxPartialColumns) return std::nullopt;
  plan.family = LinearFamily::kParts;
  plan.tile.splits = std::clamp(std::min(context.num_sms / tiles, p.k / 64), 1, kMostParts);
  return plan;
}

}  // namespace

size_t PartialBytes(int m, int n, int splits) {
  return static_cast<size_t>(m) * static_cast<size_t>(n) * static_cast<size_t>(splits) * sizeof(float);
}
size_t MaxPartialBytes(int max_m, int max_n) {
  return PartialBytes(std::min(max_m, kMaxStreamRows), std::min(max_n, kMaxPartialColumns), kMostParts);
}

bool FusesLmHead(const LinearParams& p) { return p.mode == LinearMode::kFast && p.m <= kMaxStreamRows; }

LinearPlan PlanLinear(const LinearParams& params, const LaunchContext& context, bool norm_follows) {
  LinearPlan plan;
  if (params.mode == LinearMode::kFast) {
    if (const auto stream = PlanStream(params, context, norm_follows); stream.has_value()) return *stream;
  }
  if (params.mode == LinearMode::kFast) {
    if (SkinnySupports(params)) {
      plan.family = LinearFamily::kSkinny;
      return plan;
    }
  }
  const std::optional<TilePlan> tile = PlanTile(params, context);
  if (!tile.has_value()) return plan;
  const bool library = params.mode == LinearMode::kFast && LibraryWins(params, *tile, context.num_sms);
  if (library && CublasLtAvailable()) return plan;
  plan.family = LinearFamily::kTile;
  plan.tile = *tile;
  return plan;
}

const char* PlanName(const LinearParams& params, const LinearPlan& plan) {
  static constexpr const char* kLibraryNames[] = {"cublasLt", "cublasLt + residual", "cublasLt + swiglu",
                                                  "cublasLt + rope and kv write"};
  static constexpr const char* kSplitNames[2][2] = {{"tile 128x128 split 2", "tile 128x128 split 4"},
                                                    {"tile 64x128 split 2", "tile 64x128 split 4"}};
  switch (plan.family) {
    case LinearFamily::kSkinny:
      return SkinnyPlanName(params);
    case LinearFamily::kParts:
      return "tile 64x128 stream, parts of k";
    case LinearFamily::kLibrary:
      return kLibraryNames[static_cast<size_t>(params.epilogue)];
    case LinearFamily::kTile:
      if (plan.tile.splits == 1) return TileShapeName(plan.tile.shape);
      return kSplitNames[plan.tile.shape == TileShape::k128x128 ? 0 : 1][plan.tile.splits / 4];
  }
  return "unknown";
}

}  // namespace agentserve::kernels::cuda
