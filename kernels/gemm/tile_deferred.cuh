// The tile GEMM with a deferred epilogue: consumers only round their accumulators to bf16 into a buffer for the whole
// tile and go on; the three warps beside the producer turn the buffer into output under the products of the next tile.
// A block's last tile, which nothing follows, is written by the consumers themselves. Same bits as the direct
// epilogues.
//
// The buffer has one part per 64 rows, [chunk of 64 columns][64 rows][128 bytes] with the 128-byte swizzle.
#pragma once

#include "kernels/gemm/tile_drain.cuh"
#include "kernels/gemm/tile_gemm.cuh"

namespace agentserve::kernels::cuda {

template <typename Config>
struct DeferredParts {
  static constexpr int kParts = Config::kBlockM / 64;  // with one part both warpgroups fill it, side by side
  static constexpr int kBytes = Config::kBlockN * 128;
  static constexpr int kWarps = kConsumerWarps / kParts;  // that fill a part, and write a last one
};

// A warpgroup's 64 x kN accumulators, rounded, into a part from its column group `first_group` (of 8 columns, even).
template <int kN>
__device__ __forceinline__ void StagePart(float (&d)[kN / 2], uint8_t* part, int first_group) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  const uint32_t base = SharedAddress(part) + row * 128;
#pragma unroll
  for (int g = 0; g < kN / 8; g += 2) {
    uint32_t r[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = PackBf16(d[g * 4 + 2 * i], d[g * 4 + 2 * i + 1]);
    const int v = first_group + g + lane / 16;
    StoreMatrices(base + v / 8 * kDrainChunkBytes + (((v ^ row) & 7) << 4), r);
  }
}

template <typename Config, int kThreads>
__device__ __forceinline__ void DrainPart(const TileArgs& args, const TileShared<Config>& shared, const TileWork& work,
                                          int part, int thread) {
  const int row0 = work.row0 + part * 64;
  DrainTile<Config::kBlockN, kThreads>(args, shared.rings + part * DeferredParts<Config>::kBytes, row0, work.column0,
                                       min(64, args.m - row0), thread);
}

// The epilogue warps: every tile of the block but the last.
template <typename Config>
__device__ __forceinline__ void DrainTiles(const TileArgs& args, const TileShared<Config>& shared, int first,
                                           int stride, int count) {
  PdlWait();
  uint32_t phase = 0;
  for (int index = first; index + stride < count; index += stride, phase ^= 1) {
    const TileWork work = WorkOf<Config>(args, index);
    for (int part = 0; part < DeferredParts<Config>::kParts; ++part) {
      MbarrierWait(shared.staged + part, phase);
      DrainPart<Config, kEpilogueWarps * 32>(args, shared, work, part, static_cast<int>(threadIdx.x) - 32);
      __syncwarp();
      if (threadIdx.x % 32 == 0) MbarrierArrive(shared.drained + part);
    }
  }
}

template <typename Config>
__device__ __forceinline__ void ConsumeDeferred(const TileArgs& args, const TileShared<Config>& shared, int first,
                                                int stride, int count, int warpgroup) {
  using Parts = DeferredParts<Config>;
  constexpr int kN = Config::kWarpgroupN, kThreads = Parts::kWarps * 32;
  const int part = Config::kSideBySide ? 0 : warpgroup;
  const int first_group = Config::kSideBySide ? warpgroup * (kN / 8) : 0;
  RingPosition<Config::kStages> ring;
  uint32_t phase = 0;
  float d[kN / 2];
  for (int index = first; index < count; index += stride, phase ^= 1) {
    Multiply<Config>(shared, ring, args.k / kTileK, warpgroup, d, [](int) {});
    MbarrierWait(shared.drained + part, phase ^ 1);
    StagePart<kN>(d, shared.rings + part * Parts::kBytes, first_group);
    if (index + stride < count) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) MbarrierArrive(shared.staged + part);
      continue;
    }
    PdlWait();
    NamedBarrierSync(1 + part, kThreads);
    DrainPart<Config, kThreads>(args, shared, WorkOf<Config>(args, index), part,
                                static_cast<int>(threadIdx.x - 128) % kThreads);
  }
}

template <typename Config>
__global__ void __launch_bounds__(kTileThreads, 1) DeferredTileKernel(const __grid_constant__ TileArgs args) {
  static_assert(Config::kBuffers == 0 && !Config::kSplitK);
  extern __shared__ uint8_t raw[];
  const TileShared<Config> shared(raw);
  if (threadIdx.x == 0) InitBarriers<Config>(shared);
  if (threadIdx.x == 128) PrefetchMaps(args);
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x), stride = static_cast<int>(gridDim.x);
  const int count = args.units_m * args.tiles_n;
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    RegistersDecrease<104>();
    if (threadIdx.x >= 32) {
      DrainTiles<Config>(args, shared, first, stride, count);
    } else if (threadIdx.x == 0) {
      Produce<Config>(args, shared, first, stride, count);
    }
  } else {
    RegistersIncrease<200>();
    ConsumeDeferred<Config>(args, shared, first, stride, count, warpgroup - 1);
  }
}

template <typename Config>
absl::Status LaunchDeferred(const TileArgs& args, int grid, const LaunchContext& context) {
  auto* kernel = DeferredTileKernel<Config>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (prepared != cudaSuccess) return ToStatus(prepared, "tile gemm");
  return ToStatus(
      Launch(context, kernel, dim3(static_cast<unsigned>(grid)), dim3(kTileThreads), Config::kSharedBytes, 1, args),
      "tile gemm");
}

}  // namespace agentserve::kernels::cuda
