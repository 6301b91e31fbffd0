// The compiled tile shapes: stages and output buffers that fill an SM's shared memory.
#pragma once

#include "kernels/gemm/tile_gemm.cuh"
#include "kernels/gemm/tile_gemm.h"

namespace agentserve::kernels::cuda {

using Tile128x256 = TileConfig<128, 256, 4, 2>;
using Tile128x192 = TileConfig<128, 192, 4, 4>;
using Tile128x128 = TileConfig<128, 128, 6, 2>;
using Tile64x128 = TileConfig<64, 128, 8, 2>;

}  // namespace agentserve::kernels::cuda
