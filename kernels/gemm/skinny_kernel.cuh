// y = epilogue(x W^T) for up to 16 rows of x, for one linear layer or a sequence of them that feed each other. Bound by
// reading the weights once: everything here serves to keep that stream going.
//
// A tile is 16 weight rows (two groups of 8, see skinny_epilogue.cuh) by all of k. Block b takes tiles b, b + grid, ...
// of every op in turn. One warp sends for the weights, stage by stage (16 rows x 1024 k, by TMA), through all tiles and
// all ops: it depends on nothing but room in the ring. Eight warps multiply: warp w takes 128 of a stage's 1024 k. Two
// warps finish: they add the eight partial sums of every other tile in fixed order and run the epilogue, while the
// eight are at the next tile. Before an op the block waits until all tiles of the op before are finished (they are
// counted in global memory), then brings x to shared memory, normalised if asked for; x that is too large streams like
// the weights.
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
  uint64_t sums_full[kSkinnyFinishers], sums_empty[kSkinnyFinishers];  // of a finisher's partial sums
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

// The block's share of the weights that come next, into L2. One thread.
__device__ __forceinline__ void PrefetchNext(const SkinnyArgs& c) {
  constexpr size_t kPiece = 16384;
  for (size_t at = blockIdx.x * kPiece; at < c.next_bytes; at += gridDim.x * kPiece) {
    const auto bytes = static_cast<uint32_t>(c.next_bytes - at < kPiece ? (c.next_bytes - at) / 16 * 16 : kPiece);
    if (bytes == 0) return;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(c.next_weights + at), "r"(bytes) : "memory");
  }
}

__device__ __forceinline__ void TmaPrefetch3d(const CUtensorMap* map, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(c0), "r"(c1),
               "r"(c2)
               : "memory");
}

// A walk over the block's stages of weights: all ops, all tiles, all of k.
struct StageWalk {
  int op = 0, tile = 0, stage = -1;
  TileRows rows = {0, 0};

  __device__ __forceinline__ explicit StageWalk(const SkinnyArgs& c) {
    tile = FirstTile(c.ops[0]);
    FindTile(c);
  }
  __device__ __forceinline__ bool Valid(const SkinnyArgs& c) const { return op < c.count; }
  __device__ __forceinline__ void Advance(const SkinnyArgs& c) {
    if (++stage < c.ops[op].stages_per_tile) return;
    tile += static_cast<int>(gridDim.x);
    FindTile(c);
  }

 private:
  __device__ __forceinline__ void FindTile(const SkinnyArgs& c) {
    stage = 0;
    while (tile >= c.ops[op].tiles) {
      if (++op == c.count) return;
      tile = FirstTile(c.ops[op]);
    }
    rows = RowsOfTile(c.ops[op], tile);
  }
};

// The weight stream: one thread. `ahead` runs c.prefetch_stages before the ring's own loads and sends for its stages
// into L2, so that the memory has work while the ring is full and the block waits. The trigger comes when only
// c.trigger_lead stages are left to be sent for: the next kernel's stream then follows this one without a gap, and does
// not push it aside before.
__device__ __forceinline__ void SendForWeights(const SkinnyArgs& c, char* ring, SkinnyBarriers& barriers) {
  StageWalk now(c), ahead(c);
  RingWalk at{c.stages};
  int left = 0, sent = 0;
  for (int op = 0; op < c.count; ++op) {
    const int tiles = c.ops[op].tiles - FirstTile(c.ops[op]) + static_cast<int>(gridDim.x) - 1;
    left += max(tiles, 0) / static_cast<int>(gridDim.x) * c.ops[op].stages_per_tile;
  }
  bool waited = false, triggered = false, prefetched = c.prefetch_stages == 0;
  int distance = 0;  // of `ahead` before `now`
#pragma unroll 1
  for (; now.Valid(c); now.Advance(c), ++sent, --distance) {
    if (sent >= c.stages) {
      if (!waited) PdlWait();
      waited = true;
      if (!triggered && left - sent <= c.trigger_lead) PdlTrigger(), triggered = true;
      MbarrierWait(&barriers.empty[at.index], at.phase ^ 1);
    }
    MbarrierArriveExpect(&barriers.full[at.index], kSkinnyStageBytes);
    char* to = ring + at.index * kSkinnyStageBytes;
    const CUtensorMap* map = &c.w_maps[now.op];
    TmaLoad3d(to, map, &barriers.full[at.index], 0, now.rows.first, kSkinnyStageChunks * now.stage);
    TmaLoad3d(to + kSkinnyStageBytes / 2, map, &barriers.full[at.index], 0, now.rows.second,
              kSkinnyStageChunks * now.stage);
    at.Advance();
    if (sent + 1 < c.stages) continue;
    while (!prefetched && distance <= c.prefetch_stages) {
      if (distance > 0) {
        if (!ahead.Valid(c)) break;
        TmaPrefetch3d(&c.w_maps[ahead.op], 0, ahead.rows.first, kSkinnyStageChunks * ahead.stage);
        TmaPrefetch3d(&c.w_maps[ahead.op], 0, ahead.rows.second, kSkinnyStageChunks * ahead.stage);
      }
      if (ahead.Valid(c)) ahead.Advance(c);
      ++distance;
    }
    if (!prefetched && !ahead.Valid(c)) PrefetchNext(c), prefetched = true;
  }
  if (!prefetched || c.prefetch_stages == 0) PrefetchNext(c);
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
                  kSkinnyStageChunks * i);
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
  SkinnyBest best[kSkinnyFinishers * kSkinnyMaxRows];
  bool last;
};

