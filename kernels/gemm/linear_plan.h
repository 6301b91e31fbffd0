// Which kernel runs a call of Linear.
#pragma once

#include "kernels/gemm/linear_cuda.h"
#include "kernels/gemm/tile_gemm.h"

namespace agentserve::kernels::cuda {

enum class LinearFamily : uint8_t { kSkinny, kTile, kLibrary };

struct LinearPlan {
  LinearFamily family = LinearFamily::kLibrary;
  TilePlan tile;  // kTile
};

// Fast mode: skinny for the few rows it takes, else the tile plan of least estimated time, else cublasLt at the shapes
// where that was measured to win. Invariant mode: always tiles without splits, whose bits depend on a row alone.
LinearPlan PlanLinear(const LinearParams& params, const LaunchContext& context);
// The tile plan of least estimated time; without splits in invariant mode.
TilePlan PlanTile(const LinearParams& params, const LaunchContext& context);
const char* PlanName(const LinearParams& params, const LinearPlan& plan);

}  // namespace agentserve::kernels::cuda
