// y = epilogue(x W^T) for up to 16 rows of x, for one linear layer or a sequence of them that feed each other. Bound by
// reading the weights once: everything here serves to keep that stream going.
//
// A tile is 16 weight rows (two groups of 8, see skinny_epilogue.cuh) by all of k. Block b takes tiles b, b + grid, ...
// of every op in turn. One warp sends for the weights, stage by stage (16 rows x 512 k, by TMA), through all tiles and
// all ops: it depends on nothing but room in the ring. Eight warps multiply: warp w takes 64 of a stage's 512 k; their
// partial sums meet in shared memory once per tile, and one warp, in turn, adds them in fixed order and runs the
// epilogue. Before an op the block waits until all tiles of the op before are finished (they are counted in global
// memory), then brings x to shared memory, normalised if asked for; x that is too large streams like the weights.
//
// Meanwhile the ring holds the first weights of that op, so the wait costs the stream nothing. For the same reason,
// with PDL the ring is filled before the kernels before this one are done.
#pragma once

#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/skinny_argmax.cuh"
#include "kernels/gemm/skinny_epilogue.cuh"
#include "kernels/gemm/skinny_tile.cuh"
#include "kernels/tile/tma.cuh"

namespace agentserve::kernels::cuda {

__host__ __device__ constexpr int SkinnyPartialBytes(int token_tiles) {
  return 2 * kSkinnyWarps * token_tiles * 32 * 16;
}
__host__ __device__ constexpr int SkinnyXSlotBytes(int token_tiles) { return 8 * token_tiles * kSkinnyStageK * 2; }

struct SkinnyBarriers {
  uint64_t full[kSkinnyMaxStages], empty[kSkinnyMaxStages];
  uint64_t x_full[kSkinnyXSlots], x_empty[kSkinnyXSlots];
};

// A walk around a ring of `size` stages.
struct RingWalk {
  int size;
  int index = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Advance() {
    if (++index == size) index = 0, phase ^= 1;
  }
};

__device__ __forceinline__ int FirstTile(const SkinnyOp& op) {
  return static_cast<int>((blockIdx.x + op.shift) % gridDim.x);
}

__device__ __forceinline__ unsigned LoadAcquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void AddRelease(unsigned* p) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}

// Until all tiles of op `op` are finished. One thread; traps after seconds.
__device__ __forceinline__ void WaitForOp(const SkinnyArgs& c, int op) {
  const auto tiles = static_cast<unsigned>(c.ops[op].tiles);
  const long long start = clock64();
  while (LoadAcquire(c.counters + 32 * op) < tiles) {
    if (clock64() - start > 8'000'000'000LL) __trap();
  }
}

// The weight stream: one thread. The trigger comes when only c.trigger_lead stages are left to be sent for: the next
// kernel's stream then follows this one without a gap, and does not push it aside before.
__device__ __forceinline__ void SendForWeights(const SkinnyArgs& c, char* ring, SkinnyBarriers& barriers) {
  int left = 0;
  for (int op = 0; op < c.count; ++op) {
    const int tiles = c.ops[op].tiles - FirstTile(c.ops[op]);
    if (tiles > 0)
      left += (tiles + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x) * c.ops[op].stages_per_tile;
  }
  RingWalk at{c.stages};
  bool waited = false, triggered = false, first_lap = true;
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& o = c.ops[op];
    const CUtensorMap* map = &c.w_maps[op];
#pragma unroll 1
    for (int tile = FirstTile(o); tile < o.tiles; tile += static_cast<int>(gridDim.x)) {
      const TileRows rows = RowsOfTile(o, tile);
#pragma unroll 1
      for (int i = 0; i < o.stages_per_tile; ++i) {
        if (!first_lap) {
          if (!waited) PdlWait();
          waited = true;
          if (!triggered && left <= c.trigger_lead) PdlTrigger(), triggered = true;
          MbarrierWait(&barriers.empty[at.index], at.phase ^ 1);
        }
        MbarrierArriveExpect(&barriers.full[at.index], kSkinnyStageBytes);
        char* to = ring + at.index * kSkinnyStageBytes;
        TmaLoad3d(to, map, &barriers.full[at.index], 0, rows.first, 8 * i);
        TmaLoad3d(to + kSkinnyStageBytes / 2, map, &barriers.full[at.index], 0, rows.second, 8 * i);
        at.Advance();
        if (at.index == 0) first_lap = false;
        --left;
      }
    }
  }
  if (!waited) PdlWait();
  if (!triggered) PdlTrigger();
}

