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
#include "kernels/gemm/skinny_epilogue.cuh"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/mma.cuh"
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

// Of the warps that multiply.
__device__ __forceinline__ void ConsumerSync() { NamedBarrierSync(1, kSkinnyThreads); }

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

// Where 16 bytes of resident x lie: [chunk of 64 k][row][128 bytes], swizzled like a TMA box.
__device__ __forceinline__ uint32_t XOffset(int m, int chunk, int row, int piece) {
  return static_cast<uint32_t>(chunk * m * 128) + Swizzle128(static_cast<uint32_t>(row), static_cast<uint32_t>(piece));
}

// Brings x to shared memory, normalised if asked for: bf16(weight * bf16(x * rsqrt(mean(x^2) + eps))). A row belongs to
// 8 / m warps (at least one). `norm` are the norm weights in shared memory. Ends with a barrier.
__device__ __forceinline__ void LoadX(const SkinnyOp& a, char* x_shared, const uint4* norm, float* sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32, m = a.p.m;
  const int vectors = a.p.k / 8;
  int group_warps = kSkinnyWarps;
  while (group_warps > 1 && kSkinnyWarps / group_warps < m) group_warps /= 2;
  const int groups = kSkinnyWarps / group_warps;
  const int step = group_warps * 32;
  const int first = static_cast<int>(threadIdx.x) % step;
#pragma unroll 1
  for (int base = 0; base < m; base += groups) {
    const int row = base + warp / group_warps;
    const auto at = [&](int i) { return reinterpret_cast<uint4*>(x_shared + XOffset(m, i / 8, row, i % 8)); };
    float sum = 0;
    if (row < m) {
      const uint4* from = reinterpret_cast<const uint4*>(a.p.x + static_cast<size_t>(row) * a.p.k);
#pragma unroll 1
      for (int i = first; i < vectors; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[j] = i + j * step < vectors ? __ldcg(from + i + j * step) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (i + j * step >= vectors) continue;
          float f[8];
          Unpack8(v[j], f);
#pragma unroll
          for (int e = 0; e < 8; ++e) sum = fmaf(f[e], f[e], sum);
          *at(i + j * step) = v[j];
        }
      }
    }
    if (a.p.norm_weight == nullptr) continue;
    sum = LaneSum(sum);
    ConsumerSync();  // sums are free
    if (threadIdx.x % 32 == 0) sums[warp] = sum;
    ConsumerSync();
    if (row >= m) continue;
    float total = 0;
    for (int w = 0; w < group_warps; ++w) total += sums[warp / group_warps * group_warps + w];
    const float scale = rsqrtf(total / static_cast<float>(a.p.k) + a.p.norm_eps);
#pragma unroll 2
    for (int i = first; i < vectors; i += step) {
      float f[8], w[8];
      Unpack8(*at(i), f);
      Unpack8(norm[i], w);
#pragma unroll
      for (int e = 0; e < 8; ++e) f[e] = w[e] * RoundBf16(f[e] * scale);
      *at(i) = Pack8(f);
    }
  }
  ConsumerSync();
}

// What a lane gives to ldmatrix. W: rows of group i % 2, 16-byte piece 2 s + i / 2 of the warp's chunk in product s of
// 4. x: token row l % 8, piece 4 h + i in half h, where i = lane / 8.
template <int kTokenTiles>
struct LaneAddresses {
  uint32_t w, w_row, w_piece;
  uint32_t x_row, x_piece;

