// Which kernel runs a call of Linear.
#pragma once

#include <cstddef>
#include <optional>

#include "kernels/gemm/linear_cuda.h"
#include "kernels/gemm/tile_gemm.h"

namespace agentserve::kernels::cuda {

// kParts: stream tiles leave sums of parts of k, a kernel that follows adds them up.
enum class LinearFamily : uint8_t { kSkinny, kTile, kParts, kLibrary };

struct LinearPlan {
  LinearFamily family = LinearFamily::kLibrary;
  TilePlan tile;  // kTile, kParts
};

// Fast mode: skinny for the few rows it takes, else the tile plan of least estimated time, or cublasLt and a separate
// epilogue where that is faster. Invariant mode: always tiles without splits, whose bits depend on a row alone.
// kParts only if `norm_follows` (LinearResidualNorm).
LinearPlan PlanLinear(const LinearParams& params, const LaunchContext& context, bool norm_follows = false);
// The tile plan of least estimated time; without splits in invariant mode. None fuses RoPE with heads of other sizes
// than 64 and 128: then the product and the epilogue are separate kernels (kLibrary).
std::optional<TilePlan> PlanTile(const LinearParams& params, const LaunchContext& context);
// Room for the parts that kParts leaves: of this call, of any with m <= max_m and n <= max_n.
size_t PartialBytes(int m, int n, int splits);
size_t MaxPartialBytes(int max_m, int max_n);
// The tile that runs the LM head with its choice fused; none: a plain product, then the choice.
std::optional<TileShape> PlanLmHead(const LinearParams& params);
const char* PlanName(const LinearParams& params, const LinearPlan& plan);

}  // namespace agentserve::kernels::cuda
