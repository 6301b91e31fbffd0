// y = epilogue(x w^T) by wgmma: persistent blocks of one producer warp (TMA) and two consumer warpgroups.
//
// A block (or a cluster of two, which share each tile of w by multicast) walks tiles of block_m x block_n in a raster
// of super-rows. x and w come in stages of 64 k values with the 128-byte swizzle; both warpgroups work on the same
// tile, on rows of their own (block_m 128) or columns of their own (block_m 64). Each output is summed over ascending k
// in steps of 16 by one warpgroup, unless split-K is asked for; then the last of the splits to arrive adds the fp32
// partials in order of k. So without splits the bits of an output depend on its row of x and w alone.
#pragma once

#include <algorithm>

#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/tile_epilogue.cuh"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/tma.cuh"
#include "kernels/tile/wgmma.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kTileK = 64;
inline constexpr int kTileThreads = 384;
inline constexpr int kConsumerWarps = 8;
inline constexpr int kEpilogueWarps = 3;  // of a deferred epilogue: those beside the producer

// kBuffers 0: the epilogue is deferred to warps of its own (tile_deferred.cuh), through a buffer for the whole tile.
template <int kBlockM_, int kBlockN_, int kStages_, int kBuffers_, int kCluster_ = 1, bool kSplitK_ = false>
struct TileConfig {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kStages = kStages_, kBuffers = kBuffers_;
  static constexpr int kCluster = kCluster_;
  static constexpr bool kSplitK = kSplitK_;
  static_assert(kBlockM == 64 || kBlockM == 128);
  static constexpr bool kSideBySide = kBlockM == 64;  // the warpgroups divide the columns
  static constexpr int kWarpgroupN = kSideBySide ? kBlockN / 2 : kBlockN;
  static constexpr int kXBytes = kBlockM * kTileK * 2, kWBytes = kBlockN * kTileK * 2;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kRingBytes = kBuffers > 0 ? 2 * kBuffers* kChunkBytes : kBlockM* kBlockN * 2;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + kRingBytes + 256;
  static_assert(kSharedBytes <= 232448);
};

struct TileWork {
  int row0, column0, first_step, last_step;
  int tile, split;
};

// Work item `index` of this block's cluster. The raster fills super-rows of group_m units column by column.
template <typename Config>
__device__ __forceinline__ TileWork WorkOf(const TileArgs& args, int index, int rank) {
  TileWork work;
  work.split = Config::kSplitK ? index % args.splits : 0;
  work.tile = Config::kSplitK ? index / args.splits : index;
  const int group_tiles = args.group_m * args.tiles_n;
  const int group = work.tile / group_tiles, in_group = work.tile - group * group_tiles;
  const int first_unit = group * args.group_m;
  const int units = min(args.units_m - first_unit, args.group_m);
  const int column = in_group / units;
  const int unit = first_unit + in_group - column * units;
  work.row0 = (unit * Config::kCluster + rank) * Config::kBlockM;
  work.column0 = column * Config::kBlockN;
  const int steps = args.k / kTileK;
  work.first_step = Config::kSplitK ? steps * work.split / args.splits : 0;
  work.last_step = Config::kSplitK ? steps * (work.split + 1) / args.splits : steps;
  return work;
}

template <typename Config>
struct TileShared {
  uint8_t* stages;
  uint8_t* rings;
  uint64_t *full, *empty;
  uint64_t* arrived;           // of residual chunks, per warpgroup and buffer
  uint64_t *staged, *drained;  // deferred epilogue, per warpgroup
  __device__ explicit TileShared(uint8_t* raw) {
    stages = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    rings = stages + Config::kStages * Config::kStageBytes;
    full = reinterpret_cast<uint64_t*>(rings + Config::kRingBytes);
    empty = full + Config::kStages;
    arrived = empty + Config::kStages;
    staged = arrived + 2 * Config::kBuffers;
    drained = staged + 2;
  }
  __device__ uint8_t* X(uint32_t stage) const { return stages + stage * Config::kStageBytes; }
  __device__ uint8_t* W(uint32_t stage) const { return X(stage) + Config::kXBytes; }
};

template <typename Config>
__device__ __forceinline__ void InitBarriers(const TileShared<Config>& shared) {
  for (int i = 0; i < Config::kStages; ++i) {
    MbarrierInit(shared.full + i, 1);
    MbarrierInit(shared.empty + i, kConsumerWarps * Config::kCluster);
  }
  for (int i = 0; i < 2 * Config::kBuffers; ++i) MbarrierInit(shared.arrived + i, 1);
  for (int i = 0; i < 2; ++i) {
    MbarrierInit(shared.staged + i, kConsumerWarps / 2);
    MbarrierInit(shared.drained + i, kEpilogueWarps);
  }
  MbarrierInitFence();
}

