#include "kernels/gemm/linear_plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "kernels/gemm/cublaslt.h"
#include "kernels/gemm/skinny.h"

namespace agentserve::kernels::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// Times in microseconds on a busy H200, fitted to linear_bench: per step of 64 k values, per tile beyond its steps, and
// once per call.
struct TileCost {
  int block_m, block_n;
  double step, tile, call;
};
constexpr std::array<TileCost, static_cast<size_t>(TileShape::kCount)> kCosts = {{
    {128, 256, 0.78, 4.0, 3.5},
    {128, 192, 0.595, 3.0, 3.5},
    {128, 128, 0.40, 1.5, 3.5},
    {64, 256, 0.41, 1.5, 3.5},
    {64, 128, 0.255, 1.0, 3.5},
    {128, 256, 0.78, 0.5, 8.5},
    {128, 192, 0.595, 0.5, 7.7},
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
  const int steps = CeilDiv(p.k / 64, plan.splits);
  return CeilDiv(tiles, resident) * (steps * cost.step + cost.tile) + cost.call + (plan.splits > 1 ? kSplitCall : 0);
}

// Row counts for which linear_bench saw tiles at least level with cublasLt and a separate epilogue, where the few-rows
// kernels do not reach; elsewhere the library runs.
struct TileRange {
  LinearEpilogue epilogue;
  int n, k;
  int few;   // tiles up to here (split over k) ...
  int many;  // ... and from here on
};
constexpr TileRange kTileRanges[] = {
    {LinearEpilogue::kQkv, 3072, 2048, 64, 1280},       // Llama 3.2 1B
    {LinearEpilogue::kResidual, 2048, 2048, 64, 320},   // attention output
    {LinearEpilogue::kResidual, 2048, 8192, 128, 320},  // down
    {LinearEpilogue::kQkv, 5120, 3072, 0, 1536},        // Llama 3.2 3B
    {LinearEpilogue::kResidual, 3072, 3072, 64, 768},   // attention output
    {LinearEpilogue::kResidual, 3072, 8192, 128, 768},  // down
};

bool LibraryWins(const LinearParams& p) {
  if (p.epilogue == LinearEpilogue::kSwiglu) return false;
  for (const TileRange& range : kTileRanges) {
    if (range.epilogue == p.epilogue && range.n == p.n && range.k == p.k) return p.m > range.few && p.m < range.many;
  }
  return p.m < 1536;
}

}  // namespace

TilePlan PlanTile(const LinearParams& params, const LaunchContext& context) {
  LinearParams plain = params;
  plain.norm_weight = nullptr;  // normed rows come from a kernel before
  const int max_splits = params.mode == LinearMode::kFast && params.m <= 512 ? 4 : 1;
  TilePlan best;
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

LinearPlan PlanLinear(const LinearParams& params, const LaunchContext& context) {
  LinearPlan plan;
  if (params.mode == LinearMode::kFast) {
    if (SkinnySupports(params)) {
      plan.family = LinearFamily::kSkinny;
      return plan;
    }
    if (LibraryWins(params) && CublasLtAvailable()) return plan;
  }
  plan.family = LinearFamily::kTile;
  plan.tile = PlanTile(params, context);
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
    case LinearFamily::kLibrary:
      return kLibraryNames[static_cast<size_t>(params.epilogue)];
    case LinearFamily::kTile:
      if (plan.tile.splits == 1) return TileShapeName(plan.tile.shape);
      return kSplitNames[plan.tile.shape == TileShape::k128x128 ? 0 : 1][plan.tile.splits / 4];
  }
  return "unknown";
}

}  // namespace agentserve::kernels::cuda
