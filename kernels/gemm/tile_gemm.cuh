// y = epilogue(x w^T) by wgmma: persistent blocks of one producer warp (TMA) and two consumer warpgroups.
//
// A block walks tiles of block_m x block_n in a raster of super-rows. x and w come in stages of 64 k values with the
// 128-byte swizzle; both warpgroups work on the same tile, on rows of their own (block_m 128) or columns of their own
// (block_m 64). Each output is summed over ascending k in steps of 16 by one warpgroup, unless split-K is asked for;
// then the last of the splits to arrive adds the fp32 partials in order of k. So without splits the bits of an output
// depend on its row of x and w alone.
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
template <int kBlockM_, int kBlockN_, int kStages_, int kBuffers_, bool kSplitK_ = false>
struct TileConfig {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kStages = kStages_, kBuffers = kBuffers_;
  static constexpr bool kSplitK = kSplitK_;
  static_assert(kBlockM == 64 || kBlockM == 128);
  static constexpr bool kSideBySide = kBlockM == 64;  // the warpgroups divide the columns
  static constexpr int kWarpgroupN = kSideBySide ? kBlockN / 2 : kBlockN;
  static constexpr int kXBytes = kBlockM * kTileK * 2, kWBytes = kBlockN * kTileK * 2;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kRingBytes = kBuffers > 0 ? 2 * kBuffers* kChunkBytes : kBlockM* kBlockN * 2;
  // Places in shared memory: output buffers, barriers.
  static constexpr int kRingAt = kStages * kStageBytes, kBarriersAt = kRingAt + kRingBytes;
  static constexpr int kSharedBytes = 1024 + kBarriersAt + 256;
  static constexpr int kBlocksPerSm = 1;
  static_assert(kSharedBytes <= 232448);
};

struct TileWork {
  int row0, column0, first_step, last_step;
  int tile, split;
};

// Work item `index`. The raster fills super-rows of group_m tiles column by column.
template <typename Config>
__device__ __forceinline__ TileWork WorkOf(const TileArgs& args, int index) {
  TileWork work;
  work.split = Config::kSplitK ? index % args.splits : 0;
  work.tile = Config::kSplitK ? index / args.splits : index;
  const int group_tiles = args.group_m * args.tiles_n;
  const int group = work.tile / group_tiles, in_group = work.tile - group * group_tiles;
  const int first_unit = group * args.group_m;
  const int units = min(args.units_m - first_unit, args.group_m);
  const int column = in_group / units;
  const int unit = first_unit + in_group - column * units;
  work.row0 = unit * Config::kBlockM;
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
    rings = stages + Config::kRingAt;
    full = reinterpret_cast<uint64_t*>(stages + Config::kBarriersAt);
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
    MbarrierInit(shared.empty + i, kConsumerWarps);
  }
  for (int i = 0; i < 2 * Config::kBuffers; ++i) MbarrierInit(shared.arrived + i, 1);
  for (int i = 0; i < 2; ++i) {
    MbarrierInit(shared.staged + i, kConsumerWarps / (Config::kBlockM / 64));
    MbarrierInit(shared.drained + i, kEpilogueWarps);
  }
  MbarrierInitFence();
}

template <typename Config>
__device__ __forceinline__ void LoadW(const TileArgs& args, const TileShared<Config>& shared, uint32_t stage, int step,
                                      int column0) {
  TmaLoad2d(shared.W(stage), &args.w, shared.full + stage, step * kTileK, column0);
}

// One thread. Weights of the first stages are fetched before the kernels that form x are known to be complete.
template <typename Config>
__device__ __forceinline__ void Produce(const TileArgs& args, const TileShared<Config>& shared, int first, int stride,
                                        int count) {
  RingPosition<Config::kStages> ring;
  int early = 0;  // steps of the first work item whose w is on its way
  if (first < count) {
    const TileWork work = WorkOf<Config>(args, first);
    early = min(work.last_step - work.first_step, Config::kStages);
    for (int i = 0; i < early; ++i) {
      MbarrierArriveExpect(shared.full + i, Config::kStageBytes);
      LoadW<Config>(args, shared, i, work.first_step + i, work.column0);
    }
  }
  PdlWait();
  PdlTrigger();
  for (int index = first; index < count; index += stride) {
    const TileWork work = WorkOf<Config>(args, index);
    for (int step = work.first_step; step < work.last_step; ++step, ring.Advance()) {
      if (early > 0) {
        --early;
      } else {
        MbarrierWait(shared.empty + ring.index, ring.phase ^ 1);
        MbarrierArriveExpect(shared.full + ring.index, Config::kStageBytes);
        LoadW<Config>(args, shared, ring.index, step, work.column0);
      }
      TmaLoad2d(shared.X(ring.index), &args.x, shared.full + ring.index, step * kTileK, work.row0);
    }
  }
}