template <typename Config>
__device__ __forceinline__ void LoadW(const TileArgs& args, const TileShared<Config>& shared, uint32_t stage, int step,
                                      int column0, int rank) {
  if constexpr (Config::kCluster == 1) {
    TmaLoad2d(shared.W(stage), &args.w, shared.full + stage, step * kTileK, column0);
  } else {  // every block fetches its part and sends it to all
    constexpr int kPart = Config::kBlockN / Config::kCluster;
    TmaLoad2dMulticast(shared.W(stage) + rank * kPart * kTileK * 2, &args.w, shared.full + stage, step * kTileK,
                       column0 + rank * kPart, (1 << Config::kCluster) - 1);
  }
}

// One thread. Weights of the first stages are fetched before the kernels that form x are known to be complete.
template <typename Config>
__device__ __forceinline__ void Produce(const TileArgs& args, const TileShared<Config>& shared, int first, int stride,
                                        int count, int rank) {
  RingPosition<Config::kStages> ring;
  int early = 0;  // steps of the first work item whose w is on its way
  if (first < count) {
    const TileWork work = WorkOf<Config>(args, first, rank);
    early = min(work.last_step - work.first_step, Config::kStages);
    for (int i = 0; i < early; ++i) {
      MbarrierArriveExpect(shared.full + i, Config::kStageBytes);
      LoadW<Config>(args, shared, i, work.first_step + i, work.column0, rank);
    }
  }
  PdlWait();
  PdlTrigger();
  for (int index = first; index < count; index += stride) {
    const TileWork work = WorkOf<Config>(args, index, rank);
    for (int step = work.first_step; step < work.last_step; ++step, ring.Advance()) {
      if (early > 0) {
        --early;
      } else {
        MbarrierWait(shared.empty + ring.index, ring.phase ^ 1);
        MbarrierArriveExpect(shared.full + ring.index, Config::kStageBytes);
        LoadW<Config>(args, shared, ring.index, step, work.column0, rank);
      }
      TmaLoad2d(shared.X(ring.index), &args.x, shared.full + ring.index, step * kTileK, work.row0);
    }
  }
}

// This warp no longer reads the stage, here and in the other block of the cluster (whose multicast writes to it too).
template <typename Config>
__device__ __forceinline__ void Release(const TileShared<Config>& shared, uint32_t stage) {
  if (threadIdx.x % 32 != 0) return;
  if constexpr (Config::kCluster == 1) {
    MbarrierArrive(shared.empty + stage);
  } else {
    for (uint32_t rank = 0; rank < Config::kCluster; ++rank) MbarrierArriveCluster(shared.empty + stage, rank);
  }
}

// The product of one work item into d. `at(i)` runs before step i.
template <typename Config, typename At>
__device__ __forceinline__ void Multiply(const TileShared<Config>& shared, RingPosition<Config::kStages>& ring,
                                         int steps, int warpgroup, float (&d)[Config::kWarpgroupN / 2], At at) {
  using Mma = Wgmma<Config::kWarpgroupN>;
  uint32_t previous = 0;
  for (int i = 0; i < steps; ++i, ring.Advance()) {
    at(i);
    MbarrierWait(shared.full + ring.index, ring.phase);
    const uint8_t* x = shared.X(ring.index) + (Config::kSideBySide ? 0 : warpgroup * 64 * kTileK * 2);
    const uint8_t* w = shared.W(ring.index) + (Config::kSideBySide ? warpgroup * Config::kWarpgroupN * kTileK * 2 : 0);
    const uint64_t a = DescriptorKMajor(x), b = DescriptorKMajor(w);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kTileK / 16; ++k) {
      Mma::SS(d, DescriptorAdvance(a, k * 32), DescriptorAdvance(b, k * 32), i > 0 || k > 0);
    }
    WgmmaCommit();
    WgmmaWait<1>();
    if (i > 0) Release<Config>(shared, previous);
    previous = ring.index;
  }
  WgmmaWait<0>();
  KeepInRegisters(d);
  Release<Config>(shared, previous);
}

// Split-K: true in the warpgroup that arrives last, with d the sum over all splits in order; the others have left
// theirs.
template <typename Config>
__device__ __forceinline__ bool SumSplits(const TileArgs& args, const TileWork& work, int warpgroup, int barrier_id,
                                          float (&d)[Config::kWarpgroupN / 2]) {
  constexpr int kCount = Config::kWarpgroupN / 2;
  __shared__ int arrivals[2];
  const size_t block = static_cast<size_t>(Config::kBlockM) * Config::kBlockN;
  float* tile = args.partials + static_cast<size_t>(work.tile) * args.splits * block;
  const int thread = warpgroup * 128 + threadIdx.x % 128;
  float4* mine = reinterpret_cast<float4*>(tile + work.split * block) + thread;
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) mine[i * 256] = make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
  __threadfence();
  NamedBarrierSync(barrier_id, 128);
  int* counter = args.counters + work.tile * 2 + warpgroup;
  if (threadIdx.x % 128 == 0) {
    arrivals[warpgroup] = atomicAdd(counter, 1);
    __threadfence();
  }
  NamedBarrierSync(barrier_id, 128);
  if (arrivals[warpgroup] != args.splits - 1) return false;
  if (threadIdx.x % 128 == 0) *counter = 0;
  const float4* part = reinterpret_cast<const float4*>(tile) + thread;
  for (int split = 0; split < args.splits; ++split, part += block / 4) {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 more = __ldcg(part + i * 256);
      const bool start = split == 0;
      d[4 * i] = start ? more.x : d[4 * i] + more.x;
      d[4 * i + 1] = start ? more.y : d[4 * i + 1] + more.y;
      d[4 * i + 2] = start ? more.z : d[4 * i + 2] + more.z;
      d[4 * i + 3] = start ? more.w : d[4 * i + 3] + more.w;
    }
  }
  return true;
}