// x of the ops whose x streams: one thread.
template <int kTokenTiles>
__device__ __forceinline__ void SendForX(const SkinnyArgs& c, char* slots, SkinnyBarriers& barriers) {
  RingWalk at{kSkinnyXSlots};
  PdlWait();
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& o = c.ops[op];
    if (!o.x_streams || FirstTile(o) >= o.tiles) continue;
    // The slots lie where x of the op before stayed; once its tiles are finished nobody reads that any more.
    if (op > 0) WaitForOp(c, op - 1);
    FenceProxyAsync();  // x was written by ordinary stores
#pragma unroll 1
    for (int tile = FirstTile(o); tile < o.tiles; tile += static_cast<int>(gridDim.x)) {
#pragma unroll 1
      for (int i = 0; i < o.stages_per_tile; ++i) {
        MbarrierWait(&barriers.x_empty[at.index], at.phase ^ 1);
        MbarrierArriveExpect(&barriers.x_full[at.index], SkinnyXSlotBytes(kTokenTiles));
        TmaLoad3d(slots + at.index * SkinnyXSlotBytes(kTokenTiles), &c.x_maps[op], &barriers.x_full[at.index], 0, 0,
                  8 * i);
        at.Advance();
      }
    }
  }
}

// The last block to leave sets the counters back for the next launch.
__device__ __forceinline__ void LeaveOps(const SkinnyArgs& c) {
  if (threadIdx.x != 0 || c.counters == nullptr) return;
  unsigned* exits = c.counters + 32 * kSkinnyMaxOps;
  __threadfence();
  if (atomicAdd(exits, 1u) != gridDim.x - 1) return;
  for (int i = 0; i <= kSkinnyMaxOps; ++i) c.counters[32 * i] = 0;
}

// Shared memory besides the rings.
struct SkinnyShared {
  SkinnyBarriers barriers;
  uint4 zeros;
  float sums[kSkinnyWarps];
  bool last;
};

// What a multiplying warp carries through all tiles of all ops.
template <int kTokenTiles>
struct Multiplier {
  int warp, lane;
  LaneAddresses<kTokenTiles> lanes;
  uint32_t ring, x, zeros;  // shared addresses
  RingWalk at, x_at;
  int turn = 0;  // tiles so far: picks the finishing warp and the half of `partials`
  Best best[kTokenTiles][2];

  __device__ __forceinline__ Multiplier(const SkinnyArgs& c, const char* ring_base, const char* x_shared,
                                        const SkinnyShared& shared)
      : warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) % 32),
        lanes(warp, lane),
        ring(SharedAddress(ring_base)),
        x(SharedAddress(x_shared)),
        zeros(SharedAddress(&shared.zeros)),
        at{c.stages},
        x_at{kSkinnyXSlots} {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) best[j][0] = best[j][1] = Best{-INFINITY, INT32_MAX};
  }

  // This warp's part of a tile's sums over k.
  __device__ __forceinline__ void Multiply(const SkinnyOp& a, SkinnyBarriers& barriers,
                                           float (&sum)[2][kTokenTiles][4]) {
    const int rows = a.p.m, chunks = a.p.k / kSkinnyChunk;
    const bool streams = a.x_streams;
#pragma unroll 1
    for (int chunk = warp; chunk < a.stages_per_tile * kSkinnyWarps; chunk += kSkinnyWarps) {
      MbarrierWait(&barriers.full[at.index], at.phase);
      const uint32_t stage = ring + at.index * kSkinnyStageBytes;
      if (streams) {
        MbarrierWait(&barriers.x_full[x_at.index], x_at.phase);
        const uint32_t slot = x + x_at.index * SkinnyXSlotBytes(kTokenTiles);
        MultiplyStage<kTokenTiles>(lanes, stage, slot + warp * (kTokenTiles * 1024), zeros, rows, sum);
        if (lane == 0) MbarrierArrive(&barriers.x_empty[x_at.index]);
        x_at.Advance();
      } else if (chunk < chunks) {
        MultiplyStage<kTokenTiles>(lanes, stage, x + chunk * rows * 128, zeros, rows, sum);
      }
      if (lane == 0) MbarrierArrive(&barriers.empty[at.index]);
      at.Advance();
    }
  }

  // `done` counts finished tiles; null if nobody waits for them.
  __device__ __forceinline__ void Tile(const SkinnyOp& a, int tile, const TokenPlaces (&places)[kTokenTiles],
                                       float4* partials, SkinnyBarriers& barriers, bool keep_best, unsigned* done) {
    const TileRows rows = RowsOfTile(a, tile);
    const bool finisher = warp == turn % kSkinnyWarps;
    EpilogueInputs inputs[kTokenTiles];
    if (finisher) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) LoadEpilogueInputs(a, rows, lane, j, places[j], inputs[j]);
    }
    float sum[2][kTokenTiles][4] = {};
    Multiply(a, barriers, sum);
    float4* partial = partials + (turn & 1) * kSkinnyWarps * kTokenTiles * 32;
    ++turn;
    StorePartial<kTokenTiles>(sum, partial, warp, lane);
    // The only barrier per tile: the other half of `partials` was read by a warp that has arrived here since.
    ConsumerSync();
    if (!finisher) return;
    float total[kTokenTiles][4];
    SumPartials<kTokenTiles>(partial, lane, total);
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      FinishTokenTile(a, rows, lane, j, total[j], places[j], inputs[j], keep_best, best[j]);
    }
    if (done == nullptr) return;
    __threadfence();
    __syncwarp();
    if (lane == 0) AddRelease(done);
  }
};

