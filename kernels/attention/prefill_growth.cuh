// The rare part of the softmax of prefill attention: rows whose probabilities grew past kGrowthLimit within a step get
// a new reference. Their scores are computed once more, by the warp alone (mma.sync) from Q and K in shared memory, so
// that the usual path need not keep them. Whether a row takes this way, and its bits there, depend on the row alone.
#pragma once

#include "kernels/attention/prefill_softmax.cuh"
#include "kernels/tile/mma.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

// Where 16 bytes of a tile with the 128-byte swizzle lie; tiles are planes of 64 columns, plane_rows rows each.
__device__ __forceinline__ uint32_t SwizzledAt(uint32_t tile, int plane_rows, int row, int column) {
  return tile + column / 64 * (plane_rows * 128) + row * 128 + ((column % 64 / 8) ^ (row % 8)) * 16;
}

// Scores of the warp's 16 rows against keys [8 j, 8 j + 8), as c of MmaBf16; those past `limit` are -infinity.
template <typename C>
__device__ __forceinline__ void ScoresAgain(uint32_t q, uint32_t k, int j, const int (&limit)[2], float (&c)[4]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] = 0;
#pragma unroll 1
  for (int column = 0; column < C::kD; column += 16) {
    uint32_t a[4], b[2];
    LdMatrixX4(a, SwizzledAt(q, C::kM, row, column + lane / 16 * 8));
    LdMatrixX2(b, SwizzledAt(k, C::kN, 8 * j + lane % 8, column + lane / 8 % 2 * 8));
    MmaBf16(c, a, b[0], b[1]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (8 * j + i % 2 > limit[i / 2]) c[i] = -INFINITY;
  }
}

// `q`: the warpgroup's rows; `k`: the tile's keys; `sum`: what SoftmaxStep returned. Moves the references of the rows
// that grew, rescales their sums and outputs so far, and replaces their p and sum of this step.
template <typename C>
__device__ __forceinline__ void MoveReferences(uint32_t q, uint32_t k, float scale_log2, const int (&limit)[2],
                                               SoftmaxState& state, uint32_t (&p)[C::kN / 16][4], float (&sum)[2],
                                               float (&o)[C::kD / 2]) {
  float c[4], most[2] = {-INFINITY, -INFINITY}, factor[2];
#pragma unroll 1
  for (int j = 0; j < C::kN / 8; ++j) {
    ScoresAgain<C>(q, k, j, limit, c);
    most[0] = fmaxf(most[0], fmaxf(c[0], c[1]));
    most[1] = fmaxf(most[1], fmaxf(c[2], c[3]));
  }
  bool moves[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    moves[half] = QuadMax(sum[half]) > kGrowthLimit;
    const float highest = ceilf(QuadMax(most[half]) * scale_log2);  // all lanes take part
    const float next = moves[half] ? highest : state.reference[half];
    factor[half] = moves[half] ? Exp2Unit(state.reference[half] - next) : 1.0f;
    state.reference[half] = next;
    state.sum[half] *= factor[half];
    if (moves[half]) sum[half] = 0;
  }
#pragma unroll
  for (int i = 0; i < C::kD / 2; ++i) o[i] *= factor[i / 2 % 2];
#pragma unroll
  for (int j = 0; j < C::kN / 8; ++j) {
    ScoresAgain<C>(q, k, j, limit, c);
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float x0 = Exp2Unit(fmaf(c[2 * half], scale_log2, -state.reference[half]));
      const float x1 = Exp2Unit(fmaf(c[2 * half + 1], scale_log2, -state.reference[half]));
      sum[half] += moves[half] ? x0 + x1 : 0.0f;
      uint32_t& pair = p[j / 2][j % 2 * 2 + half];
      pair = moves[half] ? PackBf16(x0, x1) : pair;
    }
  }
}

}  // namespace agentserve::kernels::cuda
