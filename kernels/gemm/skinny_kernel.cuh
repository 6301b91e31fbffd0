// y = epilogue(x W^T) for up to 16 rows of x: the weights pass through the tensor cores on their way from memory.
//
// A tile is 16 weight rows (two groups of 8, see skinny_epilogue.cuh) by all of k. Eight warps share it: warp w takes
// the chunks of 64 k numbered w, w + 8, ...; their partial sums meet in shared memory once per tile and one warp, in
// turn, adds them in fixed order and runs the epilogue. Blocks take tiles b, b + grid, ...
//
// Each warp feeds itself: a ring of stages filled by 16-byte asynchronous copies, in which every lane reads back only
// what it copied itself. So the main loop has no barrier and the ring stays full across tiles. That works because a dot
// product does not care about the order of k: a lane holds 8 neighbouring k of its row, used as the fragments of two
// m16n8k16 products whose k are permuted, the same way for x and W.
//
// With PDL the ring is filled, and more of the weights sent for into L2, before the kernel's inputs exist.
#pragma once

#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/skinny_epilogue.cuh"
#include "kernels/tile/mma.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kSkinnyThreads = kSkinnyWarps * 32;

// Stage of one warp: uint4 [4][32] of weights (group of rows, half of the chunk), then [2 * token tiles][32] of x if x
// is streamed.
__host__ __device__ constexpr int SkinnyStageBytes(int token_tiles, bool resident) {
  return 16 * 32 * (4 + (resident ? 0 : 2 * token_tiles));
}
__host__ __device__ constexpr int SkinnyPartialBytes(int token_tiles) {
  return 2 * kSkinnyWarps * token_tiles * 32 * 16;
}

__device__ __forceinline__ void CpAsyncWaitDynamic(int pending) {
  switch (pending) {
    case 0:
      CpAsyncWait<0>();
      break;
    case 1:
      CpAsyncWait<1>();
      break;
    case 2:
      CpAsyncWait<2>();
      break;
    case 3:
      CpAsyncWait<3>();
      break;
    case 4:
      CpAsyncWait<4>();
      break;
    case 5:
      CpAsyncWait<5>();
      break;
    case 6:
      CpAsyncWait<6>();
      break;
    case 7:
      CpAsyncWait<7>();
      break;
    case 8:
      CpAsyncWait<8>();
      break;
    case 9:
      CpAsyncWait<9>();
      break;
    case 10:
      CpAsyncWait<10>();
      break;
    case 11:
      CpAsyncWait<11>();
      break;
    default:
      CpAsyncWait<12>();
      break;
  }
}

__device__ __forceinline__ void PrefetchL2(const void* p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

// The walk of one warp over its chunks, tile after tile; one cursor issues copies.
struct SkinnyCursor {
  int tile;
  int chunk;
  const __nv_bfloat16* low;  // row g of the first group, at the lane's k of chunk 0
  const __nv_bfloat16* high;

  __device__ __forceinline__ void Start(const SkinnyArgs& a, int first_tile, int warp, int lane) {
    tile = first_tile;
    chunk = warp;
    Point(a, lane);
  }
  __device__ __forceinline__ void Point(const SkinnyArgs& a, int lane) {
    const TileRows rows = RowsOfTile(a, tile);
    const __nv_bfloat16* w = a.p.w + 8 * (lane % 4);
    low = w + static_cast<size_t>(rows.first + lane / 4) * a.p.k;
    high = w + static_cast<size_t>(rows.second + lane / 4) * a.p.k;
  }
  __device__ __forceinline__ bool Valid(const SkinnyArgs& a) const { return tile < a.tiles && chunk < a.chunks; }
  __device__ __forceinline__ void Advance(const SkinnyArgs& a, int warp, int lane) {
    chunk += kSkinnyWarps;
    if (chunk < a.chunks) return;
    chunk = warp;
    tile += static_cast<int>(gridDim.x);
    if (tile < a.tiles) Point(a, lane);
  }
  // `stage` is the lane's first 16 bytes of it.
  __device__ __forceinline__ void CopyWeights(uint32_t stage) const {
    const int k = chunk * kSkinnyChunk;
    CpAsync16(stage, low + k);
    CpAsync16(stage + 512, high + k);
    CpAsync16(stage + 1024, low + k + 32);
    CpAsync16(stage + 1536, high + k + 32);
  }
  template <int kTokenTiles>
  __device__ __forceinline__ void CopyX(const SkinnyArgs& a, uint32_t stage, int lane) const {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const int token = 8 * j + lane / 4;
      if (token < a.p.m) {
        const __nv_bfloat16* x = a.p.x + static_cast<size_t>(token) * a.p.k + chunk * kSkinnyChunk + 8 * (lane % 4);
        CpAsync16(stage + 2048 + 1024 * j, x);
        CpAsync16(stage + 2048 + 1024 * j + 512, x + 32);
      }
    }
  }
};

