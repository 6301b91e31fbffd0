// y = epilogue(x W^T) for up to 64 rows of x by wgmma with the operands swapped: 64 weight rows are the M of a product,
// the tokens its N. A block owns 64 or 128 weight rows and a part of k; the blocks of a cluster share a tile's k and
// add their partial sums through distributed shared memory in the order of their ranks.
//
// A producer warp keeps a ring of TMA loads full (weights and the same k of x in one stage); each group of four warps
// multiplies its 64 rows. The accumulators of a warp are 16 weight rows by tokens in the fragment layout of
// skinny_epilogue.cuh. For kQkv the rows come to shared memory in the order that puts the two halves of a RoPE pair 8
// rows apart.
#pragma once

#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/skinny_epilogue.cuh"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/tma.cuh"
#include "kernels/tile/wgmma.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kWideMaxStages = 12;
inline constexpr int kWideTileBytes = 64 * 128;  // 64 rows of 64 k: of W for one group, and of x

struct WideArgs {
  SkinnyOp a;
  int chunks = 0;
  int splits = 1;
  int stages = 4;
  int box_rows = 64;  // weight rows of one load: 64, or 8 where rows are permuted (kQkv)
};

__host__ __device__ constexpr int WideStageBytes(int groups) { return (groups + 1) * kWideTileBytes; }

// First weight rows of the two groups of 8 that belong to warp `warp` of sub-tile `sub` (64 rows).
__device__ __forceinline__ TileRows WideRows(const SkinnyOp& a, int sub, int warp) {
  if (a.p.epilogue != LinearEpilogue::kQkv) return {sub * 64 + warp * 16, sub * 64 + warp * 16 + 8};
  const int head_dim = static_cast<int>(a.p.qkv.kv.head_dim);
  const int head = sub * 64 / head_dim;
  const int first = head * head_dim + (sub * 64 - head * head_dim) / 2 + warp * 8;
  return {first, first + head_dim / 2};
}

// The producer warp: lane i brings the i-th piece of the weights of a stage, lane 0 also x.
template <int kGroups>
struct WideProducer {
  const CUtensorMap* w_map;
  const CUtensorMap* x_map;
  char* ring;
  uint64_t* full;
  int lane, row;  // the lane's piece: its weight row,
  uint32_t to;    // and its place in a stage
  bool active;

  __device__ __forceinline__ WideProducer(const WideArgs& w, int tile, const CUtensorMap* weights, const CUtensorMap* x,
                                          char* ring_base, uint64_t* full_barriers)
      : w_map(weights), x_map(x), ring(ring_base), full(full_barriers), lane(static_cast<int>(threadIdx.x) % 32) {
    const int pieces = 64 / w.box_rows, group = lane / pieces, piece = lane % pieces;
    active = group < kGroups;
    const int sub = tile * kGroups + group;
    const TileRows rows = WideRows(w.a, sub, piece / 2);
    row = w.box_rows == 64 ? sub * 64 : (piece % 2 == 0 ? rows.first : rows.second);
    to = static_cast<uint32_t>((1 + group) * kWideTileBytes + piece * w.box_rows * 128);
  }
  __device__ __forceinline__ void LoadWeights(int stage, int chunk) const {
    if (lane == 0) MbarrierArriveExpect(&full[stage], WideStageBytes(kGroups));
    __syncwarp();
    if (active) TmaLoad2d(ring + stage * WideStageBytes(kGroups) + to, w_map, &full[stage], chunk * 64, row);
  }
  __device__ __forceinline__ void LoadX(int stage, int chunk) const {
    if (lane == 0) TmaLoad2d(ring + stage * WideStageBytes(kGroups), x_map, &full[stage], chunk * 64, 0);
  }
  // Weights are constants and go before the wait for the kernel before, x after it.
  __device__ __forceinline__ void Run(uint64_t* empty, int stages, int begin, int end) const {
    const int first_lap = min(end, begin + stages);
    for (int chunk = begin; chunk < first_lap; ++chunk) LoadWeights(chunk - begin, chunk);
    PdlWait();
    FenceProxyAsync();
    for (int chunk = begin; chunk < first_lap; ++chunk) LoadX(chunk - begin, chunk);
    PdlTrigger();
    int stage = 0;
    uint32_t phase = 0;
    for (int chunk = first_lap; chunk < end; ++chunk) {
      MbarrierWait(&empty[stage], phase);
      LoadWeights(stage, chunk);
      LoadX(stage, chunk);
      if (++stage == stages) stage = 0, phase ^= 1;
    }
  }
};

