// Running softmax on wgmma accumulators without a maximum per step.
//
// Each row keeps a reference r: the maximum over its first key tile. Probabilities are 2^(s - r) with s in log2 units
// and may exceed 1; bf16 has fp32's range, so only overflow matters. The row's partial sums tell: a step in which one
// of them passes kGrowthLimit moves r to the maximum so far and rescales, as the usual algorithm does at every step.
// All decisions are made per row from the row's own scores; a warp whose rows all stay (nearly always) skips the
// maxima, shuffles and rescaling.
#pragma once

#include <cstdint>

namespace agentserve::kernels::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kGrowthLimit = 4294967296.0f;  // 2^32

__device__ __forceinline__ float Exp2Unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x on the FMA pipe, for x = 252 y - 126 with y in [0, 1]: x is clamped to [-126, 126]. x = n + f with |f| <= 1/2,
// 2^f by a minimax cubic (relative error 7.5e-5, a 26th of half a bf16 ulp), n added to the exponent.
__device__ __forceinline__ float Exp2Polynomial(float y) {
  constexpr float kMagic = 12582912.0f - 126.0f;  // 1.5 * 2^23 - 126: the sum's low mantissa bits are n
  const float shifted = fmaf(y, 252.0f, kMagic);
  const float f = fmaf(y, 252.0f, -(shifted - kMagic));
  const float power = fmaf(fmaf(fmaf(0.05517167f, f, 0.24261112f), f, 0.69326099f), f, 0.99992807f);
  return __int_as_float(__float_as_int(power) + (__float_as_int(shifted) << 23));
}

__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two rows of a thread: half 0 is row l / 4 of the warp's 16, half 1 is + 8.
struct SoftmaxState {
  float reference[2];  // log2 units
  float sum[2];        // of this thread's columns
};

// Column groups (of 8 keys) whose powers are evaluated by polynomial: one of kPolyEvery, none if 0. Depends on the
// column only, so that it is the same for every row and chunking.
template <int kPolyEvery>
__device__ __forceinline__ constexpr bool ByPolynomial(int group) {
  if constexpr (kPolyEvery == 0) return false;
  return group % (kPolyEvery == 0 ? 1 : kPolyEvery) == (kPolyEvery == 0 ? 0 : kPolyEvery - 1);
}

// p = 2^(s scale - reference) packed as A operands, step sums in `sum`. With kMasked scores of -infinity give 0
// exactly.
template <int kN, int kPolyEvery, bool kMasked>
__device__ __forceinline__ void Powers(const float (&s)[kN / 2], float scale_log2, const float (&reference)[2],
                                       uint32_t (&p)[kN / 16][4], float (&sum)[2]) {
  const float poly_scale = scale_log2 * (1.0f / 252.0f);
  const float poly_offset[2] = {0.5f - reference[0] * (1.0f / 252.0f), 0.5f - reference[1] * (1.0f / 252.0f)};
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float score = s[4 * j + 2 * half + i];
        if (ByPolynomial<kPolyEvery>(j)) {
          x[i] = Exp2Polynomial(__saturatef(fmaf(score, poly_scale, poly_offset[half])));
          if (kMasked && score == -INFINITY) x[i] = 0;
        } else {
          x[i] = Exp2Unit(fmaf(score, scale_log2, -reference[half]));
        }
        sum[half] += x[i];
      }
      p[j / 2][j % 2 * 2 + half] = PackPair(x[0], x[1]);
    }
  }
}

// Sets the references of rows that are new (first) or have grown too much, and rescales their sums and outputs.
template <int kN, int kD>
__device__ __forceinline__ void MoveReference(const float (&s)[kN / 2], float scale_log2, bool first,
                                              const float (&step_sum)[2], SoftmaxState& state, float (&o)[kD / 2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = -INFINITY;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) most = fmaxf(most, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
    float peak = step_sum[half];
    // A quad shares two rows.
#pragma unroll
    for (int lane = 1; lane <= 2; lane *= 2) {
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lane));
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, lane));
    }
    if (!first && peak <= kGrowthLimit) continue;
    const float next = most * scale_log2;
    const float factor = first ? 0.0f : Exp2Unit(state.reference[half] - next);
    state.reference[half] = next;
    state.sum[half] *= factor;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      o[4 * n + 2 * half] *= factor;
      o[4 * n + 2 * half + 1] *= factor;
    }
  }
}

// One step: scores (masked ones -infinity) to probabilities. The caller guarantees that no wgmma in flight uses o or p.
template <int kN, int kD, int kPolyEvery, bool kMasked>
__device__ __forceinline__ void SoftmaxStep(const float (&s)[kN / 2], float scale_log2, bool first, SoftmaxState& state,
                                            uint32_t (&p)[kN / 16][4], float (&o)[kD / 2]) {
  float sum[2] = {0, 0};
  bool move = first;
  if (!first) {
    Powers<kN, kPolyEvery, kMasked>(s, scale_log2, state.reference, p, sum);
    move = __any_sync(0xffffffffu, !(fmaxf(sum[0], sum[1]) <= kGrowthLimit));
  }
  if (move) {
    MoveReference<kN, kD>(s, scale_log2, first, sum, state, o);
    Powers<kN, kPolyEvery, kMasked>(s, scale_log2, state.reference, p, sum);
  }
  state.sum[0] += sum[0];
  state.sum[1] += sum[1];
}

}  // namespace agentserve::kernels::cuda
