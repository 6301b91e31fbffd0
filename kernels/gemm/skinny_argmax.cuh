// Greedy choice on the side of the LM head.
#pragma once

#include "kernels/gemm/skinny_args.h"
#include "kernels/gemm/skinny_tile.cuh"
#include "kernels/tile/reduce.cuh"

namespace agentserve::kernels::cuda {

// Of the warps that multiply and those that finish.
__device__ __forceinline__ void ComputeSync() { NamedBarrierSync(2, kSkinnyThreads + 32 * kSkinnyFinishers); }

// A finishing warp's best logits per token, to shared memory [finisher][token].
template <int kTokenTiles>
__device__ __forceinline__ void StoreBest(const Best (&best)[kTokenTiles][2], SkinnyBest* shared, int finisher,
                                          int lane) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Best b = best[j][i];
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        b = BestOp()(
            b, Best{__shfl_xor_sync(0xffffffffu, b.value, offset), __shfl_xor_sync(0xffffffffu, b.index, offset)});
      }
      if (lane < 4) shared[finisher * 8 * kTokenTiles + 8 * j + 2 * lane + i] = {b.value, b.index};
    }
  }
}

// The block's best logit per token to global memory; the last block of the grid reduces all blocks' (a total order, so
// the order of arrival does not matter) and leaves the counter at zero. After StoreBest and a ComputeSync; by the same
// warps.
template <int kTokenTiles>
__device__ __forceinline__ void FinishArgmax(const SkinnyArgs& a, int m, const SkinnyBest* shared, bool* last) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int token = static_cast<int>(threadIdx.x);
  if (token < m) {
    Best b{shared[token].value, shared[token].index};
    for (int w = 1; w < kSkinnyFinishers; ++w) {
      const SkinnyBest other = shared[w * 8 * kTokenTiles + token];
      b = BestOp()(b, Best{other.value, other.index});
    }
    a.partials[blockIdx.x * m + token] = {b.value, b.index};
    __threadfence();
  }
  ComputeSync();
  if (threadIdx.x == 0) *last = atomicAdd(a.arrivals, 1u) == gridDim.x - 1;
  ComputeSync();
  if (!*last) return;
  __threadfence();
  for (int row = warp; row < m; row += kSkinnyWarps + kSkinnyFinishers) {
    Best b{-INFINITY, INT32_MAX};
    for (int block = lane; block < static_cast<int>(gridDim.x); block += 32) {
      const int2 raw = __ldcg(reinterpret_cast<const int2*>(a.partials) + block * m + row);
      b = BestOp()(b, Best{__int_as_float(raw.x), raw.y});
    }
    b = LaneBest(b);
    if (lane != 0) continue;
    if (a.argmax != nullptr) a.argmax[row] = b.index == INT32_MAX ? 0 : b.index;  // all NaN: a token that exists
    if (a.best != nullptr) a.best[row] = __float2bfloat16_rn(b.value);
  }
  if (threadIdx.x == 0) *a.arrivals = 0;
}

}  // namespace agentserve::kernels::cuda