// Sends for the slabs behind the ring, for one row (0..15) of the tiles.
__device__ __forceinline__ void PrefetchWeights(const SkinnyArgs& a, int row) {
  const int per_tile = (a.p.k + kSkinnySlab - 1) / kSkinnySlab;
  const int first = a.tuning.stages * kSkinnyWarps * kSkinnyChunk / kSkinnySlab;
  for (int slab = first; slab < first + a.tuning.prefetch_slabs; ++slab) {
    const int tile = static_cast<int>(blockIdx.x) + slab / per_tile * static_cast<int>(gridDim.x);
    if (tile >= a.tiles) return;
    const TileRows rows = RowsOfTile(a, tile);
    const int from = slab % per_tile * kSkinnySlab;
    const int w_row = row < 8 ? rows.first + row : rows.second + row - 8;
    PrefetchL2(a.p.w + static_cast<size_t>(w_row) * a.p.k + from,
               static_cast<uint32_t>(min(kSkinnySlab, a.p.k - from)) * 2);
  }
}

// Brings x to shared memory, normalised if asked for: bf16(weight * bf16(x * rsqrt(mean(x^2) + eps))). A row belongs to
// 8 / m warps (at least one). `norm` is the norm weight in shared memory, complete after the barrier in here if every
// thread has waited for its own copies of it. Ends with a barrier.
__device__ __forceinline__ void LoadX(const SkinnyArgs& a, char* x_shared, const uint4* norm, float* sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int vectors = a.p.k / 8;
  int group_warps = kSkinnyWarps;
  while (group_warps > 1 && kSkinnyWarps / group_warps < a.p.m) group_warps /= 2;
  const int groups = kSkinnyWarps / group_warps;
  const int step = group_warps * 32;
  const int first = static_cast<int>(threadIdx.x) % step;
  for (int base = 0; base < a.p.m; base += groups) {
    const int row = base + warp / group_warps;
    uint4* to = reinterpret_cast<uint4*>(x_shared + row * a.x_pitch);
    float sum = 0;
    if (row < a.p.m) {
      const uint4* from = reinterpret_cast<const uint4*>(a.p.x + static_cast<size_t>(row) * a.p.k);
      for (int i = first; i < vectors; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (i + j * step < vectors) v[j] = __ldcg(from + i + j * step);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (i + j * step >= vectors) continue;
          float f[8];
          Unpack8(v[j], f);
#pragma unroll
          for (int e = 0; e < 8; ++e) sum = fmaf(f[e], f[e], sum);
          to[i + j * step] = v[j];
        }
      }
    }
    if (a.p.norm_weight == nullptr) continue;
    sum = LaneSum(sum);
    __syncthreads();  // sums are free, norm weights are complete
    if (threadIdx.x % 32 == 0) sums[warp] = sum;
    __syncthreads();
    if (row >= a.p.m) continue;
    float total = 0;
    for (int w = 0; w < group_warps; ++w) total += sums[warp / group_warps * group_warps + w];
    const float scale = rsqrtf(total / static_cast<float>(a.p.k) + a.p.norm_eps);
#pragma unroll 4
    for (int i = first; i < vectors; i += step) {
      float f[8], w[8];
      Unpack8(to[i], f);
      Unpack8(norm[i], w);
#pragma unroll
      for (int e = 0; e < 8; ++e) f[e] = w[e] * RoundBf16(f[e] * scale);
      to[i] = Pack8(f);
    }
  }
  __syncthreads();
}

