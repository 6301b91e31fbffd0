// One warp's share of decode attention: which tiles are its own, how they come into shared memory, and their
// arithmetic. The whole is described in decode_kernel.cuh.
#pragma once

#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/pdl.cuh"
#include "kernels/tile/cluster.cuh"
#include "kernels/tile/mma.cuh"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

template <int kHeadDimValue, int kWarpsValue, int kStagesValue>
struct DecodeConfig {
  static constexpr int kHeadDim = kHeadDimValue;
  static constexpr int kWarps = kWarpsValue;
  static constexpr int kStages = kStagesValue;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTile = 16;                             // positions
  static constexpr int kTileBytes = kTile * kHeadDim * 2;      // of K, and again of V
  static constexpr int kRingBytes = kStages * 2 * kTileBytes;  // of one warp
  static constexpr int kMaxGroup = 8;
  // Row of a warp's O in shared memory, in floats; the padding spreads rows over the banks.
  static constexpr int kMergeStride = kHeadDim + 8;
  static constexpr int kStatsBytes = (kWarps + 1) * kMaxGroup * 8;  // of the warps, of the block
  static constexpr int kSharedBytes = kWarps * kRingBytes + kStatsBytes + 16;
  // The block's merged O lies behind the first warp's, for the other blocks of the cluster.
  static constexpr int kBlockO = kRingBytes / 2;
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static_assert(kMaxGroup * kMergeStride * 4 <= kBlockO);
  static_assert(kMaxGroup * kHeadDim * 4 <= kRingBytes - kBlockO);
  static_assert(kThreads * (4 + 2) * 4 <= kWarps * kRingBytes);  // CombineSplits
};

// The maximum before the first score. Finite, so that differences of two of them are no NaN; lower than any score.
constexpr float kNoScore = -1e30f;

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Running result of one q row (lane / 4) of a warp; scores are in units of log2. `sum` is this lane's share of the
// row's sum. o[j][0], o[j][1] are dims 8 j + 2 (lane % 4) and the next.
template <int kHeadDim>
struct DecodeAccumulator {
  float o[kHeadDim / 8][4];
  float max;
  float sum;
};

// Byte offsets of a warp's tiles in the pool: lane i knows tile i of the current and the next 32.
template <typename C>
struct TileOffsets {
  const int32_t* table;
  size_t block_bytes;
  int block_tokens;
  int begin;   // position of the warp's first tile
  int stride;  // positions from one of its tiles to the next
  int count;   // tiles of the warp
  int64_t current, next;

  __device__ __forceinline__ int64_t Load(int first) const {
    const int i = first + static_cast<int>(threadIdx.x % 32);
    if (i >= count) return 0;
    const int position = begin + i * stride;
    const int block = position / block_tokens;
    return static_cast<int64_t>(table[block]) * static_cast<int64_t>(block_bytes) +
           (position - block * block_tokens) * (C::kHeadDim * 2);
  }
  __device__ __forceinline__ void Start() {
    current = Load(0);
    next = Load(32);
  }
  // For i = 0, 1, 2, ... in this order.
  __device__ __forceinline__ int64_t Get(int i) {
    if (i % 32 == 0 && i > 0) {
      current = next;
      next = Load(i + 32);
    }
    return __shfl_sync(0xffffffffu, current, i % 32);
  }
};