// One of the eight warps that multiply.
template <int kTokenTiles>
struct Multiplier {
  int warp, lane;
  LaneAddresses<kTokenTiles> lanes;
  uint32_t ring, x, zeros;  // shared addresses
  RingWalk at, x_at, sums_at{kSkinnyFinishers};

  __device__ __forceinline__ Multiplier(const SkinnyArgs& c, const char* ring_base, const char* x_shared,
                                        const SkinnyShared& shared)
      : warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) % 32),
        lanes(warp, lane),
        ring(SharedAddress(ring_base)),
        x(SharedAddress(x_shared)),
        zeros(SharedAddress(&shared.zeros)),
        at{c.stages},
        x_at{kSkinnyXSlots} {}

  // This warp's part of a tile's sums over k.
  __device__ __forceinline__ void Multiply(const SkinnyOp& a, SkinnyBarriers& barriers,
                                           float (&sum)[2 * kSkinnyWarpChunks][kTokenTiles][4]) {
    const int rows = a.p.m, chunks = a.p.k / kSkinnyChunk, end = a.stages_per_tile * kSkinnyStageChunks;
    const bool streams = a.x_streams;
#pragma unroll 1
    for (int chunk = warp * kSkinnyWarpChunks; chunk < end; chunk += kSkinnyStageChunks) {
      MbarrierWait(&barriers.full[at.index], at.phase);
      const uint32_t stage = ring + at.index * kSkinnyStageBytes;
      uint32_t from = x + chunk * rows * 128, step = rows * 128;
      if (streams) {
        MbarrierWait(&barriers.x_full[x_at.index], x_at.phase);
        step = kTokenTiles * 1024;
        from = x + x_at.index * SkinnyXSlotBytes(kTokenTiles) + warp * kSkinnyWarpChunks * step;
      }
      if (streams || chunk + 1 < chunks) {
        MultiplyChunks<kTokenTiles, 2>(lanes, stage, from, step, zeros, rows, sum);
      } else if (chunk < chunks) {
        MultiplyChunks<kTokenTiles, 1>(lanes, stage, from, step, zeros, rows, sum);
      }
      if (lane == 0) {
        MbarrierArrive(&barriers.empty[at.index]);
        if (streams) MbarrierArrive(&barriers.x_empty[x_at.index]);
      }
      at.Advance();
      if (streams) x_at.Advance();
    }
  }

  __device__ __forceinline__ void Tile(const SkinnyOp& a, float4* partials, SkinnyBarriers& barriers) {
    float sum[2 * kSkinnyWarpChunks][kTokenTiles][4] = {};
    Multiply(a, barriers, sum);
    MbarrierWait(&barriers.sums_empty[sums_at.index], sums_at.phase ^ 1);
    StorePartial<kTokenTiles>(sum, partials + sums_at.index * kSkinnyWarps * kTokenTiles * 32, warp, lane);
    __syncwarp();
    if (lane == 0) MbarrierArrive(&barriers.sums_full[sums_at.index]);
    sums_at.Advance();
  }
};

template <int kTokenTiles>
__device__ __forceinline__ void MultiplyOps(const SkinnyArgs& c, char* ring, char* x_shared, float4* partials,
                                            SkinnyShared& shared) {
  Multiplier<kTokenTiles> multiplier(c, ring, x_shared, shared);
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& a = c.ops[op];
    int tile = FirstTile(a);
    if (tile >= a.tiles) continue;
    if (op > 0) {
      if (threadIdx.x == 0) WaitForOp(c, op - 1);
      ConsumerSync();  // also: nobody reads the x of the op before any more
    }
    if (!a.x_streams) {
      LoadX(a, x_shared, reinterpret_cast<const uint4*>(x_shared + c.x_bytes + a.norm_offset), shared.sums);
    }
#pragma unroll 1
    for (; tile < a.tiles; tile += static_cast<int>(gridDim.x)) multiplier.Tile(a, partials, shared.barriers);
  }
}

