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

// Estimated time in cycles, fitted to linear_bench: per step of 64 k values and per tile.
struct TileCost {
  int block_m, block_n;
  double step, tile;
};
constexpr std::array<TileCost, static_cast<size_t>(TileShape::kCount)> kCosts = {{
    {128, 256, 1120, 5400},
    {128, 192, 870, 4000},
    {128, 128, 600, 2600},
    {64, 256, 640, 2600},
    {64, 128, 460, 1600},
    {128, 256, 1120, 1200},
    {128, 192, 870, 1000},
    {128, 128, 600, 800},
    {64, 256, 640, 800},
    {64, 192, 550, 700},
    {64, 128, 460, 600},
}};
constexpr double kLaunch = 4000;  // fill of the pipeline, last tile written
constexpr double kSplit = 2000;   // sums exchanged within the cluster

double Estimate(const LinearParams& p, const TilePlan& plan, int num_sms) {
  const TileCost& cost = kCosts[static_cast<size_t>(plan.shape)];
  const int work = CeilDiv(p.m, cost.block_m) * CeilDiv(p.n, cost.block_n) * plan.splits;
  const int waves = CeilDiv(work, num_sms);
  const int steps = CeilDiv(p.k / 64, plan.splits);
  return kLaunch + waves * (steps * cost.step + cost.tile) + (plan.splits > 1 ? kSplit : 0);
}

bool LibraryWins(const LinearParams& p) {
  if (p.epilogue == LinearEpilogue::kSwiglu) return p.m < 96;
  if (p.epilogue == LinearEpilogue::kQkv) return p.m < (p.qkv.kv.head_dim == 128 ? 1536 : 768);
  return p.m < 768;
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
