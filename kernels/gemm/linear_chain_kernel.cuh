// The few-rows kernel (skinny_kernel.cuh, with x in shared memory) over a sequence of ops: one block per SM walks all
// of them with a single ring of weights. Before an op a block waits until the tiles of the op before are all finished:
// every finished tile is counted in global memory.
#pragma once

#include "kernels/gemm/skinny_kernel.cuh"

namespace agentserve::kernels::cuda {

struct ChainOp {
  SkinnyArgs a;
  int shift = 0;        // block b begins with tile (b + shift) % grid: the blocks' shares of all ops even out
  int norm_offset = 0;  // of the norm weights in shared memory
};
struct ChainArgs {
  ChainOp ops[4];
  int count = 0;
  int x_bytes = 0;
  // Finished tiles of op i at counters[32 * i]; the last is that of blocks that have left. Zero before and after.
  unsigned* counters = nullptr;
};
inline constexpr int kChainExitCounter = 4;

__device__ __forceinline__ int FirstTile(const ChainOp& op) {
  return static_cast<int>((blockIdx.x + op.shift) % gridDim.x);
}

// SkinnyCursor over all ops.
struct ChainCursor {
  int op;
  SkinnyCursor at;

  __device__ __forceinline__ void Start(const ChainArgs& c, int first_op, int warp, int lane) {
    for (op = first_op; op < c.count; ++op) {
      const int tile = FirstTile(c.ops[op]);
      if (tile >= c.ops[op].a.tiles || warp >= c.ops[op].a.chunks) continue;
      at.Start(c.ops[op].a, tile, warp, lane);
      return;
    }
  }
  __device__ __forceinline__ bool Valid(const ChainArgs& c) const { return op < c.count; }
  __device__ __forceinline__ void CopyAndAdvance(const ChainArgs& c, uint32_t stage, int warp, int lane) {
    at.CopyWeights(stage);
    const SkinnyArgs& a = c.ops[op].a;
    at.Advance(a, warp, lane);
    if (at.tile >= a.tiles) Start(c, op + 1, warp, lane);
  }
};

__device__ __forceinline__ unsigned LoadAcquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void AddRelease(unsigned* p) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}

// Until all tiles of op `op` are finished and visible to every thread of the block. Traps after seconds.
__device__ __forceinline__ void WaitForOp(const ChainArgs& c, int op) {
  if (threadIdx.x == 0) {
    const auto tiles = static_cast<unsigned>(c.ops[op].a.tiles);
    const long long start = clock64();
    while (LoadAcquire(c.counters + 32 * op) < tiles) {
      if (clock64() - start > 8'000'000'000LL) __trap();
    }
  }
  __syncthreads();
}

// The last block to leave sets the counters back for the next launch.
__device__ __forceinline__ void LeaveChain(const ChainArgs& c) {
  if (threadIdx.x != 0) return;
  unsigned* exits = c.counters + 32 * kChainExitCounter;
  __threadfence();
  if (atomicAdd(exits, 1u) != gridDim.x - 1) return;
  for (int i = 0; i <= kChainExitCounter; ++i) c.counters[32 * i] = 0;
}

// The lane's 16-byte pieces of x of a chunk; zeros past row m. From shared memory, or from L2 where x is too large.
template <int kTokenTiles, bool kShared>
__device__ __forceinline__ void LoadStageX(const SkinnyArgs& a, const char* x_shared, int chunk, int lane,
                                           uint4 (&x)[2][kTokenTiles]) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    const int token = 8 * j + g;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      x[half][j] = make_uint4(0, 0, 0, 0);
      if (token >= a.p.m) continue;
      if constexpr (kShared) {
        x[half][j] = *reinterpret_cast<const uint4*>(x_shared + token * a.x_pitch + chunk * (2 * kSkinnyChunk) +
                                                     64 * half + 16 * t);
      } else {
        x[half][j] = __ldcg(reinterpret_cast<const uint4*>(a.p.x + static_cast<size_t>(token) * a.p.k +
                                                           chunk * kSkinnyChunk + 32 * half + 8 * t));
      }
    }
  }
}

// One warp's place in its ring of weights.
template <int kStages>
struct ChainRing {
  char* base;  // the lane's 16 bytes of stage 0
  int stage = 0;

