// The tile GEMM with k split over a cluster, for decode batches that leave most SMs without a tile: block r of a
// cluster of kSplits multiplies the r-th part of k of one tile; then each block sums a slice of the rows over all
// blocks' partial sums, in order of k, through distributed shared memory, and runs the epilogue on it.
#pragma once

#include "kernels/gemm/tile_drain.cuh"
#include "kernels/gemm/tile_gemm.cuh"

namespace agentserve::kernels::cuda {

template <typename Config, int kSplits>
struct SplitSlice {
  static constexpr int kRows = Config::kBlockM / kSplits;
  static constexpr int kSlabs = kRows / 16;  // the rows of a warp are a slab of 16
  static constexpr int kGroups = Config::kWarpgroupN / 8;
  static constexpr int kItems = kRows * Config::kBlockN / 4 / 256;  // of four sums each, per thread
  static_assert(kSlabs > 0 && 256 * Config::kWarpgroupN / 2 * 4 <= Config::kStages * Config::kStageBytes);
};

// Sums this block's slice and leaves it, rounded, in `out` ([chunk of 64 columns][64 rows][128 bytes], swizzled).
// `sums` is where every block of the cluster keeps its accumulators: [group of 8 columns][256 threads] of float4.
template <typename Config, int kSplits>
__device__ __forceinline__ void SumSlice(uint32_t sums, uint8_t* out, int rank, int thread) {
  using Slice = SplitSlice<Config, kSplits>;
  const int lane = thread % 32;
  float4 parts[Slice::kItems][kSplits];
#pragma unroll
  for (int u = 0; u < Slice::kItems; ++u) {
    const int unit = thread / 32 + u * 8, group = unit % Slice::kGroups, source = unit / Slice::kGroups;
    const int slab = rank * Slice::kSlabs + source % Slice::kSlabs;
    const int warp = Config::kSideBySide ? source / Slice::kSlabs * 4 + slab : slab;
    const uint32_t address = sums + (group * 256 + warp * 32 + lane) * 16;
#pragma unroll
    for (int s = 0; s < kSplits; ++s) parts[u][s] = LoadPeer16(PeerAddress(address, s));
  }
#pragma unroll
  for (int u = 0; u < Slice::kItems; ++u) {
    const int unit = thread / 32 + u * 8, group = unit % Slice::kGroups, source = unit / Slice::kGroups;
    float4 sum = parts[u][0];
#pragma unroll
    for (int s = 1; s < kSplits; ++s) {
      const float4 more = parts[u][s];
      sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    const int v = group + (Config::kSideBySide ? source / Slice::kSlabs * Slice::kGroups : 0);
    const int row = source % Slice::kSlabs * 16 + lane / 4;  // and row + 8, which swizzles alike
    uint8_t* to = out + v / 8 * kDrainChunkBytes + row * 128 + (((v ^ row) & 7) << 4) + lane % 4 * 4;
    *reinterpret_cast<uint32_t*>(to) = PackBf16(sum.x, sum.y);
    *reinterpret_cast<uint32_t*>(to + 8 * 128) = PackBf16(sum.z, sum.w);
  }
}

template <typename Config, int kSplits>
__device__ __forceinline__ void ConsumeSplit(const TileArgs& args, const TileShared<Config>& shared,
                                             const TileWork& work, int warpgroup) {
  constexpr int kCount = Config::kWarpgroupN / 2;
  constexpr int kAngles = (Config::kBlockM / kSplits * Config::kBlockN / 16 + 255) / 256;
  using Slice = SplitSlice<Config, kSplits>;
  const int thread = warpgroup * 128 + static_cast<int>(threadIdx.x) % 128;
  RingPosition<Config::kStages> ring;
  float d[kCount];
  Multiply<Config>(shared, ring, work.last_step - work.first_step, warpgroup, d, [](int) {});
  NamedBarrierSync(1, 256);  // the stages have been read by both warpgroups: the sums may go there
  float4* sums = reinterpret_cast<float4*>(shared.stages);
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
    sums[i * 256 + thread] = make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
  }
  PdlWait();
  // What RoPE needs besides is on its way while the blocks wait for each other.
  const int row0 = work.row0 + work.split * Slice::kRows, rows = min(Slice::kRows, args.m - row0);
  const bool is_qkv = args.epilogue == LinearEpilogue::kQkv && rows > 0;
  QkvAngles<kAngles> angles;
  if (is_qkv) angles = LoadAngles<Config::kBlockN, 256, kAngles>(args, row0, rows, thread);
  ClusterSync();
  SumSlice<Config, kSplits>(SharedAddress(sums), shared.rings, work.split, thread);
  ClusterArrive();  // our reads of the other blocks are done
  NamedBarrierSync(1, 256);
  if (is_qkv) {
    DrainQkvItems<Config::kBlockN, 256>(args, shared.rings, row0, work.column0, rows, thread, angles);
  } else {
    DrainTile<Config::kBlockN, 256>(args, shared.rings, row0, work.column0, rows, thread);
  }
  __syncwarp();
  ClusterWait();
}

// One tile per cluster; grid = tiles * kSplits.
template <typename Config, int kSplits>
__global__ void __launch_bounds__(kTileThreads, Config::kBlocksPerSm)
    SplitTileKernel(const __grid_constant__ TileArgs args) {
  static_assert(Config::kSplitK && Config::kRingAt >= 256 * Config::kWarpgroupN / 2 * 4);
  extern __shared__ uint8_t raw[];
  const TileShared<Config> shared(raw);
  if (threadIdx.x == 0) InitBarriers<Config>(shared);
  if (threadIdx.x == 128) PrefetchMaps(args);
  __syncthreads();
  const int index = static_cast<int>(blockIdx.x);
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    if constexpr (Config::kBlocksPerSm == 1) RegistersDecrease<40>();
    if (threadIdx.x == 0) Produce<Config>(args, shared, index, static_cast<int>(gridDim.x), index + 1);
    __syncwarp();
    ClusterSync();
    ClusterArrive();
    ClusterWait();
  } else {
    if constexpr (Config::kBlocksPerSm == 1) RegistersIncrease<232>();
    ConsumeSplit<Config, kSplits>(args, shared, WorkOf<Config>(args, index), warpgroup - 1);
  }
}

template <typename Config, int kSplits>
absl::Status LaunchSplit(const TileArgs& args, int tiles, const LaunchContext& context) {
  auto* kernel = SplitTileKernel<Config, kSplits>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (prepared != cudaSuccess) return ToStatus(prepared, "tile gemm");
  return ToStatus(Launch(context, kernel, dim3(static_cast<unsigned>(tiles * kSplits)), dim3(kTileThreads),
                         Config::kSharedBytes, kSplits, args),
                  "tile gemm");
}

}  // namespace agentserve::kernels::cuda