  __device__ __forceinline__ LaneAddresses(int warp, int lane) {
    const auto i = static_cast<uint32_t>(lane) / 8, r = static_cast<uint32_t>(lane) % 8;
    w = (i % 2) * (kSkinnyStageBytes / 2) + static_cast<uint32_t>(warp) * 1024 + r * 128;
    w_row = r;
    w_piece = i / 2;
    x_row = r;
    x_piece = i;
  }
  __device__ __forceinline__ uint32_t W(uint32_t stage, int s) const {
    return stage + w + (((2 * s + w_piece) ^ w_row) << 4);
  }
  // `chunk` is the address of the chunk's x; rows that are not there read zeros.
  __device__ __forceinline__ uint32_t X(uint32_t chunk, uint32_t zeros, int rows, int token_tile, int half) const {
    const uint32_t row = 8 * token_tile + x_row;
    return static_cast<int>(row) < rows ? chunk + row * 128 + (((4 * half + x_piece) ^ x_row) << 4) : zeros;
  }
};

// The warp's chunk of one stage into the accumulators; two sets of them, so that fewer products wait for each other.
template <int kTokenTiles>
__device__ __forceinline__ void MultiplyStage(const LaneAddresses<kTokenTiles>& lanes, uint32_t stage, uint32_t x_chunk,
                                              uint32_t zeros, int rows, float (&c)[2][kTokenTiles][4]) {
  uint32_t w[4][4], x[2][kTokenTiles][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) LdMatrixX4(x[half][j], lanes.X(x_chunk, zeros, rows, j, half));
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) LdMatrixX4(w[s], lanes.W(stage, s));
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      MmaBf16(c[s % 2][j], w[s], x[s / 2][j][2 * (s % 2)], x[s / 2][j][2 * (s % 2) + 1]);
    }
  }
}

template <int kTokenTiles>
__device__ __forceinline__ void StorePartial(const float (&c)[2][kTokenTiles][4], float4* partial, int warp, int lane) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    partial[(warp * kTokenTiles + j) * 32 + lane] =
        make_float4(c[0][j][0] + c[1][j][0], c[0][j][1] + c[1][j][1], c[0][j][2] + c[1][j][2], c[0][j][3] + c[1][j][3]);
  }
}

// Adds the warps' partial sums of a tile in the order of the warps.
template <int kTokenTiles>
__device__ __forceinline__ void SumPartials(const float4* partial, int lane, float (&c)[kTokenTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    float4 v[kSkinnyWarps];
#pragma unroll
    for (int w = 0; w < kSkinnyWarps; ++w) v[w] = partial[(w * kTokenTiles + j) * 32 + lane];
#pragma unroll
    for (int w = 1; w < kSkinnyWarps; ++w) {
      v[0] = make_float4(v[0].x + v[w].x, v[0].y + v[w].y, v[0].z + v[w].z, v[0].w + v[w].w);
    }
    c[j][0] = v[0].x, c[j][1] = v[0].y, c[j][2] = v[0].z, c[j][3] = v[0].w;
  }
}

