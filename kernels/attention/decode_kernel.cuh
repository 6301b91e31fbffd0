// The decode attention kernel: one query row a sequence against its paged KV, split over the KV positions.
//
// A task is (unit, KV head): the q rows of one head group against the unit's positions. A block runs one task at a
// time; its warps take the unit's 16-position tiles in turn, each with an own ring of shared memory filled by
// asynchronous copies, so no barrier is needed until the warps' results are merged. Per tile a warp computes
//   S[8][16] = q K^T, online softmax, O[8][head_dim] += P V
// with m16n8k16 products whose A rows 8-15 are zero (a group has at most 8 q rows). If a row has one unit, the merged
// result is the output; else it goes to the workspace as (O, max, sum) in fp32, and the block that arrives last at the
// row's counter adds up the parts in the order of the splits. Nothing depends on timing: same inputs, same bits.
//
// Under programmatic dependent launch the plan, the tables and all KV but each sequence's newest row are read before
// the wait: they are older than the kernel before (attention_cuda.h says so to callers).
#pragma once

#include <climits>

#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/linear_cuda.h"
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
  static constexpr int kStatsBytes = kWarps * kMaxGroup * 8;
  static constexpr int kSharedBytes = kWarps * kRingBytes + kStatsBytes + 16;
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static_assert(kMaxGroup * kMergeStride * 4 <= kRingBytes);
  static_assert(kThreads * (4 + 2) * 4 <= kWarps * kRingBytes);  // CombineSplits
};

// Where partial results lie in the workspace: counters [row][kv_head], then (max, sum) [unit][q_head], then O
// [unit][q_head][head_dim].
struct DecodeWorkspace {
  int* counters;
  float2* stats;
  float* o;
};
__host__ __device__ __forceinline__ DecodeWorkspace CarveDecodeWorkspace(void* base, int max_units, int q_heads) {
  DecodeWorkspace w;
  w.counters = static_cast<int*>(base);
  w.stats = reinterpret_cast<float2*>(static_cast<char*>(base) + kWorkspaceZeroBytes);
  const size_t stats = (static_cast<size_t>(max_units) * q_heads + 15) / 16 * 16;
  w.o = reinterpret_cast<float*>(w.stats + stats);
  return w;
}

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
  int begin;  // position of the warp's first tile
  int count;  // tiles of the warp
  int64_t current, next;

  __device__ __forceinline__ int64_t Load(int first) const {
    const int i = first + static_cast<int>(threadIdx.x % 32);
    if (i >= count) return 0;
    const int position = begin + i * C::kWarps * C::kTile;
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
  constexpr int kStride = C::kWarps * C::kTile;  // from a warp's tile to its next
  constexpr int kStageBytes = 2 * C::kTileBytes;
  TileOffsets<C> offsets;
  offsets.table = p.block_tables + static_cast<int64_t>(unit.row) * p.table_stride;
  offsets.block_bytes = p.kv.block_bytes;
  offsets.block_tokens = static_cast<int>(p.kv.block_tokens);
  offsets.begin = unit.begin + static_cast<int>(threadIdx.x / 32) * C::kTile;
  const int left = unit.end - offsets.begin;
  const int count = left > 0 ? (left + kStride - 1) / kStride : 0;
  offsets.count = count;
  offsets.Start();
  const std::byte* k = p.kv.base + p.kv.k_offset + head * p.kv.head_bytes;
  const std::byte* v = p.kv.base + p.kv.v_offset + head * p.kv.head_bytes;
  const auto copy = [&](int i, int stage, int skip) {
    if (i < count) {
      const int64_t offset = offsets.Get(i);
      CopyTile<C>(ring + stage * kStageBytes, k + offset, v + offset, left - i * kStride, skip);
    }
    CpAsyncCommit();
  };
  const int fresh = newest - offsets.begin;  // of the warp's last tile, if it is there at all
#pragma unroll
  for (int i = 0; i < C::kStages - 1; ++i) copy(i, i, fresh - i * kStride);
  if (!waited) {
    PdlWait();
    PdlTrigger();
    waited = true;
  }
  if (count > 0 && count < C::kStages && newest < unit.end) {
    const int row = fresh - (count - 1) * kStride;
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
    ComputeTile<C>(ring + stage * kStageBytes, q, scale_log2, left - i * kStride, acc);
    __syncwarp();  // all lanes have read the stage before it is filled again
    free_stage = stage;
    stage = stage + 1 == C::kStages ? 0 : stage + 1;
  }
  acc.sum = LaneSum<4>(acc.sum);
}

