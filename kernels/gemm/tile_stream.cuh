// The tile GEMM for decode batches, which are bound by reading w: one tile a block, two blocks an SM. The blocks of the
// next kernel of a chain start beside those of this one and fill their rings with weights, so that the memory does not
// idle while this one's results are summed, normed and read.
//
// To occupy every SM, k may be divided into parts, each a block of its own. Their sums go to memory as fp32, and the
// kernel that follows anyway adds them in order of k (RmsNorm with partials): no block waits for another. Without parts
// the epilogue is fused; the bits are then those of the other tile shapes.
#pragma once

#include "kernels/gemm/tile_deferred.cuh"
#include "kernels/tile/reduce.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kStreamThreads = 288;  // two consumer warpgroups and the producer's warp

// The tile is rounded into the stages, once they have been read.
template <int kBlockM_, int kStages_>
struct StreamConfig : TileConfig<kBlockM_, 128, kStages_, 0, true> {
  using Base = TileConfig<kBlockM_, 128, kStages_, 0, true>;
  static constexpr int kRingAt = 256 * Base::kWarpgroupN / 2 * 4;  // beyond the sums that a cluster exchanges
  static constexpr int kBarriersAt = kStages_ * Base::kStageBytes;
  static constexpr int kSharedBytes = 1024 + kBarriersAt + 256;
  static constexpr int kBlocksPerSm = 2;
  static_assert(kRingAt + Base::kRingBytes <= kBarriersAt);
  // Beside a block of the kernel before or after with four stages.
  static_assert(kSharedBytes + 99584 + 2 * 1024 <= 228 * 1024);
};

