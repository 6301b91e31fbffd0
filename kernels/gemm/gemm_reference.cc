#include <cmath>

#include "kernels/bf16/bf16.h"
#include "kernels/gemm/gemm.h"

namespace agentserve::kernels {
namespace {

float Dot(const float* x, const uint16_t* w, size_t k) {
  float lane[16] = {};
  for (size_t s = 0; s < k; s += 32) {
    for (size_t odd = 0; odd < 2; ++odd) {
      for (size_t i = 0; i < 16; ++i) {
        const size_t at = s + 2 * i + odd;
        if (at < k) lane[i] = std::fma(Bf16ToFloat(w[at]), x[at], lane[i]);
      }
    }
  }
  for (size_t half = 8; half >= 4; half /= 2) {
    for (size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

}  // namespace

void GemmReference(const GemmParams& params) {
  for (const GemmOutput& out : params.outputs) {
    for (size_t m = 0; m < params.m; ++m) {
      for (size_t n = 0; n < out.n; ++n) {
        const float dot = Dot(params.x + m * params.ldx, out.w + n * params.k, params.k);
        float& y = out.y[m * out.ldy + n];
        y = out.add ? y + dot : dot;
      }
    }
  }
}

}  // namespace agentserve::kernels
