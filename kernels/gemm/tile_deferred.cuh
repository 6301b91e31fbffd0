// The tile GEMM with a deferred epilogue: consumers only round their accumulators to bf16 into a buffer for the whole
// tile and go on; the three warps beside the producer turn the buffer into output under the products of the next tile.
// Same bits as the direct epilogues. Pays when a block has several tiles.
//
// The buffer has a half per warpgroup, [chunk of 64 columns][64 rows][128 bytes] with the 128-byte swizzle.
#pragma once

#include "kernels/gemm/tile_gemm.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kDrainThreads = kEpilogueWarps * 32;
// Items whose loads from global memory a thread has in flight together.
inline constexpr int kDrainBatch = 4;

// A warpgroup's 64 x kN accumulators, rounded, into its half.
template <int kN>
__device__ __forceinline__ void StageHalf(float (&d)[kN / 2], uint8_t* half) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  const uint32_t base = SharedAddress(half) + row * 128;
#pragma unroll
  for (int c = 0; c < kN / kChunkColumns; ++c) {
#pragma unroll
    for (int g = 0; g < 8; g += 2) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = PackBf16(d[c * 32 + g * 4 + 2 * i], d[c * 32 + g * 4 + 2 * i + 1]);
      StoreMatrices(base + c * kChunkBytes + (((g + lane / 16) ^ (row & 7)) << 4), r);
    }
  }
}

// Eight columns from 8 v of a row of the half.
__device__ __forceinline__ uint4 StagedVector(const uint8_t* half, int row, int v) {
  return *reinterpret_cast<const uint4*>(half + v / 8 * kChunkBytes + row * 128 + (((v ^ row) & 7) << 4));
}

template <typename F>
__device__ __forceinline__ uint4 CombineVectors(uint4 a, uint4 b, F f) {
  uint4 out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 va = UnpackBf16((&a.x)[i]), vb = UnpackBf16((&b.x)[i]);
    (&out.x)[i] = PackBf16(f(va.x, vb.x), f(va.y, vb.y));
  }
  return out;
}

// kNone and kResidual.
template <int kN>
__device__ __forceinline__ void DrainRows(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                          int thread) {
  constexpr int kVectors = kN / 8;
  const int total = rows * kVectors;
  for (int first = thread; first < total; first += kDrainThreads * kDrainBatch) {
    uint4 residual[kDrainBatch];
    size_t at[kDrainBatch];
    bool live[kDrainBatch];
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const int item = first + u * kDrainThreads, row = item / kVectors, column = column0 + item % kVectors * 8;
      live[u] = item < total && column < args.n;
      at[u] = static_cast<size_t>(row0 + row) * args.n + column;
      if (live[u] && args.residual_rows != nullptr)
        residual[u] = *reinterpret_cast<const uint4*>(args.residual_rows + at[u]);
    }
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const int item = first + u * kDrainThreads;
      if (!live[u]) continue;
      uint4 value = StagedVector(half, item / kVectors, item % kVectors);
      if (args.residual_rows != nullptr)
        value = CombineVectors(value, residual[u], [](float p, float r) { return p + r; });
      *reinterpret_cast<uint4*>(args.y_rows + at[u]) = value;
    }
  }
}

template <int kN>
__device__ __forceinline__ void DrainSwiglu(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                            int thread) {
  constexpr int kVectors = kN / 16;
  for (int item = thread; item < rows * kVectors; item += kDrainThreads) {
    const int row = item / kVectors, v = item % kVectors, column = column0 / 2 + v * 8;
    if (column >= args.n / 2) continue;
    const uint4 gate = StagedVector(half, row, 2 * v), up = StagedVector(half, row, 2 * v + 1);
    *reinterpret_cast<uint4*>(args.y_rows + static_cast<size_t>(row0 + row) * (args.n / 2) + column) =
        CombineVectors(gate, up, [](float g, float u) { return SwigluProduct(g, u); });
  }
}

// Where head `head` (of q, k and v together) of a row goes; null if nowhere.
__device__ __forceinline__ __nv_bfloat16* HeadRow(const TileArgs& args, int row, int slot, int head) {
  const QkvOutput& qkv = args.qkv;
  const int kv_heads = static_cast<int>(qkv.kv.kv_heads), dim = static_cast<int>(qkv.kv.head_dim);
  if (head < qkv.q_heads) return args.y_rows + (static_cast<size_t>(row) * qkv.q_heads + head) * dim;
  head -= qkv.q_heads;
  if (slot < 0 || head >= 2 * kv_heads) return nullptr;
  return head < kv_heads ? KvRow(qkv.kv, slot, qkv.kv.k_offset, head)
                         : KvRow(qkv.kv, slot, qkv.kv.v_offset, head - kv_heads);
}

