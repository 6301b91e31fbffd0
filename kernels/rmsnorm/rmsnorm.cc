#include "kernels/rmsnorm/rmsnorm.h"

#include <cmath>

#include "kernels/bf16/bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rmsnorm/rmsnorm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include "hwy/highway.h"
#include "kernels/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace agentserve::kernels::HWY_NAMESPACE {

void RmsNormImpl(const RmsNormParams& p) {
  for (size_t row = 0; row < p.rows; ++row) {
    float* x = p.x + row * p.n;
    V16 squares = Splat(0.0f);
    for (size_t i = 0; i < p.n; i += 16) {
      V16 v = LoadF(x + i);
      if (p.delta != nullptr) {
        v = Add(v, LoadF(p.delta + row * p.n + i));
        StoreF(v, x + i);
      }
      squares = Fma(v, v, squares);
    }
    const float scale = 1.0f / std::sqrt(ReduceSum(squares) / static_cast<float>(p.n) + p.eps);
    const V16 scales = Splat(scale);
    float* y = p.y + row * p.n;
    for (size_t i = 0; i < p.n; i += 16) StoreF(Mul(LoadBf16(p.weight + i), Mul(LoadF(x + i), scales)), y + i);
  }
}

}  // namespace agentserve::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentserve::kernels {

HWY_EXPORT(RmsNormImpl);

void RmsNorm(const RmsNormParams& params) { HWY_DYNAMIC_DISPATCH(RmsNormImpl)(params); }

void RmsNormReference(const RmsNormParams& p) {
  for (size_t row = 0; row < p.rows; ++row) {
    float* x = p.x + row * p.n;
    double sum = 0;
    for (size_t i = 0; i < p.n; ++i) {
      if (p.delta != nullptr) x[i] += p.delta[row * p.n + i];
      sum += double{x[i]} * x[i];
    }
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(p.n) + p.eps);
    for (size_t i = 0; i < p.n; ++i) {
      p.y[row * p.n + i] = static_cast<float>(Bf16ToFloat(p.weight[i]) * (x[i] * scale));
    }
  }
}

}  // namespace agentserve::kernels
#endif