// Two neighbouring dims of one q row, merged over the warps.
struct MergedPair {
  float2 o;
  float max, sum;
};
template <typename C>
__device__ __forceinline__ MergedPair MergeWarps(const char* shared, const float2* stats, int row, int dim) {
  MergedPair m{{0, 0}, -INFINITY, 0};
#pragma unroll
  for (int w = 0; w < C::kWarps; ++w) m.max = fmaxf(m.max, stats[w * C::kMaxGroup + row].x);
#pragma unroll
  for (int w = 0; w < C::kWarps; ++w) {
    const float2 stat = stats[w * C::kMaxGroup + row];
    const float weight = Exp2(stat.x - m.max);  // 0 for a warp without tiles
    const float* o = reinterpret_cast<const float*>(shared + w * C::kRingBytes) + row * C::kMergeStride + dim;
    const float2 value = *reinterpret_cast<const float2*>(o);
    m.o.x += value.x * weight;
    m.o.y += value.y * weight;
    m.sum += stat.y * weight;
  }
  return m;
}

// Adds up the parts of a row's head group in the order of the splits, several threads a value: thread group j takes
// splits j, j + n, ..., and the groups are added in their order.
template <typename C>
__device__ __forceinline__ void CombineSplits(const DecodeAttentionParams& p, const DecodeWorkspace& workspace,
                                              int first_unit, int splits, int first_head, int group, int64_t row,
                                              char* shared) {
  constexpr int kVectors = C::kHeadDim / 4;
  const int items = group * kVectors;
  const int lanes = min(items, C::kThreads);  // values worked on at once
  const int parts = C::kThreads / lanes;
  const int part = static_cast<int>(threadIdx.x) / lanes;
  float4* shared_o = reinterpret_cast<float4*>(shared);
  float2* shared_stats = reinterpret_cast<float2*>(shared + C::kThreads * sizeof(float4));
  for (int base = 0; base < items; base += lanes) {
    const int item = base + static_cast<int>(threadIdx.x) % lanes;
    const int head = first_head + item / kVectors;
    float4 o = {0, 0, 0, 0};
    float max = -INFINITY, sum = 0;
    const auto add = [&](float4 value, float2 stat) {
      const float new_max = fmaxf(max, stat.x);
      const float keep = Exp2(max - new_max), weight = Exp2(stat.x - new_max);
      o.x = o.x * keep + value.x * weight;
      o.y = o.y * keep + value.y * weight;
      o.z = o.z * keep + value.z * weight;
      o.w = o.w * keep + value.w * weight;
      sum = sum * keep + stat.y * weight;
      max = new_max;
    };
    if (part < parts && item < items) {
#pragma unroll 4
      for (int s = part; s < splits; s += parts) {
        const int64_t index = static_cast<int64_t>(first_unit + s) * p.q_heads + head;
        const float2 stat = __ldcg(workspace.stats + index);
        const float4 value =
            __ldcg(reinterpret_cast<const float4*>(workspace.o + index * C::kHeadDim) + item % kVectors);
        add(value, stat);
      }
    }
    shared_o[threadIdx.x] = o;
    shared_stats[threadIdx.x] = {max, sum};
    __syncthreads();
    if (part == 0 && item < items) {
      for (int other = 1; other < min(parts, splits); ++other) {
        add(shared_o[other * lanes + threadIdx.x], shared_stats[other * lanes + threadIdx.x]);
      }
      const float inverse = 1.0f / sum;
      const uint2 packed = {PackBf16(o.x * inverse, o.y * inverse), PackBf16(o.z * inverse, o.w * inverse)};
      reinterpret_cast<uint2*>(p.out + (row * p.q_heads + head) * C::kHeadDim)[item % kVectors] = packed;
    }
    __syncthreads();
  }
}

