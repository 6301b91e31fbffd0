// y = x * W^T with bf16 weights as they lie in a checkpoint, fp32 activations and fp32 accumulation.
//
// Each y[m][n] is one dot product over k: sixteen partial sums (virtual lane i takes the elements 32s + 2i, then 32s +
// 2i+1, for ascending s), folded in the fixed tree of simd-inl.h. So a row's result depends on that row and W alone:
// never on m, on tiling, on the number of threads, or on the register width of targets with fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/parallel/thread_pool.h"

namespace agentserve::kernels {

// One weight matrix of a group that shares its input.
struct GemmOutput {
  const uint16_t* w = nullptr;  // [n][k] bf16, any alignment to 2 bytes
  size_t n = 0;
  float* y = nullptr;  // [m][n], row stride ldy
  size_t ldy = 0;
  bool add = false;  // y += result (a residual) instead of y = result
};

struct GemmParams {
  const float* x = nullptr;  // [m][k], row stride ldx
  size_t ldx = 0;
  size_t m = 0;  // >= 1
  size_t k = 0;  // >= 1
  std::span<const GemmOutput> outputs;
};

// Scratch kept between calls so that steps do not allocate. One per caller.
struct GemmWorkspace {
  std::vector<float> packed_x;
  std::vector<std::vector<float>> partials;  // one per thread
};

// y must not overlap x.
void Gemm(const GemmParams& params, ThreadPool& pool, GemmWorkspace& workspace);

// The same numbers from plain scalar code with std::fma, for tests.
void GemmReference(const GemmParams& params);

}  // namespace agentserve::kernels
