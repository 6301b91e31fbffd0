#include "kernels/attention/prefill_attention_mma.h"
#include "kernels/attention/prefill_plan.h"
#include "kernels/cuda/pdl.cuh"
#include "kernels/tile/mma.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kRows = 64;  // query rows of a block, 16 a warp
constexpr int kKeys = 64;  // keys of a step, at absolute multiples of kKeys
constexpr int kThreads = 128;
constexpr int kRowPad = 8;  // shared rows are D + 8 elements: ldmatrix without bank conflicts

struct Block {
  int head, kv_head;
  int row0;      // first query row of the block, in q
  int rows;      // valid ones
  int position;  // of row0
  int kv_length;
  const int32_t* table;
};

__device__ __forceinline__ bool FindBlock(const PrefillAttentionParams& p, int tile_rows, Block& b) {
  const int parts = tile_rows / kRows;
  const int item = blockIdx.x / parts, part = blockIdx.x % parts;
  const int32_t packed = p.tiles[item / p.q_heads];
  const int sequence = PrefillTileSequence(packed);
  const int first = p.cu_tokens[sequence];
  const PrefillRows tile = PrefillTileExtent(p.cu_tokens[sequence + 1] - first, PrefillTileIndex(packed), tile_rows);
  const int offset = tile.begin + part * kRows;
  b.head = item % p.q_heads;
  b.kv_head = b.head / (p.q_heads / static_cast<int>(p.kv.kv_heads));
  b.row0 = first + offset;
  b.rows = min(kRows, tile.end - offset);
  b.position = p.starts[sequence] + offset;
  b.kv_length = b.position + b.rows;
  b.table = p.block_tables + static_cast<int64_t>(sequence) * p.table_stride;
  return b.rows > 0;
}

// Keys or values [key0, key0 + kKeys) to shared memory; zeros from kv_length on (those slots may hold anything).
template <int D>
__device__ __forceinline__ void LoadTile(const PrefillAttentionParams& p, const Block& b, size_t offset, int key0,
                                         __nv_bfloat16* shared) {
  constexpr int kChunks = D / 8;
  for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks, key = key0 + row;
    const bool valid = key < b.kv_length;
    const std::byte* from = p.kv.base;
    if (valid) {
      from += static_cast<size_t>(b.table[key / p.kv.block_tokens]) * p.kv.block_bytes + offset +
              b.kv_head * p.kv.head_bytes + (key % p.kv.block_tokens) * (D * 2) + chunk * 16;
    }
    CpAsync16OrZero(SharedAddress(shared + row * (D + kRowPad) + chunk * 8), from, valid);
  }
}

// s[j] = q k^T for keys 8 j .. 8 j + 7.
template <int D>
__device__ __forceinline__ void Scores(const uint32_t (&q)[D / 16][4], const __nv_bfloat16* k,
                                       float (&s)[kKeys / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
    s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk += 2) {
      uint32_t b[4];
      LdMatrixX4(b, SharedAddress(k + (8 * j + lane % 8) * (D + kRowPad) + kk * 16 + lane / 8 * 8));
      MmaBf16(s[j], q[kk], b[0], b[1]);
      MmaBf16(s[j], q[kk + 1], b[2], b[3]);
    }
  }
}

// Running softmax of two rows (half 0: row g, half 1: row g + 8) over the scores of one step, which become
// probabilities. `limit[half]`: keys of this step from it on are masked.
template <int D>
__device__ __forceinline__ void Softmax(float (&s)[kKeys / 8][4], const int (&limit)[2], float scale_log2,
                                        float (&most)[2], float (&sum)[2], float (&o)[D / 8][4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float peak = -INFINITY;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[j][2 * half + i];
        if (8 * j + 2 * t + i >= limit[half]) x = -INFINITY;
        peak = fmaxf(peak, x);
      }
    }
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
    // Key 0 is visible to every row, so the maximum is finite from the first step on.
    const float next = fmaxf(most[half], peak * scale_log2);
    const float factor = exp2f(most[half] - next);
    most[half] = next;
    sum[half] *= factor;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[j][2 * half + i];
        x = exp2f(fmaf(x, scale_log2, -next));
        sum[half] += x;
      }
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      o[n][2 * half] *= factor;
      o[n][2 * half + 1] *= factor;
    }
  }
}

