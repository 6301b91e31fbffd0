// The wgmma GEMM behind Linear for many rows. linear_cuda.cc picks the configuration; tests and the bench may name one.
#pragma once

#include "absl/status/status.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

struct Best;
struct TileArgs;

// Tile of rows of x by rows of w. "Deferred": the epilogue
// runs in warps of its own under the next tile; kSwiglu and kQkv need it, or splits.
enum class TileShape : uint8_t {
  k128x256,
  k128x192,
  k128x128,
  k64x128,
  k128x256Deferred,
  k128x192Deferred,
  k128x128Deferred,
  k64x256Deferred,
  k64x192Deferred,
  k64x128Deferred,
  kStream64,  // 64 x 128 and 128 x 128, two blocks an SM (tile_stream.cuh)
  kStream128,
  kCount,
};

struct TilePlan {
  TileShape shape = TileShape::k128x256;
  int splits = 1;  // of k, over a cluster: 2 or 4 with k128x128 and k64x128
};

const char* TileShapeName(TileShape shape);
// Whether this shape can run the call: whole heads (kQkv) and whole gate and up groups per warpgroup.
bool TileSupports(const LinearParams& params, const TilePlan& plan);
// Requires TileSupports; norm_weight must be null.
absl::Status TileLinear(const LinearParams& params, const TilePlan& plan, const LaunchContext& context);
// The fp32 sums of each of plan.splits parts of k, [splits][m][n], by a kStream shape; the epilogue is ignored.
absl::Status TilePartials(const LinearParams& params, const TilePlan& plan, float* partials,
                          const LaunchContext& context);
// The product by a kStream shape, and the best of each row in each of TileBestSlots strips of columns, [m][slots]. A
// null y stores no product.
int TileBestSlots(int n, TileShape shape);
absl::Status TileBest(const LinearParams& params, TileShape shape, Best* best, const LaunchContext& context);
// One translation unit each (tile_*.cu).
absl::Status LaunchTilePlain(TileShape shape, const TileArgs& args, int grid, const LaunchContext& context);
absl::Status LaunchTileResidual(TileShape shape, const TileArgs& args, int grid, const LaunchContext& context);
absl::Status LaunchTileSplit(const TilePlan& plan, const TileArgs& args, int tiles, const LaunchContext& context);
absl::Status LaunchTileStream(TileShape shape, const TileArgs& args, int tiles, const LaunchContext& context);
absl::Status LaunchTileDeferred(TileShape shape, const TileArgs& args, int grid, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