// The block's best logit per token to global memory; the last block of the grid reduces all blocks' (a total order, so
// the order of arrival does not matter) and leaves the counter at zero.
template <int kTokenTiles>
__device__ void FinishArgmax(const SkinnyArgs& a, int m, Best (&best)[kTokenTiles][2], SkinnyBest* shared, bool* last) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  ConsumerSync();
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
      if (lane < 4) shared[warp * 8 * kTokenTiles + 8 * j + 2 * lane + i] = {b.value, b.index};
    }
  }
  ConsumerSync();
  const int token = static_cast<int>(threadIdx.x);
  if (token < m) {
    Best b{shared[token].value, shared[token].index};
    for (int w = 1; w < kSkinnyWarps; ++w) {
      const SkinnyBest other = shared[w * 8 * kTokenTiles + token];
      b = BestOp()(b, Best{other.value, other.index});
    }
    a.partials[blockIdx.x * m + token] = {b.value, b.index};
    __threadfence();
  }
  ConsumerSync();
  if (threadIdx.x == 0) *last = atomicAdd(a.arrivals, 1u) == gridDim.x - 1;
  ConsumerSync();
  if (!*last) return;
  __threadfence();
  for (int row = warp; row < m; row += kSkinnyWarps) {
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

// The eight warps that multiply.
template <int kTokenTiles>
__device__ __forceinline__ void MultiplyOps(const SkinnyArgs& c, char* ring, char* x_shared, float4* partials,
                                            SkinnyShared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const LaneAddresses<kTokenTiles> lanes(warp, lane);
  const uint32_t ring_address = SharedAddress(ring), x_address = SharedAddress(x_shared);
  const uint32_t zeros = SharedAddress(&shared.zeros);
  const char* norms = x_shared + c.x_bytes;
  Best best[kTokenTiles][2];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) best[j][0] = best[j][1] = Best{-INFINITY, INT32_MAX};
  RingWalk at{c.stages}, x_at{kSkinnyXSlots};
  int turn = 0;
#pragma unroll 1
  for (int op = 0; op < c.count; ++op) {
    const SkinnyOp& a = c.ops[op];
    int tile = FirstTile(a);
    if (tile >= a.tiles) continue;
    TokenPlaces places[kTokenTiles];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) LoadTokenPlaces(a, lane, j, places[j]);
    if (op > 0) {
      if (threadIdx.x == 0) WaitForOp(c, op - 1);
      ConsumerSync();
    }
    const int rows = a.p.m, chunks = a.p.k / kSkinnyChunk;
    const bool streams = a.x_streams;
    if (!streams) LoadX(a, x_shared, reinterpret_cast<const uint4*>(norms + a.norm_offset), shared.sums);
#pragma unroll 1
    for (; tile < a.tiles; tile += static_cast<int>(gridDim.x), ++turn) {
      const TileRows tile_rows = RowsOfTile(a, tile);
      const bool finisher = warp == turn % kSkinnyWarps;
      EpilogueInputs inputs[kTokenTiles];
      if (finisher) {
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) LoadEpilogueInputs(a, tile_rows, lane, j, places[j], inputs[j]);
      }
      float sum[2][kTokenTiles][4] = {};
#pragma unroll 1
      for (int chunk = warp; chunk < a.stages_per_tile * kSkinnyWarps; chunk += kSkinnyWarps) {
        MbarrierWait(&shared.barriers.full[at.index], at.phase);
        const uint32_t stage = ring_address + at.index * kSkinnyStageBytes;
        if (streams) {
          MbarrierWait(&shared.barriers.x_full[x_at.index], x_at.phase);
          const uint32_t x_chunk = x_address + x_at.index * SkinnyXSlotBytes(kTokenTiles) + warp * (kTokenTiles * 1024);
          MultiplyStage<kTokenTiles>(lanes, stage, x_chunk, zeros, rows, sum);
          if (lane == 0) MbarrierArrive(&shared.barriers.x_empty[x_at.index]);
          x_at.Advance();
        } else if (chunk < chunks) {
          MultiplyStage<kTokenTiles>(lanes, stage, x_address + chunk * rows * 128, zeros, rows, sum);
        }
        if (lane == 0) MbarrierArrive(&shared.barriers.empty[at.index]);
        at.Advance();
      }
      float4* partial = partials + (turn & 1) * kSkinnyWarps * kTokenTiles * 32;
      StorePartial<kTokenTiles>(sum, partial, warp, lane);
      // The only barrier per tile: the other half of `partials` was read by a warp that has arrived here since.
      ConsumerSync();
      if (!finisher) continue;
      float total[kTokenTiles][4];
      SumPartials<kTokenTiles>(partial, lane, total);
      const bool keep_best = c.partials != nullptr && op + 1 == c.count;
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        FinishTokenTile(a, tile_rows, lane, j, total[j], places[j], inputs[j], keep_best, best[j]);
      }
      if (op + 1 == c.count) continue;
      __threadfence();
      __syncwarp();
      if (lane == 0) AddRelease(c.counters + 32 * op);
    }
  }
  if (c.partials != nullptr) {
    FinishArgmax<kTokenTiles>(c, c.ops[c.count - 1].p.m, best, reinterpret_cast<SkinnyBest*>(partials), &shared.last);
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