// An item is eight pairs (c, c + d / 2) of one head and row.
template <int kN>
__device__ __forceinline__ void DrainQkv(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                         int thread) {
  constexpr int kItems = kN / 16;
  const QkvOutput& qkv = args.qkv;
  const int dim = static_cast<int>(qkv.kv.head_dim), half_vectors = dim / 16;
  const int rotated = qkv.q_heads + static_cast<int>(qkv.kv.kv_heads), head0 = column0 / dim;
  const int total = rows * kItems;
  for (int first = thread; first < total; first += kDrainThreads * kDrainBatch) {
    int position[kDrainBatch], slot[kDrainBatch];
    uint4 cos[kDrainBatch], sin[kDrainBatch];
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const int row = row0 + min(first + u * kDrainThreads, total - 1) / kItems;
      position[u] = qkv.positions[row];
      slot[u] = qkv.slots[row];
    }
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const size_t angle =
          static_cast<size_t>(position[u]) * (dim / 2) + (first + u * kDrainThreads) % half_vectors * 8;
      cos[u] = *reinterpret_cast<const uint4*>(qkv.cos + angle);
      sin[u] = *reinterpret_cast<const uint4*>(qkv.sin + angle);
    }
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const int item = first + u * kDrainThreads, row = item / kItems, in_row = item % kItems;
      const int h = in_row / half_vectors, c = in_row % half_vectors;
      __nv_bfloat16* to = item < total ? HeadRow(args, row0 + row, slot[u], head0 + h) : nullptr;
      if (to == nullptr) continue;
      uint4 low = StagedVector(half, row, h * 2 * half_vectors + c);
      uint4 high = StagedVector(half, row, (h * 2 + 1) * half_vectors + c);
      if (head0 + h < rotated) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 l = UnpackBf16((&low.x)[e]), g = UnpackBf16((&high.x)[e]);
          const float2 co = UnpackBf16((&cos[u].x)[e]), si = UnpackBf16((&sin[u].x)[e]);
          const float2 a = Rotate(l.x, g.x, co.x, si.x), b = Rotate(l.y, g.y, co.y, si.y);
          (&low.x)[e] = PackBf16(a.x, b.x);
          (&high.x)[e] = PackBf16(a.y, b.y);
        }
      }
      *reinterpret_cast<uint4*>(to + c * 8) = low;
      *reinterpret_cast<uint4*>(to + dim / 2 + c * 8) = high;
    }
  }
}

template <typename Config>
__device__ __forceinline__ void Drain(const TileArgs& args, const TileShared<Config>& shared, int first, int stride,
                                      int count, int rank) {
  constexpr int kN = Config::kBlockN;
  const int thread = static_cast<int>(threadIdx.x) - 32;
  PdlWait();
  uint32_t phase = 0;
  for (int index = first; index < count; index += stride, phase ^= 1) {
    const TileWork work = WorkOf<Config>(args, index, rank);
    for (int w = 0; w < 2; ++w) {
      const uint8_t* half = shared.rings + w * (kN / kChunkColumns) * kChunkBytes;
      const int row0 = work.row0 + w * 64, rows = min(64, args.m - row0);
      MbarrierWait(shared.staged + w, phase);
      if (args.epilogue == LinearEpilogue::kSwiglu) {
        DrainSwiglu<kN>(args, half, row0, work.column0, rows, thread);
      } else if (args.epilogue == LinearEpilogue::kQkv) {
        DrainQkv<kN>(args, half, row0, work.column0, rows, thread);
      } else {
        DrainRows<kN>(args, half, row0, work.column0, rows, thread);
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) MbarrierArrive(shared.drained + w);
    }
  }
}

template <typename Config>
__device__ __forceinline__ void ConsumeDeferred(const TileArgs& args, const TileShared<Config>& shared, int first,
                                                int stride, int count, int warpgroup) {
  constexpr int kN = Config::kBlockN;
  uint8_t* half = shared.rings + warpgroup * (kN / kChunkColumns) * kChunkBytes;
  RingPosition<Config::kStages> ring;
  uint32_t phase = 0;
  float d[kN / 2];
  for (int index = first; index < count; index += stride, phase ^= 1) {
    Multiply<Config>(shared, ring, args.k / kTileK, warpgroup, d, [](int) {});
    MbarrierWait(shared.drained + warpgroup, phase ^ 1);
    StageHalf<kN>(d, half);
    __syncwarp();
    if (threadIdx.x % 32 == 0) MbarrierArrive(shared.staged + warpgroup);
  }
}

template <typename Config>
__global__ void __launch_bounds__(kTileThreads, 1) DeferredTileKernel(const __grid_constant__ TileArgs args) {
  static_assert(Config::kBuffers == 0 && !Config::kSideBySide && !Config::kSplitK);
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
  const int count = args.units_m * args.tiles_n;
  const int warpgroup = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    RegistersDecrease<104>();
    if (threadIdx.x >= 32) {
      Drain<Config>(args, shared, first, stride, count, rank);
    } else if (threadIdx.x == 0) {
      Produce<Config>(args, shared, first, stride, count, rank);
    }
  } else {
    RegistersIncrease<200>();
    ConsumeDeferred<Config>(args, shared, first, stride, count, warpgroup - 1);
  }
  if constexpr (Config::kCluster > 1) {
    __syncwarp();
    ClusterSync();
  }
}

template <typename Config>
absl::Status LaunchDeferred(const TileArgs& args, int grid, const LaunchContext& context) {
  auto* kernel = DeferredTileKernel<Config>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (prepared != cudaSuccess) return ToStatus(prepared, "tile gemm");
  return ToStatus(Launch(context, kernel, dim3(static_cast<unsigned>(grid)), dim3(kTileThreads), Config::kSharedBytes,
                         Config::kCluster, args),
                  "tile gemm");
}

}  // namespace agentserve::kernels::cuda