template <int D>
__device__ __forceinline__ void AddValues(const float (&s)[kKeys / 8][4], const __nv_bfloat16* v,
                                          float (&o)[D / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int kk = 0; kk < kKeys / 16; ++kk) {
    const uint32_t a[4] = {PackBf16(s[2 * kk][0], s[2 * kk][1]), PackBf16(s[2 * kk][2], s[2 * kk][3]),
                           PackBf16(s[2 * kk + 1][0], s[2 * kk + 1][1]), PackBf16(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b[4];
      LdMatrixX4Trans(b, SharedAddress(v + (16 * kk + lane % 16) * (D + kRowPad) + 8 * n + lane / 16 * 8));
      MmaBf16(o[n], a, b[0], b[1]);
      MmaBf16(o[n + 1], a, b[2], b[3]);
    }
  }
}

// One block: 64 query rows of one head.
template <int D>
__global__ void __launch_bounds__(kThreads) PrefillMmaKernel(PrefillAttentionParams p, int tile_rows) {
  __shared__ alignas(16) __nv_bfloat16 k[kKeys * (D + kRowPad)], v[kKeys * (D + kRowPad)];
  PdlWait();
  PdlTrigger();
  Block b;
  if (!FindBlock(p, tile_rows, b)) return;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int row[2] = {warp * 16 + g, warp * 16 + g + 8};
  uint32_t q[D / 16][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int valid_row = min(row[half], b.rows - 1);
    const __nv_bfloat16* from = p.q + (static_cast<int64_t>(b.row0 + valid_row) * p.q_heads + b.head) * D + 2 * t;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
      q[kk][half] = *reinterpret_cast<const uint32_t*>(from + 16 * kk);
      q[kk][2 + half] = *reinterpret_cast<const uint32_t*>(from + 16 * kk + 8);
    }
  }
  float o[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int key0 = 0; key0 < b.kv_length; key0 += kKeys) {
    __syncthreads();
    LoadTile<D>(p, b, p.kv.k_offset, key0, k);
    LoadTile<D>(p, b, p.kv.v_offset, key0, v);
    CpAsyncCommit();
    CpAsyncWait<0>();
    __syncthreads();
    float s[kKeys / 8][4];
    Scores<D>(q, k, s);
    const int limit[2] = {b.position + row[0] + 1 - key0, b.position + row[1] + 1 - key0};
    Softmax<D>(s, limit, p.scale * 1.4426950408889634f, most, sum, o);
    AddValues<D>(s, v, o);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    if (row[half] >= b.rows) continue;
    const float inverse = 1.0f / sum[half];
    __nv_bfloat16* to = p.out + (static_cast<int64_t>(b.row0 + row[half]) * p.q_heads + b.head) * D + 2 * t;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + 8 * n) = PackBf16(o[n][2 * half] * inverse, o[n][2 * half + 1] * inverse);
    }
  }
}

}  // namespace

absl::Status PrefillAttentionMma(const PrefillAttentionParams& params, const LaunchContext& context) {
  const int head_dim = static_cast<int>(params.kv.head_dim), tile_rows = PrefillTileRows(head_dim);
  const dim3 grid(static_cast<unsigned>(params.num_tiles * params.q_heads * (tile_rows / kRows)));
  const auto kernel = head_dim == 64 ? PrefillMmaKernel<64> : PrefillMmaKernel<128>;
  return ToStatus(Launch(context, kernel, grid, dim3(kThreads), 0, 1, params, tile_rows), "prefill attention");
}

}  // namespace agentserve::kernels::cuda