  // Multiplies the oldest stage and refills it.
  template <int kTokenTiles>
  __device__ __forceinline__ void Turn(const ChainArgs& c, ChainCursor& next, int warp, int lane,
                                       const uint4 (&x)[2][kTokenTiles], float (&sum)[2][kTokenTiles][4]) {
    constexpr int kStage = SkinnyStageBytes(1, true);
    char* at = base + stage * kStage;
    CpAsyncWait<kStages - 1>();
    MultiplyStage<kTokenTiles>(reinterpret_cast<const uint4*>(at), x, sum);
    if (next.Valid(c)) next.CopyAndAdvance(c, SharedAddress(at), warp, lane);
    CpAsyncCommit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
};

// The warp's chunks of a tile.
template <int kTokenTiles, int kStages>
__device__ __forceinline__ void MultiplyTile(const ChainArgs& c, const SkinnyArgs& a, const char* x_shared, int warp,
                                             int lane, ChainRing<kStages>& ring, ChainCursor& next,
                                             float (&sum)[2][kTokenTiles][4]) {
  if (kTokenTiles == 1 || a.x_pitch != 0) {
#pragma unroll 1
    for (int chunk = warp; chunk < a.chunks; chunk += kSkinnyWarps) {
      uint4 x[2][kTokenTiles];
      LoadStageX<kTokenTiles, true>(a, x_shared, chunk, lane, x);
      ring.Turn(c, next, warp, lane, x, sum);
    }
    return;
  }
  if constexpr (kTokenTiles > 1) {
    // x of the next chunks is on its way from L2 while a chunk is multiplied.
    constexpr int kAhead = 4;
    uint4 x[kAhead][2][kTokenTiles];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (warp + i * kSkinnyWarps < a.chunks) {
        LoadStageX<kTokenTiles, false>(a, nullptr, warp + i * kSkinnyWarps, lane, x[i]);
      }
    }
#pragma unroll 1
    for (int chunk = warp; chunk < a.chunks; chunk += kAhead * kSkinnyWarps) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int now = chunk + i * kSkinnyWarps, later = now + kAhead * kSkinnyWarps;
        if (now >= a.chunks) break;
        ring.Turn(c, next, warp, lane, x[i], sum);
        if (later < a.chunks) LoadStageX<kTokenTiles, false>(a, nullptr, later, lane, x[i]);
      }
    }
  }
}

template <int kTokenTiles, int kStages>
__global__ __launch_bounds__(kSkinnyThreads, 1) void LinearChainKernel(const __grid_constant__ ChainArgs c) {
  extern __shared__ __align__(128) char shared[];
  __shared__ float sums[kSkinnyWarps];
  __shared__ bool last;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kStage = SkinnyStageBytes(1, true), kPartials = SkinnyPartialBytes(kTokenTiles);
  float4* partials = reinterpret_cast<float4*>(shared);
  ChainRing<kStages> ring{shared + kPartials + warp * kStages * kStage + lane * 16};
  char* x_shared = shared + kPartials + kSkinnyWarps * kStages * kStage;
  char* norms = x_shared + c.x_bytes;

  // Constants only: norm weights and the ring's first lap.
  ChainCursor next;
  next.Start(c, 0, warp, lane);
  for (int op = 0; op < c.count; ++op) {
    const SkinnyArgs& a = c.ops[op].a;
    if (a.p.norm_weight == nullptr) continue;
    for (int i = static_cast<int>(threadIdx.x); i < a.p.k / 8; i += kSkinnyThreads) {
      CpAsync16(SharedAddress(norms + c.ops[op].norm_offset + 16 * i), a.p.norm_weight + 8 * i);
    }
  }
  CpAsyncCommit();
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) {
    if (next.Valid(c)) next.CopyAndAdvance(c, SharedAddress(ring.base + s * kStage), warp, lane);
    CpAsyncCommit();
  }
  PdlWait();
  PdlTrigger();
  CpAsyncWait<kStages>();  // the norm weights, the oldest group

  Best best[kTokenTiles][2];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) best[j][0] = best[j][1] = Best{-INFINITY, INT32_MAX};
  int turn = 0;
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyArgs& a = c.ops[op].a;
    int tile = FirstTile(c.ops[op]);
    if (tile >= a.tiles) continue;
    TokenPlaces places[kTokenTiles];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) LoadTokenPlaces(a, lane, j, places[j]);
    if (op > 0) WaitForOp(c, op - 1);
    if (a.x_pitch != 0) LoadX(a, x_shared, reinterpret_cast<const uint4*>(norms + c.ops[op].norm_offset), sums);
#pragma unroll 1
    for (; tile < a.tiles; tile += static_cast<int>(gridDim.x), ++turn) {
      const TileRows rows = RowsOfTile(a, tile);
      const bool finisher = warp == turn % kSkinnyWarps;
      EpilogueInputs inputs[kTokenTiles];
      if (finisher) {
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) LoadEpilogueInputs(a, rows, lane, j, places[j], inputs[j]);
      }
      float sum[2][kTokenTiles][4] = {};
      MultiplyTile<kTokenTiles, kStages>(c, a, x_shared, warp, lane, ring, next, sum);
      float4* partial = partials + (turn & 1) * kSkinnyWarps * kTokenTiles * 32;
      StorePartial<kTokenTiles>(sum, partial, warp, lane);
      // The only barrier per tile: the other half of `partials` was read by a warp that has arrived here since.
      __syncthreads();
      if (!finisher) continue;
      float total[kTokenTiles][4];
      SumPartials<kTokenTiles>(partial, lane, total);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        FinishTokenTile(a, rows, lane, j, total[j], places[j], inputs[j], best[j]);
      }
      if (op + 1 == c.count) continue;
      __threadfence();
      __syncwarp();
      if (lane == 0) AddRelease(c.counters + 32 * op);
    }
  }
  const SkinnyArgs& a = c.ops[c.count - 1].a;
  if (a.partials != nullptr) FinishArgmax<kTokenTiles>(a, best, reinterpret_cast<SkinnyBest*>(shared), &last);
  LeaveChain(c);
}

}  // namespace agentserve::kernels::cuda
