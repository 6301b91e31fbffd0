// Running softmax on wgmma accumulators without a maximum per step.
//
// Each row keeps a reference r: the maximum over its first 128 keys, rounded up to an integer. Probabilities are 2^(s -
// r) with s in log2 units and may exceed 1; bf16 has fp32's range, so only overflow matters. The row's partial sums
// tell: columns in which one of them passes kGrowthLimit move r to their maximum and rescale what came before, as the
// usual algorithm does at every step. The factor is a power of two, so rescaling is exact. All decisions are made per
// row from the row's own scores; a warp whose rows all stay (nearly always) skips the maxima, shuffles and rescaling.
#pragma once

#include <cstdint>

#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kGrowthLimit = 4294967296.0f;  // 2^32

__device__ __forceinline__ float Exp2Unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two rows of a thread: half 0 is row l / 4 of the warp's 16, half 1 is + 8.
struct SoftmaxState {
  float reference[2];  // log2 units
  float sum[2];        // of this thread's columns
};

// p = 2^(s scale - reference) packed as A operands, their sums in `sum`. A score of -infinity gives 0.
template <int kN>
__device__ __forceinline__ void Powers(const float (&s)[kN / 2], float scale_log2, const float (&reference)[2],
                                       uint32_t (&p)[kN / 16][4], float (&sum)[2]) {
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i] = Exp2Unit(fmaf(s[4 * j + 2 * half + i], scale_log2, -reference[half]));
        sum[half] += x[i];
      }
      p[j / 2][j % 2 * 2 + half] = PackBf16(x[0], x[1]);
    }
  }
}

// Scores at columns (8 j + 2 t + i, for lane t of a quad) past limit[half] become -infinity.
template <int kN>
__device__ __forceinline__ void MaskScores(float (&s)[kN / 2], const int (&limit)[2]) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * j + i % 2 > limit[i / 2]) s[4 * j + i] = -INFINITY;
    }
  }
}

// Largest of the four lanes that share a row.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// The reference for a row's scores, known to its quad.
template <int kN>
__device__ __forceinline__ float RowReference(const float (&s)[kN / 2], int half, float scale_log2) {
  float most = -INFINITY;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) most = fmaxf(most, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
  return ceilf(QuadMax(most) * scale_log2);
}

// Moves the references of the rows whose sums show too much growth; rescales their sums and outputs.
template <int kN, int kD>
__device__ __forceinline__ void MoveReference(const float (&s)[kN / 2], float scale_log2, const float (&step_sum)[2],
                                              SoftmaxState& state, float (&o)[kD / 2]) {
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float peak = QuadMax(step_sum[half]);
    const float most = RowReference<kN>(s, half, scale_log2);
    const float next = peak > kGrowthLimit ? most : state.reference[half];
    factor[half] = peak > kGrowthLimit ? Exp2Unit(state.reference[half] - next) : 1.0f;
    state.reference[half] = next;
    state.sum[half] *= factor[half];
  }
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) o[i] *= factor[i / 2 % 2];
}

// One step: scores to probabilities; with `masked`, columns past `limit` count nothing. The caller guarantees that no
// wgmma in flight uses o or p. `first` is the step of key 0, which every row sees: its maximum is finite.
template <int kN, int kD>
__device__ __forceinline__ void SoftmaxStep(float (&s)[kN / 2], float scale_log2, bool first, bool masked,
                                            const int (&limit)[2], SoftmaxState& state, uint32_t (&p)[kN / 16][4],
                                            float (&o)[kD / 2]) {
  if (masked) MaskScores<kN>(s, limit);
  if (first) {
    state.reference[0] = RowReference<kN>(s, 0, scale_log2);
    state.reference[1] = RowReference<kN>(s, 1, scale_log2);
  }
  float sum[2];
  while (true) {
    Powers<kN>(s, scale_log2, state.reference, p, sum);
    // After a move every sum is at most kN: no third turn. (NaN compares false.)
    if (!__any_sync(0xffffffffu, fmaxf(sum[0], sum[1]) > kGrowthLimit)) break;
    MoveReference<kN, kD>(s, scale_log2, sum, state, o);
  }
  state.sum[0] += sum[0];
  state.sum[1] += sum[1];
}

}  // namespace agentserve::kernels::cuda
