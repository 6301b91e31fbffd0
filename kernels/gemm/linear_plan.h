// Which kernel runs a call of Linear.
#pragma once

#include <optional>

#include "kernels/gemm/linear_cuda.h"
#include "kernels/gemm/tile_gemm.h"

namespace agentserve::kernels::cuda {

enum class LinearFamily : uint8_t { kSkinny, kTile, kLibrary };

struct LinearPlan {
  LinearFamily family = LinearFamily::kLibrary;
  TilePlan tile;  // kTile
};

// Fast mode: skinny for the few rows it takes, else the tile plan of least estimated time, or cublasLt and a separate
// epilogue where that is faster. Invariant mode: always tiles without splits, whose bits depend on a row alone.
LinearPlan PlanLinear(const LinearParams& params, const LaunchContext& context);
// The tile plan of least estimated time; without splits in invariant mode. None fuses RoPE with heads of other sizes
// than 64 and 128: then the product and the epilogue are separate kernels (kLibrary).
std::optional<TilePlan> PlanTile(const LinearParams& params, const LaunchContext& context);
const char* PlanName(const LinearParams& params, const LinearPlan& plan);

}  // namespace agentserve::kernels::cuda
