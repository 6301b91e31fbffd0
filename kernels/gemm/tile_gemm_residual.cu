#include "kernels/gemm/tile_configs.cuh"

namespace agentserve::kernels::cuda {

absl::Status LaunchTileResidual(TileShape shape, const TileArgs& args, int grid, const LaunchContext& context) {
  constexpr auto kEpilogue = LinearEpilogue::kResidual;
  switch (shape) {
    case TileShape::k128x256:
      return LaunchTile<Tile128x256, kEpilogue>(args, grid, context);
    case TileShape::k128x192:
      return LaunchTile<Tile128x192, kEpilogue>(args, grid, context);
    case TileShape::k128x128:
      return LaunchTile<Tile128x128, kEpilogue>(args, grid, context);
    case TileShape::k64x128:
      return LaunchTile<Tile64x128, kEpilogue>(args, grid, context);
    default:
      return absl::InternalError("tile gemm: shape not compiled");
  }
}

}  // namespace agentserve::kernels::cuda
