// Arguments of the tile GEMM kernels, filled by tile_gemm.cc.
#pragma once

#include <cuda.h>

#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

struct Best;  // kernels/tile/reduce.cuh

struct TileArgs {
  CUtensorMap x;         // [m][k], boxes of block_m x 64
  CUtensorMap w;         // [n][k], boxes of block_n x 64
  CUtensorMap y;         // boxes of 64 x 64; direct epilogues only
  CUtensorMap residual;  // as y
  LinearEpilogue epilogue = LinearEpilogue::kNone;
  QkvOutput qkv;
  __nv_bfloat16* y_rows = nullptr;               // deferred epilogues and splits
  const __nv_bfloat16* residual_rows = nullptr;  // null without a residual
  float* partials = nullptr;                     // [splits][m][n]: the sums of each part of k, instead of y
  Best* best = nullptr;                          // [m][best_slots]: the best of the row in each strip of columns
  int best_slots = 0;
  int m = 0, n = 0, k = 0;
  int units_m = 0, tiles_n = 0;  // rows and columns of tiles
  int group_m = 0;               // rows of tiles in one super-row of the raster
  int splits = 1;                // of k: over the blocks of a cluster, or each into its partials
};

}  // namespace agentserve::kernels::cuda
