#include "kernels/gemm/tile_deferred.cuh"
#include "kernels/gemm/tile_gemm.h"

namespace agentserve::kernels::cuda {

absl::Status LaunchTileDeferred(TileShape shape, const TileArgs& args, int grid, const LaunchContext& context) {
  switch (shape) {
    case TileShape::k128x256Deferred:
      return LaunchDeferred<TileConfig<128, 256, 3, 0>>(args, grid, context);
    case TileShape::k128x192Deferred:
      return LaunchDeferred<TileConfig<128, 192, 4, 0>>(args, grid, context);
    case TileShape::k128x128Deferred:
      return LaunchDeferred<TileConfig<128, 128, 6, 0>>(args, grid, context);
    case TileShape::k64x256Deferred:
      return LaunchDeferred<TileConfig<64, 256, 4, 0>>(args, grid, context);
    case TileShape::k64x192Deferred:
      return LaunchDeferred<TileConfig<64, 192, 6, 0>>(args, grid, context);
    case TileShape::k64x128Deferred:
      return LaunchDeferred<TileConfig<64, 128, 8, 0>>(args, grid, context);
    default:
      return absl::InternalError("tile gemm: shape not compiled");
  }
}

}  // namespace agentserve::kernels::cuda
