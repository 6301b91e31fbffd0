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
  int stages = 0;
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

// The lane's 16-byte pieces of x of a chunk; zeros past row m.
__device__ __forceinline__ void LoadStageX(const SkinnyArgs& a, const char* x_shared, int chunk, int lane,
                                           uint4 (&x)[2][1]) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    x[half][0] = make_uint4(0, 0, 0, 0);
    if (g < a.p.m) {
      x[half][0] =
          *reinterpret_cast<const uint4*>(x_shared + g * a.x_pitch + chunk * (2 * kSkinnyChunk) + 64 * half + 16 * t);
    }
  }
}

__global__ __launch_bounds__(kSkinnyThreads, 1) void LinearChainKernel(const __grid_constant__ ChainArgs c) {
  extern __shared__ __align__(128) char shared[];
  __shared__ float sums[kSkinnyWarps];
  __shared__ bool last;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kStage = SkinnyStageBytes(1, true);
  const int stages = c.stages;
  float4* partials = reinterpret_cast<float4*>(shared);
  char* ring = shared + SkinnyPartialBytes(1) + warp * stages * kStage + lane * 16;
  const uint32_t ring_address = SharedAddress(ring);
  char* x_shared = shared + SkinnyPartialBytes(1) + kSkinnyWarps * stages * kStage;
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
  for (int s = 0; s < stages; ++s) {
    if (next.Valid(c)) next.CopyAndAdvance(c, ring_address + s * kStage, warp, lane);
    CpAsyncCommit();
  }
  PdlWait();
  PdlTrigger();
  CpAsyncWaitDynamic(stages);  // the norm weights, the oldest group

  Best best[1][2] = {{{-INFINITY, INT32_MAX}, {-INFINITY, INT32_MAX}}};
  TokenPlaces places;
  int stage = 0, turn = 0;
  for (int op = 0; op < c.count; ++op) {
    const SkinnyArgs& a = c.ops[op].a;
    int tile = FirstTile(c.ops[op]);
    if (tile >= a.tiles) continue;
    LoadTokenPlaces(a, lane, 0, places);
    if (op > 0) WaitForOp(c, op - 1);
    LoadX(a, x_shared, reinterpret_cast<const uint4*>(norms + c.ops[op].norm_offset), sums);
    for (; tile < a.tiles; tile += static_cast<int>(gridDim.x), ++turn) {
      const TileRows rows = RowsOfTile(a, tile);
      const bool finisher = warp == turn % kSkinnyWarps;
      EpilogueInputs inputs;
      if (finisher) LoadEpilogueInputs(a, rows, lane, 0, places, inputs);
      float sum[2][1][4] = {};
      for (int chunk = warp; chunk < a.chunks; chunk += kSkinnyWarps) {
        CpAsyncWaitDynamic(stages - 1);
        uint4 x[2][1];
        LoadStageX(a, x_shared, chunk, lane, x);
        MultiplyStage<1>(reinterpret_cast<const uint4*>(ring + stage * kStage), x, sum);
        if (next.Valid(c)) next.CopyAndAdvance(c, ring_address + stage * kStage, warp, lane);
        CpAsyncCommit();
        if (++stage == stages) stage = 0;
      }
      float4* partial = partials + (turn & 1) * kSkinnyWarps * 32;
      partial[warp * 32 + lane] = make_float4(sum[0][0][0] + sum[1][0][0], sum[0][0][1] + sum[1][0][1],
                                              sum[0][0][2] + sum[1][0][2], sum[0][0][3] + sum[1][0][3]);
      __syncthreads();
      if (!finisher) continue;
      float total[1][4];
      SumPartials<1>(partial, lane, total);
      FinishTokenTile(a, rows, lane, 0, total[0], places, inputs, best[0]);
      if (op + 1 == c.count) continue;
      __threadfence();
      __syncwarp();
      if (lane == 0) AddRelease(c.counters + 32 * op);
    }
  }
  const SkinnyArgs& a = c.ops[c.count - 1].a;
  if (a.partials != nullptr) FinishArgmax<1>(a, best, reinterpret_cast<SkinnyBest*>(shared), &last);
  LeaveChain(c);
}

}  // namespace agentserve::kernels::cuda
