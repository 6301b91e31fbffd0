#include "kernels/gemm/tile_gemm.h"
#include "kernels/gemm/tile_stream.cuh"

namespace agentserve::kernels::cuda {

absl::Status LaunchTileStream(TileShape shape, const TileArgs& args, int tiles, const LaunchContext& context) {
  if (shape == TileShape::kStream64 && args.partials == nullptr && args.best == nullptr) {
    return LaunchStream<StreamConfig<64, 5>>(args, tiles, context);
  }
  if (shape == TileShape::kStream64) return LaunchStream<StreamConfig<64, 4>>(args, tiles, context);
  if (shape == TileShape::kStream128) return LaunchStream<StreamConfig<128, 3>>(args, tiles, context);
  return absl::InternalError("tile gemm: shape not compiled");
}

}  // namespace agentserve::kernels::cuda
