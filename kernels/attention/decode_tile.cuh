// One warp's share of decode attention: which tiles are its own, how they come into shared memory, and their
// arithmetic. The whole is described in decode_kernel.cuh.
#pragma once

#include <algorithm>

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
  // Shared memory: the warps' rings; the block's merged O, later the parts of CombineSplits; (max, sum) of the warps
  // and of the block; a flag.
  static constexpr int kScratch = kWarps * kRingBytes;
  static constexpr int kScratchBytes = std::max(kMaxGroup * kHeadDim * 4, kThreads*(4 + 2) * 4);
  static constexpr int kStats = kScratch + kScratchBytes;
  static constexpr int kFlag = kStats + (kWarps + 1) * kMaxGroup * 8;
  static constexpr int kSharedBytes = kFlag + 16;
  // A warp's O goes to its ring's last stage: the others are already being filled for the next task.
  static constexpr int kMergeO = (kStages - 1) * 2 * kTileBytes;
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static_assert(kMaxGroup * kMergeStride * 4 <= 2 * kTileBytes);
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

// The tiles of a unit that one warp takes, and their way into its ring. The warps of all blocks of the cluster take the
// tiles in turn. Offsets into the pool: lane i knows tile i of the current and of the next 32.
template <typename C>
class WarpTiles {
 public:
  static constexpr int kAhead = C::kStages - 1;  // tiles on their way while one is computed

  // `first_head`: of the p.heads heads of the block's task.
  __device__ __forceinline__ void Start(const DecodeAttentionParams& p, const DecodeUnit& unit, int first_head) {
    const int share = C::kWarps / p.heads;  // warps of a head
    const int in_block = static_cast<int>(threadIdx.x / 32), head = first_head + in_block / share;
    const int warp = static_cast<int>(ClusterRank()) * share + in_block % share;
    stride_ = static_cast<int>(ClusterSize()) * share * C::kTile;
    table_ = p.block_tables + static_cast<int64_t>(unit.row) * p.table_stride;
    begin_ = unit.begin + warp * C::kTile;
    left_ = unit.end - begin_;
    count_ = left_ > 0 ? (left_ + Stride() - 1) / Stride() : 0;
    k_ = p.kv.base + p.kv.k_offset + head * p.kv.head_bytes;
    current_ = Load(p, 0);
    next_ = Load(p, 32);
  }
  // Starts the copies of the first tiles, without position `skip`.
  __device__ __forceinline__ void CopyFirst(const DecodeAttentionParams& p, uint32_t ring, int skip) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) Copy(p, i, ring + i * 2 * C::kTileBytes, skip - begin_ - i * Stride());
  }
  // Brings the row that CopyFirst skipped, if it did.
  __device__ __forceinline__ void CopySkipped(const DecodeAttentionParams& p, uint32_t ring, int skip) {
    const int last = count_ - 1;
    const int row = skip - begin_ - last * Stride();
    if (last < 0 || last >= kAhead || row < 0 || row >= C::kTile) return;
    const std::byte* k = k_ + __shfl_sync(0xffffffffu, current_, last);
    CopyRow<C>(ring + last * 2 * C::kTileBytes, k, k + VOffset(p), row);
  }
  // Tile i = kAhead, kAhead + 1, ... in this order; past the end an empty group.
  __device__ __forceinline__ void Copy(const DecodeAttentionParams& p, int i, uint32_t stage, int skip_row) {
    if (i < count_) {
      if (i % 32 == 0 && i > 0) {
        current_ = next_;
        next_ = Load(p, i + 32);
      }
      const std::byte* k = k_ + __shfl_sync(0xffffffffu, current_, i % 32);
      CopyTile<C>(stage, k, k + VOffset(p), Valid(i), skip_row);
    }
    CpAsyncCommit();
  }
  __device__ __forceinline__ int count() const { return count_; }
  // Positions of the unit from the tile's first on; more than kTile if others follow.
  __device__ __forceinline__ int Valid(int i) const { return left_ - i * Stride(); }

 private:
  // Positions from one tile of a warp to its next.
  __device__ __forceinline__ int Stride() const { return stride_; }
  __device__ __forceinline__ static int64_t VOffset(const DecodeAttentionParams& p) {
    return static_cast<int64_t>(p.kv.v_offset) - static_cast<int64_t>(p.kv.k_offset);
  }
  __device__ __forceinline__ int64_t Load(const DecodeAttentionParams& p, int first) const {
    const int i = first + static_cast<int>(threadIdx.x % 32);
    if (i >= count_) return 0;
    const int position = begin_ + i * Stride(), block_tokens = static_cast<int>(p.kv.block_tokens);
    const int block = position / block_tokens;
    return static_cast<int64_t>(table_[block]) * static_cast<int64_t>(p.kv.block_bytes) +
           (position - block * block_tokens) * (C::kHeadDim * 2);
  }

  const int32_t* table_;
  const std::byte* k_;  // of the head, in block 0
  int begin_;           // position of the first tile
  int left_;            // positions of the unit from there on
  int stride_;
  int count_;
  int64_t current_, next_;
};

// Attends to all tiles of the warp, of which the first kAhead are on their way. When it returns, the ring is free.
template <typename C>
__device__ __forceinline__ void AttendTiles(const DecodeAttentionParams& p, WarpTiles<C>& tiles, uint32_t ring,
                                            const uint32_t (&q)[C::kHeadDim / 16][2],
                                            DecodeAccumulator<C::kHeadDim>& acc) {
  const float scale_log2 = p.scale * 1.44269504088896340736f;
  const int count = tiles.count();
  uint32_t stage = ring, free_stage = ring + WarpTiles<C>::kAhead * 2 * C::kTileBytes;
  for (int i = 0; i < count; ++i) {
    tiles.Copy(p, i + WarpTiles<C>::kAhead, free_stage, -1);
    if (i + 1 < count) {
      CpAsyncWait<WarpTiles<C>::kAhead>();
    } else {
      CpAsyncWait<0>();  // what CopySkipped brought may be in the youngest group
    }
    __syncwarp();
    ComputeTile<C>(stage, q, scale_log2, tiles.Valid(i), acc);
    __syncwarp();  // all lanes have read the stage before it is filled again
    free_stage = stage;
    stage = stage + 2 * C::kTileBytes == ring + C::kRingBytes ? ring : stage + 2 * C::kTileBytes;
  }
  acc.sum = LaneSum<4>(acc.sum);
}

}  // namespace agentserve::kernels::cuda