// The eight warps that multiply.
template <int kTokenTiles>
__device__ __forceinline__ void MultiplyOps(const SkinnyArgs& c, char* ring, char* x_shared, float4* partials,
                                            SkinnyShared& shared) {
  Multiplier<kTokenTiles> multiplier(c, ring, x_shared, shared);
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& a = c.ops[op];
    const bool is_last = op + 1 == c.count;
    int tile = FirstTile(a);
    if (tile >= a.tiles) continue;
    TokenPlaces places[kTokenTiles];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) LoadTokenPlaces(a, multiplier.lane, j, places[j]);
    if (op > 0) {
      if (threadIdx.x == 0) WaitForOp(c, op - 1);
      ConsumerSync();
    }
    if (!a.x_streams) {
      LoadX(a, x_shared, reinterpret_cast<const uint4*>(x_shared + c.x_bytes + a.norm_offset), shared.sums);
    }
#pragma unroll 1
    for (; tile < a.tiles; tile += static_cast<int>(gridDim.x)) {
      multiplier.Tile(a, tile, places, partials, shared.barriers, is_last && c.partials != nullptr,
                      is_last ? nullptr : c.counters + 32 * op);
    }
  }
  if (c.partials != nullptr) {
    FinishArgmax<kTokenTiles>(c, c.ops[c.count - 1].p.m, multiplier.best, reinterpret_cast<SkinnyBest*>(partials),
                              &shared.last);
  }
  LeaveOps(c);
}

template <int kTokenTiles>
__global__ __launch_bounds__(kSkinnyBlock,
                             kTokenTiles == 1 ? 2 : 1) void SkinnyKernel(const __grid_constant__ SkinnyArgs c) {
  extern __shared__ char dynamic[];
  __shared__ SkinnyShared shared;
  char* ring = dynamic + ((1024 - (SharedAddress(dynamic) & 1023)) & 1023);
  char* x_shared = ring + c.stages * kSkinnyStageBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < c.stages; ++i) {
      MbarrierInit(&shared.barriers.full[i], 1);
      MbarrierInit(&shared.barriers.empty[i], kSkinnyWarps);
    }
    for (int i = 0; i < kSkinnyXSlots; ++i) {
      MbarrierInit(&shared.barriers.x_full[i], 1);
      MbarrierInit(&shared.barriers.x_empty[i], kSkinnyWarps);
    }
    MbarrierInitFence();
    shared.zeros = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  if (warp == kSkinnyWarps) {
    if (threadIdx.x % 32 == 0) SendForWeights(c, ring, shared.barriers);
    return;
  }
  if (warp > kSkinnyWarps) {
    if (threadIdx.x % 32 == 0) SendForX<kTokenTiles>(c, x_shared, shared.barriers);
    return;
  }
  // Norm weights are constants too.
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& a = c.ops[op];
    if (a.p.norm_weight == nullptr) continue;
    for (int i = static_cast<int>(threadIdx.x); i < a.p.k / 8; i += kSkinnyThreads) {
      CpAsync16(SharedAddress(x_shared + c.x_bytes + a.norm_offset + 16 * i), a.p.norm_weight + 8 * i);
    }
  }
  CpAsyncCommit();
  PdlWait();
  CpAsyncWait<0>();  // seen by the other threads after the barriers of LoadX
  int norm_bytes = 0;
  for (int op = 0; op < c.count; ++op) norm_bytes += c.ops[op].p.norm_weight != nullptr ? 2 * c.ops[op].p.k : 0;
  float4* partials = reinterpret_cast<float4*>(x_shared + c.x_bytes + norm_bytes);
  MultiplyOps<kTokenTiles>(c, ring, x_shared, partials, shared);
}

}  // namespace agentserve::kernels::cuda