// This warp no longer reads the stage.
template <typename Config>
__device__ __forceinline__ void Release(const TileShared<Config>& shared, uint32_t stage) {
  if (threadIdx.x % 32 == 0) MbarrierArrive(shared.empty + stage);
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

template <typename Config, LinearEpilogue kEpilogue>
__device__ __forceinline__ void Consume(const TileArgs& args, const TileShared<Config>& shared, int first, int stride,
                                        int count, int warpgroup) {
  constexpr int kN = Config::kWarpgroupN, kBuffers = Config::kBuffers;
  PdlWait();
  RingPosition<Config::kStages> ring;
  OutputRing<kBuffers> output{shared.rings + warpgroup * kBuffers * kChunkBytes, shared.arrived + warpgroup * kBuffers,
                              1 + warpgroup, 0, 0};
  float d[kN / 2];
  for (int index = first; index < count; index += stride) {
    const TileWork work = WorkOf<Config>(args, index);
    const int steps = work.last_step - work.first_step;
    output.row0 = work.row0 + (Config::kSideBySide ? 0 : warpgroup * 64);
    output.column0 = work.column0 + (Config::kSideBySide ? warpgroup * kN : 0);
    // Residual chunks: once the stores of the last tile have left the buffers, under the products of this one.
    auto fetch = [&](int i) {
      if constexpr (kEpilogue == LinearEpilogue::kResidual) {
        if (i != min(2, steps - 1) || !output.Issuer()) return;
        TmaStoreWaitRead<0>();
        for (int c = 0; c < min(kBuffers, kN / kChunkColumns); ++c) FetchResidual(args, output, c);
      }
    };
    Multiply<Config>(shared, ring, steps, warpgroup, d, fetch);
    if constexpr (kEpilogue == LinearEpilogue::kNone) StorePlain<kN>(args, d, output);
    if constexpr (kEpilogue == LinearEpilogue::kResidual) StoreResidual<kN>(args, d, output);
  }
  if (output.Issuer()) TmaStoreWaitRead<0>();  // shared memory outlives its readers
}

__device__ __forceinline__ void PrefetchMaps(const TileArgs& args) {
  TmaPrefetchMap(&args.w);
  TmaPrefetchMap(&args.x);
}

template <typename Config, LinearEpilogue kEpilogue>
__global__ void __launch_bounds__(kTileThreads, 1) TileKernel(const __grid_constant__ TileArgs args) {
  extern __shared__ uint8_t raw[];
  const TileShared<Config> shared(raw);
  if (threadIdx.x == 0) InitBarriers<Config>(shared);
  if (threadIdx.x == 128) PrefetchMaps(args);
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x), stride = static_cast<int>(gridDim.x);
  const int count = args.units_m * args.tiles_n;
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    RegistersDecrease<40>();
    if (threadIdx.x == 0) Produce<Config>(args, shared, first, stride, count);
  } else {
    RegistersIncrease<232>();
    Consume<Config, kEpilogue>(args, shared, first, stride, count, warpgroup - 1);
  }
}

// Host: launches one configuration.
template <typename Config, LinearEpilogue kEpilogue>
absl::Status LaunchTile(const TileArgs& args, int grid, const LaunchContext& context) {
  auto* kernel = TileKernel<Config, kEpilogue>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (prepared != cudaSuccess) return ToStatus(prepared, "tile gemm");
  return ToStatus(
      Launch(context, kernel, dim3(static_cast<unsigned>(grid)), dim3(kTileThreads), Config::kSharedBytes, 1, args),
      "tile gemm");
}

}  // namespace agentserve::kernels::cuda