// Starts the copies of one tile of K and V. Rows at and after `valid` are filled with zeros and not read; row `skip` is
// left alone (CopyRow brings it).
template <typename C>
__device__ __forceinline__ void CopyTile(uint32_t stage, const std::byte* k, const std::byte* v, int valid, int skip) {
  constexpr int kChunks = C::kHeadDim / 8;  // 16-byte chunks of a row
  constexpr int kRows = 32 / kChunks;       // rows a turn of the warp
  const int lane = threadIdx.x % 32;
  const int chunk = lane % kChunks;
  const uint32_t half = stage + (chunk / 8) * (C::kTile * 128);
#pragma unroll
  for (int j = 0; j < C::kTile / kRows; ++j) {
    const int row = j * kRows + lane / kChunks;
    if (row == skip) continue;
    CpAsync16OrZero(half + Swizzle128(row, chunk % 8), k + j * 512 + lane * 16, row < valid);
  }
#pragma unroll
  for (int j = 0; j < C::kTile / kRows; ++j) {
    const int row = j * kRows + lane / kChunks;
    if (row == skip) continue;
    CpAsync16OrZero(half + C::kTileBytes + Swizzle128(row, chunk % 8), v + j * 512 + lane * 16, row < valid);
  }
}
template <typename C>
__device__ __forceinline__ void CopyRow(uint32_t stage, const std::byte* k, const std::byte* v, int row) {
  const int chunk = threadIdx.x % 32;
  if (chunk >= C::kHeadDim / 8) return;
  const uint32_t to = stage + (chunk / 8) * (C::kTile * 128) + Swizzle128(row, chunk % 8);
  const int from = row * C::kHeadDim * 2 + chunk * 16;
  CpAsync16(to, k + from);
  CpAsync16(to + C::kTileBytes, v + from);
}

// One tile: scores, softmax, weighted sum of V. `q` is the A fragment of the q rows (unscaled); `valid` as
// above.
template <typename C>
__device__ __forceinline__ void ComputeTile(uint32_t stage, const uint32_t (&q)[C::kHeadDim / 16][2], float scale_log2,
                                            int valid, DecodeAccumulator<C::kHeadDim>& acc) {
  const uint32_t lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
  // K as [n = position][k = dim]: matrices (positions 0-7, dims 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15).
  const uint32_t k_row = stage + ((matrix / 2) * 8 + line) * 128;
  const uint32_t k_chunk = ((matrix % 2) ^ line) * 16;
  float s[2][4] = {};
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    uint32_t b[4];
    LdMatrixX4(b, k_row + (step / 4) * (C::kTile * 128) + (k_chunk ^ ((step % 4) * 32)));
    const uint32_t a[4] = {q[step][0], 0, q[step][1], 0};
    MmaBf16(s[0], a, b[0], b[1]);
    MmaBf16(s[1], a, b[2], b[3]);
  }
  float x[4] = {s[0][0] * scale_log2, s[0][1] * scale_log2, s[1][0] * scale_log2, s[1][1] * scale_log2};
  if (valid < C::kTile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (static_cast<int>((i / 2) * 8 + 2 * (lane % 4) + i % 2) >= valid) x[i] = -INFINITY;
    }
  }
  const float tile_max = LaneMax<4>(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
  const float max = fmaxf(acc.max, tile_max);
  const float keep = Exp2(acc.max - max);
  acc.max = max;
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = Exp2(x[i] - max);
  acc.sum = acc.sum * keep + ((x[0] + x[1]) + (x[2] + x[3]));
  const uint32_t p[4] = {PackBf16(x[0], x[1]), 0, PackBf16(x[2], x[3]), 0};
  if (__any_sync(0xffffffffu, keep != 1.0f)) {
#pragma unroll
    for (int j = 0; j < C::kHeadDim / 8; ++j) {
      acc.o[j][0] *= keep;
      acc.o[j][1] *= keep;
    }
  }
  // V as [k = position][n = dim], transposed on the way: matrices (positions 0-7, dims 0-7), (8-15, 0-7), (0-7, 8-15),
  // (8-15, 8-15).
  const uint32_t v_row = stage + C::kTileBytes + ((matrix % 2) * 8 + line) * 128;
  const uint32_t v_chunk = ((matrix / 2) ^ line) * 16;
#pragma unroll
  for (int pair = 0; pair < C::kHeadDim / 16; ++pair) {
    uint32_t b[4];
    LdMatrixX4Trans(b, v_row + (pair / 4) * (C::kTile * 128) + (v_chunk ^ ((pair % 4) * 32)));
    MmaBf16(acc.o[2 * pair], p, b[0], b[1]);
    MmaBf16(acc.o[2 * pair + 1], p, b[2], b[3]);
  }
}