// One stage into the accumulators; two sets of them, so that fewer products wait for each other.
template <int kTokenTiles>
__device__ __forceinline__ void MultiplyStage(const uint4* w, const uint4 (&x)[2][kTokenTiles],
                                              float (&c)[2][kTokenTiles][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 low = w[64 * half], high = w[64 * half + 32];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const uint32_t first[4] = {low.x, high.x, low.y, high.y};
      MmaBf16(c[half][j], first, x[half][j].x, x[half][j].y);
    }
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const uint32_t second[4] = {low.z, high.z, low.w, high.w};
      MmaBf16(c[half][j], second, x[half][j].z, x[half][j].w);
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
__device__ void FinishArgmax(const SkinnyArgs& a, Best (&best)[kTokenTiles][2], SkinnyBest* shared, bool* last) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();
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
  __syncthreads();
  const int token = static_cast<int>(threadIdx.x);
  if (token < a.p.m) {
    Best b{shared[token].value, shared[token].index};
    for (int w = 1; w < kSkinnyWarps; ++w) {
      const SkinnyBest other = shared[w * 8 * kTokenTiles + token];
      b = BestOp()(b, Best{other.value, other.index});
    }
    a.partials[blockIdx.x * a.p.m + token] = {b.value, b.index};
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) *last = atomicAdd(a.arrivals, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  for (int row = warp; row < a.p.m; row += kSkinnyWarps) {
    Best b{-INFINITY, INT32_MAX};
    for (int block = lane; block < static_cast<int>(gridDim.x); block += 32) {
      const int2 raw = __ldcg(reinterpret_cast<const int2*>(a.partials) + block * a.p.m + row);
      b = BestOp()(b, Best{__int_as_float(raw.x), raw.y});
    }
    b = LaneBest(b);
    if (lane != 0) continue;
    if (a.argmax != nullptr) a.argmax[row] = b.index == INT32_MAX ? 0 : b.index;  // all NaN: a token that exists
    if (a.best != nullptr) a.best[row] = __float2bfloat16_rn(b.value);
  }
  if (threadIdx.x == 0) *a.arrivals = 0;
}

template <int kTokenTiles, bool kResident>
__global__ __launch_bounds__(kSkinnyThreads, 2) void SkinnyKernel(const __grid_constant__ SkinnyArgs a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ float sums[kSkinnyWarps];
  __shared__ bool last;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  constexpr int kStage = SkinnyStageBytes(kTokenTiles, kResident);
  const int stages = a.tuning.stages;
  float4* partials = reinterpret_cast<float4*>(shared);
  char* ring = shared + SkinnyPartialBytes(kTokenTiles) + warp * stages * kStage + lane * 16;
  const uint32_t ring_address = SharedAddress(ring);
  char* x_shared = shared + SkinnyPartialBytes(kTokenTiles) + kSkinnyWarps * stages * kStage;
  uint4* norm = reinterpret_cast<uint4*>(x_shared + a.p.m * a.x_pitch);

  // Constants only: norm weights, the ring's first lap, more for L2.
  if (kResident && a.p.norm_weight != nullptr) {
    for (int i = threadIdx.x; i < a.p.k / 8; i += kSkinnyThreads) {
      CpAsync16(SharedAddress(norm + i), a.p.norm_weight + 8 * i);
    }
  }
  CpAsyncCommit();
  SkinnyCursor next;
  next.Start(a, static_cast<int>(blockIdx.x), warp, lane);
  for (int s = 0; s < stages; ++s) {
    if (next.Valid(a)) {
      next.CopyWeights(ring_address + s * kStage);
      next.Advance(a, warp, lane);
    }
    CpAsyncCommit();
  }
  if (lane < 2) PrefetchWeights(a, 2 * warp + lane);
  PdlWait();

  TokenPlaces places[kTokenTiles];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) LoadTokenPlaces(a, lane, j, places[j]);
  if constexpr (kResident) {
    CpAsyncWaitDynamic(stages);  // the norm weights, the oldest group
    LoadX(a, x_shared, norm, sums);
  } else {
    SkinnyCursor x_next;
    x_next.Start(a, static_cast<int>(blockIdx.x), warp, lane);
    for (int s = 0; s < stages; ++s) {
      if (x_next.Valid(a)) {
        x_next.CopyX<kTokenTiles>(a, ring_address + s * kStage, lane);
        x_next.Advance(a, warp, lane);
      }
      CpAsyncCommit();
    }
  }

  Best best[kTokenTiles][2];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) best[j][0] = best[j][1] = Best{-INFINITY, INT32_MAX};
  const int my_tiles = (a.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / gridDim.x;
  int until_trigger = max(0, my_tiles * ((a.chunks + kSkinnyWarps - 1) / kSkinnyWarps) - a.tuning.trigger_lead);
  int stage = 0;
  for (int i = 0; i < my_tiles; ++i) {
    const TileRows rows = RowsOfTile(a, static_cast<int>(blockIdx.x) + i * static_cast<int>(gridDim.x));
    const bool finisher = warp == i % kSkinnyWarps;
    EpilogueInputs inputs[kTokenTiles];
    if (finisher) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) LoadEpilogueInputs(a, rows, lane, j, places[j], inputs[j]);
    }
    float c[2][kTokenTiles][4] = {};
    for (int chunk = warp; chunk < a.chunks; chunk += kSkinnyWarps) {
      if (warp == 0 && until_trigger-- == 0) PdlTrigger();
      CpAsyncWaitDynamic(stages - 1);
      const uint4* from = reinterpret_cast<const uint4*>(ring + stage * kStage);
      uint4 x[2][kTokenTiles];
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        const int token = 8 * j + g;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          x[half][j] = make_uint4(0, 0, 0, 0);
          if (token >= a.p.m) continue;
          if constexpr (kResident) {
            x[half][j] = *reinterpret_cast<const uint4*>(x_shared + token * a.x_pitch + chunk * (2 * kSkinnyChunk) +
                                                         64 * half + 16 * t);
          } else {
            x[half][j] = from[128 + 64 * j + 32 * half];
          }
        }
      }
      MultiplyStage<kTokenTiles>(from, x, c);
      if (next.Valid(a)) {
        next.CopyWeights(ring_address + stage * kStage);
        if constexpr (!kResident) next.CopyX<kTokenTiles>(a, ring_address + stage * kStage, lane);
        next.Advance(a, warp, lane);
      }
      CpAsyncCommit();
      if (++stage == stages) stage = 0;
    }
    float4* partial = partials + (i & 1) * kSkinnyWarps * kTokenTiles * 32;
    StorePartial<kTokenTiles>(c, partial, warp, lane);
    // The only barrier per tile: the other half of `partials` was read by a warp that has arrived here since.
    __syncthreads();
    if (finisher) {
      float total[kTokenTiles][4];
      SumPartials<kTokenTiles>(partial, lane, total);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) FinishTokenTile(a, rows, lane, j, total[j], places[j], inputs[j], best[j]);
    }
  }
  if (a.partials != nullptr) FinishArgmax<kTokenTiles>(a, best, reinterpret_cast<SkinnyBest*>(shared), &last);
}

}  // namespace agentserve::kernels::cuda
