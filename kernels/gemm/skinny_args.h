// What the host side of the few-rows kernels hands to the device side.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

inline constexpr int kSkinnyWarps = 8;                    // that multiply
inline constexpr int kSkinnyThreads = 32 * kSkinnyWarps;  // of them
inline constexpr int kSkinnyFinishers = 2;                // warps that add the partial sums and run the epilogue
inline constexpr int kSkinnyBlock = kSkinnyThreads + 32 * kSkinnyFinishers + 64;  // and two warps that load
inline constexpr int kSkinnyChunk = 64;                                           // k: rows of 128 bytes
inline constexpr int kSkinnyWarpChunks = 2;                                       // of one warp in one stage
inline constexpr int kSkinnyStageChunks = kSkinnyWarps * kSkinnyWarpChunks;
inline constexpr int kSkinnyStageK = kSkinnyStageChunks * kSkinnyChunk;
inline constexpr int kSkinnyTileRows = 16;  // weight rows of one output tile
inline constexpr int kSkinnyStageBytes = kSkinnyTileRows * kSkinnyStageK * 2;
inline constexpr int kSkinnyMaxRows = 16;  // tokens
inline constexpr int kSkinnyMaxStages = 6;
inline constexpr int kSkinnyXSlots = 2;  // stages of x, where x does not stay in shared memory
inline constexpr int kSkinnyMaxOps = 4;

// A logit and its token.
struct SkinnyBest {
  float value;
  int32_t index;
};

// One linear layer.
struct SkinnyOp {
  LinearParams p;
  int tiles = 0;
  int stages_per_tile = 0;
  int shift = 0;        // block b begins with tile (b + shift) % grid, so that the blocks' shares of all ops even out
  int norm_offset = 0;  // of the norm weights in shared memory
  bool x_streams = false;
  int rotated_heads = 0;  // of kQkv: q and k
};

struct SkinnyArgs {
  CUtensorMap w_maps[kSkinnyMaxOps];  // boxes of 64 k x 8 rows x 8 chunks
  CUtensorMap x_maps[kSkinnyMaxOps];  // boxes of 64 k x (8 or 16) rows x 8 chunks; only of ops whose x streams
  SkinnyOp ops[kSkinnyMaxOps];
  int count = 0;
  int stages = 0;
  int x_bytes = 0;
  int norm_bytes = 0;
  const std::byte* next_weights = nullptr;  // for L2, at the end
  size_t next_bytes = 0;
  int prefetch_stages = 0;  // that go to L2 before the ring has room for them
  int trigger_lead = 0;     // the next kernel may start when so many stages are still to be sent for
  // Finished tiles of op i at counters[32 * i], blocks that have left at [32 * kSkinnyMaxOps]. Zero before and after.
  // Null if there is one op.
  unsigned* counters = nullptr;
  // Of a greedy LM head as the last op; null otherwise. One partial per block and token, reduced by the last block.
  SkinnyBest* partials = nullptr;
  unsigned* arrivals = nullptr;
  int32_t* argmax = nullptr;
  __nv_bfloat16* best = nullptr;
};

}  // namespace agentserve::kernels::cuda