// A fragments of the group's q rows; rows beyond the group are zero.
template <typename C>
__device__ __forceinline__ void LoadQ(const __nv_bfloat16* q, int group, uint32_t (&fragment)[C::kHeadDim / 16][2]) {
  const int row = threadIdx.x % 32 / 4;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(q + row * C::kHeadDim) + threadIdx.x % 4;
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    fragment[step][0] = row < group ? words[step * 8] : 0;
    fragment[step][1] = row < group ? words[step * 8 + 4] : 0;
  }
}

// This warp's tiles of the unit. Copies start before the wait for the kernel before (`waited` says whether it was
// done): all KV but the sequence's newest row, `newest`, is older.
template <typename C>
__device__ __forceinline__ void AttendTiles(const DecodeAttentionParams& p, const DecodeUnit& unit, int newest,
                                            int head, int group, uint32_t ring, bool& waited,
                                            DecodeAccumulator<C::kHeadDim>& acc) {
  // The warps of all blocks of the cluster take the tiles in turn.
  const int warp = static_cast<int>(ClusterRank()) * C::kWarps + static_cast<int>(threadIdx.x / 32);
  const int stride = static_cast<int>(ClusterSize()) * C::kWarps * C::kTile;
  constexpr int kStageBytes = 2 * C::kTileBytes;
  TileOffsets<C> offsets;
  offsets.table = p.block_tables + static_cast<int64_t>(unit.row) * p.table_stride;
  offsets.block_bytes = p.kv.block_bytes;
  offsets.block_tokens = static_cast<int>(p.kv.block_tokens);
  offsets.begin = unit.begin + warp * C::kTile;
  offsets.stride = stride;
  const int left = unit.end - offsets.begin;
  const int count = left > 0 ? (left + stride - 1) / stride : 0;
  offsets.count = count;
  offsets.Start();
  const std::byte* k = p.kv.base + p.kv.k_offset + head * p.kv.head_bytes;
  const std::byte* v = p.kv.base + p.kv.v_offset + head * p.kv.head_bytes;
  const auto copy = [&](int i, int stage, int skip) {
    if (i < count) {
      const int64_t offset = offsets.Get(i);
      CopyTile<C>(ring + stage * kStageBytes, k + offset, v + offset, left - i * stride, skip);
    }
    CpAsyncCommit();
  };
  const int fresh = newest - offsets.begin;  // of the warp's last tile, if it is there at all
#pragma unroll
  for (int i = 0; i < C::kStages - 1; ++i) copy(i, i, fresh - i * stride);
  if (!waited) {
    PdlWait();
    PdlTrigger();
    waited = true;
  }
  if (count > 0 && count < C::kStages && newest < unit.end) {
    const int row = fresh - (count - 1) * stride;
    const int64_t offset = __shfl_sync(0xffffffffu, offsets.current, count - 1);
    if (row >= 0 && row < C::kTile) CopyRow<C>(ring + (count - 1) * kStageBytes, k + offset, v + offset, row);
  }
  uint32_t q[C::kHeadDim / 16][2];
  LoadQ<C>(p.q + (static_cast<int64_t>(unit.row) * p.q_heads + head * group) * C::kHeadDim, group, q);
  const float scale_log2 = p.scale * 1.44269504088896340736f;
  int stage = 0, free_stage = C::kStages - 1;
  for (int i = 0; i < count; ++i) {
    copy(i + C::kStages - 1, free_stage, -1);
    if (i + 1 < count) {
      CpAsyncWait<C::kStages - 1>();
    } else {
      CpAsyncWait<0>();  // CopyRow's may be in the group committed last
    }
    __syncwarp();
    ComputeTile<C>(ring + stage * kStageBytes, q, scale_log2, left - i * stride, acc);
    __syncwarp();  // all lanes have read the stage before it is filled again
    free_stage = stage;
    stage = stage + 1 == C::kStages ? 0 : stage + 1;
  }
  acc.sum = LaneSum<4>(acc.sum);
}

}  // namespace agentserve::kernels::cuda