// One of the warps that finish: every kSkinnyFinishers-th tile of the block.
template <int kTokenTiles>
__device__ __forceinline__ void FinishOps(const SkinnyArgs& c, const float4* partials, SkinnyShared& shared,
                                          int finisher) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float4* partial = partials + finisher * kSkinnyWarps * kTokenTiles * 32;
  Best best[kTokenTiles][2];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) best[j][0] = best[j][1] = Best{-INFINITY, INT32_MAX};
  int turn = 0;
  uint32_t phase = 0;
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& a = c.ops[op];
    const bool is_last = op + 1 == c.count;
    int tile = FirstTile(a);
    if (tile >= a.tiles) continue;
    TokenPlaces places[kTokenTiles];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) LoadTokenPlaces(a, lane, j, places[j]);
    if (op > 0 && lane == 0) WaitForOp(c, op - 1);
    __syncwarp();
#pragma unroll 1
    for (; tile < a.tiles; tile += static_cast<int>(gridDim.x), ++turn) {
      if (turn % kSkinnyFinishers != finisher) continue;
      const TileRows rows = RowsOfTile(a, tile);
      EpilogueInputs inputs[kTokenTiles];
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) LoadEpilogueInputs(a, rows, lane, j, places[j], inputs[j]);
      MbarrierWait(&shared.barriers.sums_full[finisher], phase);
      phase ^= 1;
      float total[kTokenTiles][4];
      SumPartials<kTokenTiles>(partial, lane, total);
      __syncwarp();
      if (lane == 0) MbarrierArrive(&shared.barriers.sums_empty[finisher]);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        FinishTokenTile(a, rows, lane, j, total[j], places[j], inputs[j], is_last && c.partials != nullptr, best[j]);
      }
      if (is_last) continue;
      __syncwarp();  // the release below covers the whole warp's stores
      if (lane == 0) AddRelease(c.counters + 32 * op);
    }
  }
  if (c.partials != nullptr) StoreBest<kTokenTiles>(best, shared.best, finisher, lane);
}

__device__ __forceinline__ void InitBarriers(const SkinnyArgs& c, SkinnyShared& shared) {
  for (int i = 0; i < c.stages; ++i) {
    MbarrierInit(&shared.barriers.full[i], 1);
    MbarrierInit(&shared.barriers.empty[i], kSkinnyWarps);
  }
  for (int i = 0; i < kSkinnyXSlots; ++i) {
    MbarrierInit(&shared.barriers.x_full[i], 1);
    MbarrierInit(&shared.barriers.x_empty[i], kSkinnyWarps);
  }
  for (int i = 0; i < kSkinnyFinishers; ++i) {
    MbarrierInit(&shared.barriers.sums_full[i], kSkinnyWarps);
    MbarrierInit(&shared.barriers.sums_empty[i], 1);
  }
  MbarrierInitFence();
  shared.zeros = make_uint4(0, 0, 0, 0);
}

template <int kTokenTiles>
__global__ __launch_bounds__(kSkinnyBlock,
                             kTokenTiles == 1 ? 2 : 1) void SkinnyKernel(const __grid_constant__ SkinnyArgs c) {
  extern __shared__ char dynamic[];
  __shared__ SkinnyShared shared;
  char* ring = dynamic + ((1024 - (SharedAddress(dynamic) & 1023)) & 1023);
  char* x_shared = ring + c.stages * kSkinnyStageBytes;
  float4* partials = reinterpret_cast<float4*>(x_shared + c.x_bytes + c.norm_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, finisher = warp - kSkinnyWarps;
  if (threadIdx.x == 0) InitBarriers(c, shared);
  __syncthreads();
  if (finisher >= kSkinnyFinishers) {
    if (threadIdx.x % 32 != 0) return;
    if (finisher == kSkinnyFinishers) {
      SendForWeights(c, ring, shared.barriers);
    } else {
      SendForX<kTokenTiles>(c, x_shared, shared.barriers);
    }
    return;
  }
  if (finisher >= 0) {
    PdlWait();
    FinishOps<kTokenTiles>(c, partials, shared, finisher);
  } else {
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
    MultiplyOps<kTokenTiles>(c, ring, x_shared, partials, shared);
  }
  ComputeSync();
  if (c.partials != nullptr) FinishArgmax<kTokenTiles>(c, c.ops[c.count - 1].p.m, shared.best, &shared.last);
  LeaveOps(c);
}

}  // namespace agentserve::kernels::cuda
