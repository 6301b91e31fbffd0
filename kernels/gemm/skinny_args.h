// What the host side of the few-rows kernels hands to the device side.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

inline constexpr int kSkinnyWarps = 8;      // of a block; each takes every eighth chunk of a row's k
inline constexpr int kSkinnyChunk = 64;     // k of one ring stage of one warp: 16 rows x 128 bytes
inline constexpr int kSkinnyTileRows = 16;  // weight rows of one output tile
inline constexpr int kSkinnyMaxRows = 16;   // tokens
inline constexpr int kSkinnyMaxStages = 12;
inline constexpr int kSkinnySlab = 1024;  // k of one L2 prefetch: 16 rows x 2 KiB

// Knobs that change speed, never results.
struct SkinnyTuning {
  int stages = 4;          // ring depth per warp; one stage is 16 KiB of weights in flight per block
  int prefetch_slabs = 1;  // slabs of 32 KiB per block that go to L2 before the dependency wait, behind the ring
  int trigger_lead = 8;    // the next kernel may start when this many stages of a warp are left
};

// A logit and its token.
struct SkinnyBest {
  float value;
  int32_t index;
};

struct SkinnyArgs {
  LinearParams p;
  int tiles = 0;
  int chunks = 0;   // of k
  int x_pitch = 0;  // bytes of a resident row of x in shared memory: = 64 modulo 128, so 16-byte reads never conflict
  SkinnyTuning tuning;
  // Of kQkv: heads that are rotated (q and k).
  int rotated_heads = 0;
  // Of the greedy LM head; null otherwise. One partial per block and token, reduced by the last block to arrive.
  SkinnyBest* partials = nullptr;
  unsigned* arrivals = nullptr;
  int32_t* argmax = nullptr;
  __nv_bfloat16* best = nullptr;
};

SkinnyTuning DefaultSkinnyTuning(const LinearParams& params);
// The kernel for m <= kSkinnyMaxRows; `args` needs p, tuning and the LM head's fields, the rest is filled in here.
absl::Status LaunchSkinny(SkinnyArgs args, const LaunchContext& context);
bool SkinnyShapeFits(const LinearParams& params);

// The kernel for up to kWideMaxRows rows, without norm or argmax (skinny_wide_kernel.cuh).
inline constexpr int kWideMaxRows = 64;
struct WideTuning {
  int groups = 2;  // of 64 weight rows per block: 1 or 2
  int splits = 1;  // of k, over a cluster of so many blocks: 1..8
  int stages = 4;
};
WideTuning DefaultWideTuning(const LinearParams& params, int num_sms);
bool WideShapeFits(const LinearParams& params);
absl::Status LaunchWide(const LinearParams& params, const WideTuning& tuning, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