// True in every thread of the block that is the last of `splits` to get here; it then sees what the others wrote
// before. Leaves the counter zero.
__device__ __forceinline__ bool LastToArrive(int* counter, int splits, int* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const bool last = atomicAdd(counter, 1) == splits - 1;
    if (last) *counter = 0;
    __threadfence();
    *flag = last;
  }
  __syncthreads();
  return *flag != 0;
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 2) DecodeAttentionKernel(DecodeAttentionParams p, int group) {
  extern __shared__ __align__(1024) char shared[];
  float2* stats = reinterpret_cast<float2*>(shared + C::kWarps * C::kRingBytes);
  int* flag = reinterpret_cast<int*>(shared + C::kWarps * C::kRingBytes + C::kStatsBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const DecodeWorkspace workspace = CarveDecodeWorkspace(p.workspace, p.max_units, p.q_heads);
  const int kv_heads = static_cast<int>(p.kv.kv_heads);
  bool waited = false;
  for (int task = blockIdx.x; task < p.max_units * kv_heads; task += gridDim.x) {
    const int unit_index = task / kv_heads, head = task % kv_heads;
    const DecodeUnit unit = p.units[unit_index];
    if (unit.row < 0) break;
    const int first_unit = unit_index - unit.split;
    const int splits = p.splits[unit.row + 1] - first_unit;
    const int newest = unit.split == splits - 1 ? unit.end - 1 : INT_MAX;

    DecodeAccumulator<C::kHeadDim> acc = {};
    acc.max = -INFINITY;
    AttendTiles<C>(p, unit, newest, head, group, SharedAddress(shared) + warp * C::kRingBytes, waited, acc);
    if (lane / 4 < group) {
      float* o =
          reinterpret_cast<float*>(shared + warp * C::kRingBytes) + (lane / 4) * C::kMergeStride + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < C::kHeadDim / 8; ++j) {
        *reinterpret_cast<float2*>(o + 8 * j) = make_float2(acc.o[j][0], acc.o[j][1]);
      }
      if (lane % 4 == 0) stats[warp * C::kMaxGroup + lane / 4] = {acc.max, acc.sum};
    }
    __syncthreads();
    for (int item = threadIdx.x; item < group * (C::kHeadDim / 2); item += C::kThreads) {
      const int row = item / (C::kHeadDim / 2), dim = item % (C::kHeadDim / 2) * 2;
      const MergedPair m = MergeWarps<C>(shared, stats, row, dim);
      const int q_head = head * group + row;
      if (splits == 1) {
        const float inverse = 1.0f / m.sum;
        const int64_t index = (static_cast<int64_t>(unit.row) * p.q_heads + q_head) * C::kHeadDim + dim;
        *reinterpret_cast<uint32_t*>(p.out + index) = PackBf16(m.o.x * inverse, m.o.y * inverse);
      } else {
        const int64_t index = static_cast<int64_t>(unit_index) * p.q_heads + q_head;
        *reinterpret_cast<float2*>(workspace.o + index * C::kHeadDim + dim) = m.o;
        if (dim == 0) workspace.stats[index] = {m.max, m.sum};
      }
    }
    if (splits > 1 && LastToArrive(workspace.counters + unit.row * kv_heads + head, splits, flag)) {
      CombineSplits<C>(p, workspace, first_unit, splits, head * group, group, unit.row, shared);
    }
    __syncthreads();  // the rings are free
  }
  if (!waited) PdlWait();  // the next kernel may rely on all before this one
}

template <typename C>
cudaError_t LaunchDecodeAttention(const DecodeAttentionParams& params, const LaunchContext& context) {
  const auto kernel = DecodeAttentionKernel<C>;
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  if (error != cudaSuccess) return error;
  const int kv_heads = static_cast<int>(params.kv.kv_heads);
  // Most blocks that run at once: by shared memory (1 KiB a block is the system's) and 2 by registers.
  const int resident = context.num_sms * (2 * (C::kSharedBytes + 1024) <= 228 * 1024 ? 2 : 1);
  const int tasks = params.max_units * kv_heads;
  return Launch(context, kernel, dim3(static_cast<unsigned>(tasks < resident ? tasks : resident)), dim3(C::kThreads),
                C::kSharedBytes, 1, params, params.q_heads / kv_heads);
}

}  // namespace agentserve::kernels::cuda