template <typename Config, LinearEpilogue kEpilogue, int kHeadDim>
__device__ __forceinline__ void Consume(const TileArgs& args, const TileShared<Config>& shared, int first, int stride,
                                        int count, int rank, int warpgroup) {
  constexpr int kN = Config::kWarpgroupN, kBuffers = Config::kBuffers;
  PdlWait();
  RingPosition<Config::kStages> ring;
  OutputRing<kBuffers> output{shared.rings + warpgroup * kBuffers * kChunkBytes, shared.arrived + warpgroup * kBuffers,
                              1 + warpgroup, 0, 0};
  float d[kN / 2];
  for (int index = first; index < count; index += stride) {
    const TileWork work = WorkOf<Config>(args, index, rank);
    const int steps = work.last_step - work.first_step;
    output.row0 = work.row0 + (Config::kSideBySide ? 0 : warpgroup * 64);
    output.column0 = work.column0 + (Config::kSideBySide ? warpgroup * kN : 0);
    Angles<kHeadDim> angles;
    if constexpr (kEpilogue == LinearEpilogue::kQkv) angles.Load(args, output.row0);
    // Residual chunks: once the stores of the last tile have left the buffers, under the products of this one.
    auto fetch = [&](int i) {
      if constexpr (kEpilogue == LinearEpilogue::kResidual && !Config::kSplitK) {
        if (i != min(2, steps - 1) || !output.Issuer()) return;
        TmaStoreWaitRead<0>();
        for (int c = 0; c < min(kBuffers, kN / kChunkColumns); ++c) FetchResidual(args, output, c);
      }
    };
    Multiply<Config>(shared, ring, steps, warpgroup, d, fetch);
    if constexpr (Config::kSplitK) {
      if (args.splits > 1 && !SumSplits<Config>(args, work, warpgroup, 1 + warpgroup, d)) continue;
      if constexpr (kEpilogue == LinearEpilogue::kResidual) {
        if (output.Issuer()) {
          TmaStoreWaitRead<0>();
          for (int c = 0; c < min(kBuffers, kN / kChunkColumns); ++c) FetchResidual(args, output, c);
        }
      }
    }
    if constexpr (kEpilogue == LinearEpilogue::kNone) StorePlain<kN>(args, d, output);
    if constexpr (kEpilogue == LinearEpilogue::kResidual) StoreResidual<kN>(args, d, output);
    if constexpr (kEpilogue == LinearEpilogue::kSwiglu) StoreSwiglu<kN>(args, d, output);
    if constexpr (kEpilogue == LinearEpilogue::kQkv) StoreQkv<kN, kHeadDim>(args, d, angles, output);
  }
  if (output.Issuer()) TmaStoreWait<0>();
}

template <typename Config, LinearEpilogue kEpilogue, int kHeadDim>
__global__ void __launch_bounds__(kTileThreads, 1) TileKernel(const __grid_constant__ TileArgs args) {
  extern __shared__ uint8_t raw[];
  const TileShared<Config> shared(raw);
  const int rank = Config::kCluster == 1 ? 0 : static_cast<int>(ClusterRank());
  if (threadIdx.x == 0) InitBarriers<Config>(shared);
  if constexpr (Config::kCluster == 1) {
    __syncthreads();
  } else {
    ClusterSync();
  }
  const int first = static_cast<int>(blockIdx.x) / Config::kCluster;
  const int stride = static_cast<int>(gridDim.x) / Config::kCluster;
  const int count = args.units_m * args.tiles_n * args.splits;
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    RegistersDecrease<40>();
    if (threadIdx.x == 0) {
      Produce<Config>(args, shared, first, stride, count, rank);
    }
  } else {
    RegistersIncrease<232>();
    Consume<Config, kEpilogue, kHeadDim>(args, shared, first, stride, count, rank, warpgroup - 1);
  }
  if constexpr (Config::kCluster > 1) {  // nobody's multicast or arrival finds a block gone
    __syncwarp();
    ClusterSync();
  }
}

// Host: launches one configuration; `grid` is a multiple of the cluster size.
template <typename Config, LinearEpilogue kEpilogue, int kHeadDim = 64>
absl::Status LaunchTile(const TileArgs& args, int grid, const LaunchContext& context) {
  auto* kernel = TileKernel<Config, kEpilogue, kHeadDim>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (prepared != cudaSuccess) return ToStatus(prepared, "tile gemm");
  return ToStatus(Launch(context, kernel, dim3(static_cast<unsigned>(grid)), dim3(kTileThreads), Config::kSharedBytes,
                         Config::kCluster, args),
                  "tile gemm");
}

}  // namespace agentserve::kernels::cuda
