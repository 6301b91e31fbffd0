#include "kernels/gemm/tile_gemm.h"
#include "kernels/gemm/tile_stream.cuh"

namespace agentserve::kernels::cuda {

// The LM head has several tiles for each SM, two at once; other calls have one, beside one of the next kernel.
absl::Status LaunchTileStream(const TileArgs& args, int tiles, const LaunchContext& context) {
  const bool one_each = args.partials == nullptr && args.best == nullptr;
  return one_each ? LaunchStream<StreamConfig<64, 5>>(args, tiles, context)
                  : LaunchStream<StreamConfig<64, 4>>(args, tiles, context);
}

}  // namespace agentserve::kernels::cuda