// As Multiply, but a stage is free as soon as it has been multiplied: the tensor cores wait for the memory anyway.
template <typename Config>
__device__ __forceinline__ void MultiplyStream(const TileShared<Config>& shared, int steps, int warpgroup,
                                               float (&d)[Config::kWarpgroupN / 2]) {
  RingPosition<Config::kStages> ring;
  for (int i = 0; i < steps; ++i, ring.Advance()) {
    MbarrierWait(shared.full + ring.index, ring.phase);
    const uint8_t* x = shared.X(ring.index) + (Config::kSideBySide ? 0 : warpgroup * 64 * kTileK * 2);
    const uint8_t* w = shared.W(ring.index) + (Config::kSideBySide ? warpgroup * Config::kWarpgroupN * kTileK * 2 : 0);
    const uint64_t a = DescriptorKMajor(x), b = DescriptorKMajor(w);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kTileK / 16; ++k) {
      Wgmma<Config::kWarpgroupN>::SS(d, DescriptorAdvance(a, k * 32), DescriptorAdvance(b, k * 32), i > 0 || k > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    KeepInRegisters(d);
    Release<Config>(shared, ring.index);
  }
}

// The sums of a warpgroup into its part of args.partials.
template <typename Config>
__device__ __forceinline__ void StorePartials(const TileArgs& args, const TileWork& work, int warpgroup,
                                              const float (&d)[Config::kWarpgroupN / 2]) {
  const int lane = threadIdx.x % 32;
  const int row = work.row0 + (Config::kSideBySide ? 0 : warpgroup * 64) + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const int column = work.column0 + (Config::kSideBySide ? warpgroup * Config::kWarpgroupN : 0) + lane % 4 * 2;
  const size_t n = static_cast<size_t>(args.n);
  float* to = args.partials + (static_cast<size_t>(work.split) * args.m + row) * n + column;
#pragma unroll
  for (int j = 0; j < Config::kWarpgroupN / 8; ++j) {
    if (column + 8 * j >= args.n) return;
    if (row < args.m) *reinterpret_cast<float2*>(to + 8 * j) = make_float2(d[4 * j], d[4 * j + 1]);
    if (row + 8 < args.m) *reinterpret_cast<float2*>(to + 8 * n + 8 * j) = make_float2(d[4 * j + 2], d[4 * j + 3]);
  }
}

// The largest bf16-rounded sum, of the lowest column, of each row of a warpgroup's columns.
template <typename Config>
__device__ __forceinline__ void StoreBest(const TileArgs& args, const TileWork& work, int warpgroup,
                                          const float (&d)[Config::kWarpgroupN / 2]) {
  const int lane = threadIdx.x % 32;
  const int row = work.row0 + (Config::kSideBySide ? 0 : warpgroup * 64) + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const int column = work.column0 + (Config::kSideBySide ? warpgroup * Config::kWarpgroupN : 0) + lane % 4 * 2;
  const int slot =
      work.column0 / Config::kBlockN * (Config::kSideBySide ? 2 : 1) + (Config::kSideBySide ? warpgroup : 0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Best best{-INFINITY, 0x7fffffff};
#pragma unroll
    for (int j = 0; j < Config::kWarpgroupN / 8; ++j) {
      if (column + 8 * j >= args.n) continue;
      best = BestOp()(best, {RoundBf16(d[4 * j + 2 * half]), column + 8 * j});
      best = BestOp()(best, {RoundBf16(d[4 * j + 2 * half + 1]), column + 8 * j + 1});
    }
    best = LaneBest<4>(best);
    const int at = row + 8 * half;
    if (lane % 4 == 0 && at < args.m) args.best[static_cast<size_t>(at) * args.best_slots + slot] = best;
  }
}

template <typename Config>
__device__ __forceinline__ void ConsumeStream(const TileArgs& args, const TileShared<Config>& shared,
                                              const TileWork& work, int warpgroup) {
  using Parts = DeferredParts<Config>;
  constexpr int kN = Config::kWarpgroupN, kThreads = Parts::kWarps * 32;
  float d[kN / 2];
  MultiplyStream<Config>(shared, work.last_step - work.first_step, warpgroup, d);
  PdlWait();
  if (args.partials != nullptr) {
    StorePartials<Config>(args, work, warpgroup, d);
    return;
  }
  if (args.best != nullptr) {
    StoreBest<Config>(args, work, warpgroup, d);
    if (args.y_rows == nullptr) return;
  }
  const int part = Config::kSideBySide ? 0 : warpgroup;
  NamedBarrierSync(1, 256);  // both warpgroups have read the stages
  StagePart<kN>(d, shared.rings + part * Parts::kBytes, Config::kSideBySide ? warpgroup * (kN / 8) : 0);
  NamedBarrierSync(2 + part, kThreads);
  DrainPart<Config, kThreads>(args, shared, work, part, static_cast<int>(threadIdx.x) % kThreads);
}

// Grid = tiles * splits.
template <typename Config>
__global__ void __launch_bounds__(kStreamThreads, Config::kBlocksPerSm)
    StreamTileKernel(const __grid_constant__ TileArgs args) {
  extern __shared__ uint8_t raw[];
  const TileShared<Config> shared(raw);
  PdlTrigger();
  if (threadIdx.x == 0) InitBarriers<Config>(shared);
  if (threadIdx.x == 256) PrefetchMaps(args);
  __syncthreads();
  const int index = static_cast<int>(blockIdx.x);
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 2) {
    if (threadIdx.x == 256) Produce<Config>(args, shared, index, static_cast<int>(gridDim.x), index + 1);
  } else {
    ConsumeStream<Config>(args, shared, WorkOf<Config>(args, index), warpgroup);
  }
}

template <typename Config>
absl::Status LaunchStream(const TileArgs& args, int tiles, const LaunchContext& context) {
  auto* kernel = StreamTileKernel<Config>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (prepared != cudaSuccess) return ToStatus(prepared, "tile gemm");
  return ToStatus(Launch(context, kernel, dim3(static_cast<unsigned>(tiles * args.splits)), dim3(kStreamThreads),
                         Config::kSharedBytes, 1, args),
                  "tile gemm");
}

}  // namespace agentserve::kernels::cuda