// 64 rows times all tokens over `count` chunks of k.
template <int kGroups>
__device__ __forceinline__ void WideMultiply(float (&d)[32], const char* ring, int group, uint64_t* full,
                                             uint64_t* empty, int stages, int count) {
  int stage = 0, last = 0;
  uint32_t phase = 0;
  for (int i = 0; i < count; ++i) {
    MbarrierWait(&full[stage], phase);
    const char* at = ring + stage * WideStageBytes(kGroups);
    const uint64_t x = DescriptorKMajor(at), w = DescriptorKMajor(at + (1 + group) * kWideTileBytes);
    KeepInRegisters(d);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<64>::SS(d, DescriptorAdvance(w, 32 * k), DescriptorAdvance(x, 32 * k), i > 0 || k > 0);
    }
    WgmmaCommit();
    WgmmaWait<1>();  // the products of the stage before are done: it may be filled again
    if (i > 0 && threadIdx.x % 32 == 0) MbarrierArrive(&empty[last]);
    last = stage;
    if (++stage == stages) stage = 0, phase ^= 1;
  }
  WgmmaWait<0>();
  KeepInRegisters(d);
}

// 16 bytes of the shared memory of block `rank` of the cluster, at the offset that `local` has in this block's.
__device__ __forceinline__ float4 LoadFromCluster(const void* local, uint32_t rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(SharedAddress(local)), "r"(rank)
      : "memory");
  return v;
}

// Without splits: all token tiles of the warp. With: token tiles rank, rank + splits, ... summed over the cluster.
// `sums` is float4 [8 token tiles][128] of this group. Every thread of the cluster comes here; `d` is void in the
// producer warp.
__device__ __forceinline__ void WideFinish(const WideArgs& w, TileRows rows, const float (&d)[32], float4* sums,
                                           bool consumer) {
  const int lane = static_cast<int>(threadIdx.x) % 32, at = static_cast<int>(threadIdx.x) % 128;
  const int tiles = (w.a.p.m + 7) / 8;
  Best unused[2];
  if (w.splits == 1) {
    if (!consumer) return;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j >= tiles) break;
      TokenPlaces places;
      EpilogueInputs in;
      LoadTokenPlaces(w.a, lane, j, places);
      LoadEpilogueInputs(w.a, rows, lane, j, places, in);
      const float c[4] = {d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]};
      FinishTokenTile(w.a, rows, lane, j, c, places, in, false, unused);
    }
    return;
  }
  __syncwarp();  // the producer's lanes took different ways
  const int rank = static_cast<int>(ClusterRank());
  if (consumer) {
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[j * 128 + at] = make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
  }
  ClusterSync();
  for (int j = rank; consumer && j < tiles; j += w.splits) {
    TokenPlaces places;
    EpilogueInputs in;
    LoadTokenPlaces(w.a, lane, j, places);
    LoadEpilogueInputs(w.a, rows, lane, j, places, in);
    float c[4] = {0, 0, 0, 0};
    for (int other = 0; other < w.splits; ++other) {
      const float4 v = LoadFromCluster(&sums[j * 128 + at], static_cast<uint32_t>(other));
      c[0] += v.x, c[1] += v.y, c[2] += v.z, c[3] += v.w;
    }
    FinishTokenTile(w.a, rows, lane, j, c, places, in, false, unused);
  }
  ClusterSync();  // nobody leaves while others read its sums
}

template <int kGroups>
__global__ __launch_bounds__(kGroups * 128 + 32,
                             kGroups == 1 ? 3 : 2) void WideKernel(const __grid_constant__ WideArgs w,
                                                                   const __grid_constant__ CUtensorMap w_map,
                                                                   const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ char dynamic[];
  __shared__ uint64_t full[kWideMaxStages], empty[kWideMaxStages];
  char* ring = dynamic + ((1024 - (SharedAddress(dynamic) & 1023)) & 1023);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool consumer = warp < 4 * kGroups;
  const int tile = static_cast<int>(blockIdx.x) / w.splits, part = static_cast<int>(blockIdx.x) % w.splits;
  const int begin = part * w.chunks / w.splits, end = (part + 1) * w.chunks / w.splits;
  if (threadIdx.x == 0) {
    for (int i = 0; i < w.stages; ++i) {
      MbarrierInit(&full[i], 1);
      MbarrierInit(&empty[i], 4 * kGroups);
    }
    MbarrierInitFence();
  }
  __syncthreads();
  float d[32] = {};
  const int group = consumer ? warp / 4 : 0;
  if (consumer) {
    WideMultiply<kGroups>(d, ring, group, full, empty, w.stages, end - begin);
    PdlWait();
    if (w.splits > 1) NamedBarrierSync(1, kGroups * 128);  // the ring is read; the sums take its place
  } else {
    WideProducer<kGroups>(w, tile, &w_map, &x_map, ring, full).Run(empty, w.stages, begin, end);
  }
  float4* sums = reinterpret_cast<float4*>(ring) + group * 8 * 128;
  WideFinish(w, WideRows(w.a, tile * kGroups + group, warp % 4), d, sums, consumer);
}

}  // namespace agentserve::kernels::cuda
