#include "kernels/gemm/tile_gemm.h"
#include "kernels/gemm/tile_split.cuh"

namespace agentserve::kernels::cuda {

absl::Status LaunchTileSplit(const TilePlan& plan, const TileArgs& args, int tiles, const LaunchContext& context) {
  using Wide = TileConfig<128, 128, 6, 1, true>;
  using Narrow = TileConfig<64, 128, 8, 1, true>;
  if (plan.shape == TileShape::k128x128) {
    if (plan.splits == 2) return LaunchSplit<Wide, 2>(args, tiles, context);
    if (plan.splits == 4) return LaunchSplit<Wide, 4>(args, tiles, context);
  }
  if (plan.shape == TileShape::k64x128) {
    if (plan.splits == 2) return LaunchSplit<Narrow, 2>(args, tiles, context);
    if (plan.splits == 4) return LaunchSplit<Narrow, 4>(args, tiles, context);
  }
  return absl::InternalError("tile gemm: split not compiled");
}

}  // namespace agentserve::kernels::cuda
