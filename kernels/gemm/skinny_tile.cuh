// One tile of the few-rows kernel: its x in shared memory, its products, its partial sums.
#pragma once

#include "kernels/gemm/skinny_args.h"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/mma.cuh"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

// Of the warps that multiply.
__device__ __forceinline__ void ConsumerSync() { NamedBarrierSync(1, kSkinnyThreads); }

// Where 16 bytes of resident x lie: [chunk of 64 k][row][128 bytes], swizzled like a TMA box.
__device__ __forceinline__ uint32_t XOffset(int m, int chunk, int row, int piece) {
  return static_cast<uint32_t>(chunk * m * 128) + Swizzle128(static_cast<uint32_t>(row), static_cast<uint32_t>(piece));
}

// Brings x to shared memory, normalised if asked for: bf16(weight * bf16(x * rsqrt(mean(x^2) + eps))). A row belongs to
// 8 / m warps (at least one). `norm` are the norm weights in shared memory. Ends with a barrier.
__device__ __forceinline__ void LoadX(const SkinnyOp& a, char* x_shared, const uint4* norm, float* sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32, m = a.p.m;
  const int vectors = a.p.k / 8;
  int group_warps = kSkinnyWarps;
  while (group_warps > 1 && kSkinnyWarps / group_warps < m) group_warps /= 2;
  const int groups = kSkinnyWarps / group_warps;
  const int step = group_warps * 32;
  const int first = static_cast<int>(threadIdx.x) % step;
#pragma unroll 1
  for (int base = 0; base < m; base += groups) {
    const int row = base + warp / group_warps;
    const auto at = [&](int i) { return reinterpret_cast<uint4*>(x_shared + XOffset(m, i / 8, row, i % 8)); };
    float sum = 0;
    if (row < m) {
      const uint4* from = reinterpret_cast<const uint4*>(a.p.x + static_cast<size_t>(row) * a.p.k);
#pragma unroll 1
      for (int i = first; i < vectors; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[j] = i + j * step < vectors ? __ldcg(from + i + j * step) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (i + j * step >= vectors) continue;
          float f[8];
          Unpack8(v[j], f);
#pragma unroll
          for (int e = 0; e < 8; ++e) sum = fmaf(f[e], f[e], sum);
          *at(i + j * step) = v[j];
        }
      }
    }
    if (a.p.norm_weight == nullptr) continue;
    sum = LaneSum(sum);
    ConsumerSync();  // sums are free
    if (threadIdx.x % 32 == 0) sums[warp] = sum;
    ConsumerSync();
    if (row >= m) continue;
    float total = 0;
    for (int w = 0; w < group_warps; ++w) total += sums[warp / group_warps * group_warps + w];
    const float scale = rsqrtf(total / static_cast<float>(a.p.k) + a.p.norm_eps);
#pragma unroll 2
    for (int i = first; i < vectors; i += step) {
      float f[8], w[8];
      Unpack8(*at(i), f);
      Unpack8(norm[i], w);
#pragma unroll
      for (int e = 0; e < 8; ++e) f[e] = w[e] * RoundBf16(f[e] * scale);
      *at(i) = Pack8(f);
    }
  }
  ConsumerSync();
}

// What a lane gives to ldmatrix. W: rows of group i % 2, 16-byte piece 2 s + i / 2 of a chunk in product s of 4. x:
// token row l % 8, piece 4 h + i in half h, where i = lane / 8. The warp's chunks of a stage are neighbours.
template <int kTokenTiles>
struct LaneAddresses {
  uint32_t w, w_row, w_piece;
  uint32_t x_row, x_piece;

  __device__ __forceinline__ LaneAddresses(int warp, int lane) {
    const auto i = static_cast<uint32_t>(lane) / 8, r = static_cast<uint32_t>(lane) % 8;
    w = (i % 2) * (kSkinnyStageBytes / 2) + static_cast<uint32_t>(warp * kSkinnyWarpChunks) * 1024 + r * 128;
    w_row = r;
    w_piece = i / 2;
    x_row = r;
    x_piece = i;
  }
  __device__ __forceinline__ uint32_t W(uint32_t stage, int s) const {
    return stage + w + (((2 * s + w_piece) ^ w_row) << 4);
  }
  // `chunk` is the address of the chunk's x; rows that are not there read zeros.
  __device__ __forceinline__ uint32_t X(uint32_t chunk, uint32_t zeros, int rows, int token_tile, int half) const {
    const uint32_t row = 8 * token_tile + x_row;
    return static_cast<int>(row) < rows ? chunk + row * 128 + (((4 * half + x_piece) ^ x_row) << 4) : zeros;
  }
};

// `chunks` of the warp's chunks of one stage into the accumulators, each chunk into two sets of its own, so that few
// products wait for each other. The x of successive chunks is x_step bytes apart.
template <int kTokenTiles, int kChunks>
__device__ __forceinline__ void MultiplyChunks(const LaneAddresses<kTokenTiles>& lanes, uint32_t stage,
                                               uint32_t x_chunk, uint32_t x_step, uint32_t zeros, int rows,
                                               float (&c)[2 * kSkinnyWarpChunks][kTokenTiles][4]) {
  uint32_t w[kChunks][4][4], x[kChunks][2][kTokenTiles][4];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        LdMatrixX4(x[i][half][j], lanes.X(x_chunk + i * x_step, zeros, rows, j, half));
      }
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) LdMatrixX4(w[i][s], lanes.W(stage + i * 1024, s));
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        MmaBf16(c[2 * i + s % 2][j], w[i][s], x[i][s / 2][j][2 * (s % 2)], x[i][s / 2][j][2 * (s % 2) + 1]);
      }
    }
  }
}

template <int kTokenTiles>
__device__ __forceinline__ void StorePartial(const float (&c)[2 * kSkinnyWarpChunks][kTokenTiles][4], float4* partial,
                                             int warp, int lane) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    float sum[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] = (c[0][j][e] + c[1][j][e]) + (c[2][j][e] + c[3][j][e]);
    partial[(warp * kTokenTiles + j) * 32 + lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
  }
}

// Adds the warps' partial sums of a tile in the order of the warps.
template <int kTokenTiles>
__device__ __forceinline__ void SumPartials(const float4* partial, int lane, float (&c)[kTokenTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    float4 v[kSkinnyWarps];
#pragma unroll
    for (int w = 0; w < kSkinnyWarps; ++w) v[w] = partial[(w * kTokenTiles + j) * 32 + lane];
#pragma unroll
    for (int w = 1; w < kSkinnyWarps; ++w) {
      v[0] = make_float4(v[0].x + v[w].x, v[0].y + v[w].y, v[0].z + v[w].z, v[0].w + v[w].w);
    }
    c[j][0] = v[0].x, c[j][1] = v[0].y, c[j][2] = v[0].z, c[j][3] = v[0].w;
  }
}

}  // namespace agentserve::kernels::cuda
