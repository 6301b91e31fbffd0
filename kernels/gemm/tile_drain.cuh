// Epilogues that read the bf16-rounded product from shared memory and write global memory in 16-byte vectors: `thread`
// of kThreads threads takes every kThreads-th vector of `rows` rows.
//
// The buffer is [chunk of 64 columns][64 rows][128 bytes] with the 128-byte swizzle. row0 and column0 are its place in
// the whole product.
#pragma once

#include "kernels/gemm/epilogue.cuh"
#include "kernels/gemm/tile_args.h"

namespace agentserve::kernels::cuda {

// Items whose loads from global memory a thread has in flight together.
inline constexpr int kDrainBatch = 4;
inline constexpr int kDrainChunkBytes = 64 * 128;

// Eight columns from 8 v of a row of the half.
__device__ __forceinline__ uint4 StagedVector(const uint8_t* half, int row, int v) {
  return *reinterpret_cast<const uint4*>(half + v / 8 * kDrainChunkBytes + row * 128 + (((v ^ row) & 7) << 4));
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
template <int kN, int kThreads>
__device__ __forceinline__ void DrainRows(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                          int thread) {
  constexpr int kVectors = kN / 8;
  const int total = rows * kVectors;
  for (int first = thread; first < total; first += kThreads * kDrainBatch) {
    uint4 residual[kDrainBatch];
    size_t at[kDrainBatch];
    bool live[kDrainBatch];
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const int item = first + u * kThreads, row = item / kVectors, column = column0 + item % kVectors * 8;
      live[u] = item < total && column < args.n;
      at[u] = static_cast<size_t>(row0 + row) * args.n + column;
      if (live[u] && args.residual_rows != nullptr)
        residual[u] = *reinterpret_cast<const uint4*>(args.residual_rows + at[u]);
    }
#pragma unroll
    for (int u = 0; u < kDrainBatch; ++u) {
      const int item = first + u * kThreads;
      if (!live[u]) continue;
      uint4 value = StagedVector(half, item / kVectors, item % kVectors);
      if (args.residual_rows != nullptr)
        value = CombineVectors(value, residual[u], [](float p, float r) { return p + r; });
      *reinterpret_cast<uint4*>(args.y_rows + at[u]) = value;
    }
  }
}

template <int kN, int kThreads>
__device__ __forceinline__ void DrainSwiglu(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                            int thread) {
  constexpr int kVectors = kN / 16;
  for (int item = thread; item < rows * kVectors; item += kThreads) {
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

// What kBatch items of the kQkv epilogue of a thread (kThreads apart) need beside the product. An item is eight pairs
// (c, c + d / 2) of one head and row.
template <int kBatch>
struct QkvAngles {
  int slot[kBatch];
  uint4 cos[kBatch], sin[kBatch];
};

// `rows` > 0.
template <int kN, int kThreads, int kBatch>
__device__ __forceinline__ QkvAngles<kBatch> LoadAngles(const TileArgs& args, int row0, int rows, int first) {
  constexpr int kItems = kN / 16;
  const QkvOutput& qkv = args.qkv;
  const int dim = static_cast<int>(qkv.kv.head_dim), half_vectors = dim / 16, total = rows * kItems;
  QkvAngles<kBatch> angles;
  int position[kBatch];
#pragma unroll
  for (int u = 0; u < kBatch; ++u) {
    const int row = row0 + min(first + u * kThreads, total - 1) / kItems;
    position[u] = qkv.positions[row];
    angles.slot[u] = qkv.slots[row];
  }
#pragma unroll
  for (int u = 0; u < kBatch; ++u) {
    const size_t at = static_cast<size_t>(position[u]) * (dim / 2) + (first + u * kThreads) % half_vectors * 8;
    angles.cos[u] = *reinterpret_cast<const uint4*>(qkv.cos + at);
    angles.sin[u] = *reinterpret_cast<const uint4*>(qkv.sin + at);
  }
  return angles;
}

template <int kN, int kThreads, int kBatch>
__device__ __forceinline__ void DrainQkvItems(const TileArgs& args, const uint8_t* half, int row0, int column0,
                                              int rows, int first, const QkvAngles<kBatch>& angles) {
  constexpr int kItems = kN / 16;
  const QkvOutput& qkv = args.qkv;
  const int dim = static_cast<int>(qkv.kv.head_dim), half_vectors = dim / 16, total = rows * kItems;
  const int rotated = qkv.q_heads + static_cast<int>(qkv.kv.kv_heads), head0 = column0 / dim;
#pragma unroll
  for (int u = 0; u < kBatch; ++u) {
    const int item = first + u * kThreads, row = item / kItems, in_row = item % kItems;
    const int h = in_row / half_vectors, c = in_row % half_vectors;
    __nv_bfloat16* to = item < total ? HeadRow(args, row0 + row, angles.slot[u], head0 + h) : nullptr;
    if (to == nullptr) continue;
    uint4 low = StagedVector(half, row, h * 2 * half_vectors + c);
    uint4 high = StagedVector(half, row, (h * 2 + 1) * half_vectors + c);
    if (head0 + h < rotated) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 l = UnpackBf16((&low.x)[e]), g = UnpackBf16((&high.x)[e]);
        const float2 co = UnpackBf16((&angles.cos[u].x)[e]), si = UnpackBf16((&angles.sin[u].x)[e]);
        const float2 a = Rotate(l.x, g.x, co.x, si.x), b = Rotate(l.y, g.y, co.y, si.y);
        (&low.x)[e] = PackBf16(a.x, b.x);
        (&high.x)[e] = PackBf16(a.y, b.y);
      }
    }
    *reinterpret_cast<uint4*>(to + c * 8) = low;
    *reinterpret_cast<uint4*>(to + dim / 2 + c * 8) = high;
  }
}

template <int kN, int kThreads>
__device__ __forceinline__ void DrainQkv(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                         int thread) {
  for (int first = thread; first < rows * (kN / 16); first += kThreads * kDrainBatch) {
    const auto angles = LoadAngles<kN, kThreads, kDrainBatch>(args, row0, rows, first);
    DrainQkvItems<kN, kThreads>(args, half, row0, column0, rows, first, angles);
  }
}

template <int kN, int kThreads>
__device__ __forceinline__ void DrainTile(const TileArgs& args, const uint8_t* half, int row0, int column0, int rows,
                                          int thread) {
  if (args.epilogue == LinearEpilogue::kSwiglu) {
    DrainSwiglu<kN, kThreads>(args, half, row0, column0, rows, thread);
  } else if (args.epilogue == LinearEpilogue::kQkv) {
    DrainQkv<kN, kThreads>(args, half, row0, column0, rows, thread);
  } else {
    DrainRows<kN, kThreads>(args, half, row0, column0, rows, thread);
  }
}

}  // namespace agentserve::kernels::cuda
