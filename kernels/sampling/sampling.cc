#include "kernels/sampling/sampling.h"

#include <cmath>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sampling/sampling.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include "hwy/highway.h"
#include "kernels/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace agentserve::kernels::HWY_NAMESPACE {

// Sixteen logits from i on, padded with -infinity; NaN becomes -infinity.
HWY_INLINE V16 LoadLogits(const float* p, size_t i, size_t n) {
  const float low = -std::numeric_limits<float>::infinity();
  float tail[16];
  const float* from = p + i;
  if (i + 16 > n) {
    for (size_t j = 0; j < 16; ++j) tail[j] = i + j < n ? from[j] : low;
    from = tail;
  }
  return Map(LoadF(from), [low](VF v) HWY_ATTR { return hn::IfThenElse(hn::IsNaN(v), hn::Set(DF(), low), v); });
}

float MaxImpl(const float* logits, size_t n) {
  V16 most = Splat(-std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < n; i += 16) most = Max(most, LoadLogits(logits, i, n));
  return ReduceMax(most);
}

float SumExpImpl(const float* logits, size_t n, float most, float scale) {
  const V16 minus = Splat(-most), scales = Splat(scale);
  V16 sums = Splat(0.0f);
  for (size_t i = 0; i < n; i += 16) {
    sums = Add(sums, ExpOf(Mul(Add(LoadLogits(logits, i, n), minus), scales)));
  }
  return ReduceSum(sums);
}

}  // namespace agentserve::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentserve::kernels {

HWY_EXPORT(MaxImpl);
HWY_EXPORT(SumExpImpl);

MaxLogit ArgMax(const float* logits, size_t n) {
  const float most = HWY_DYNAMIC_DISPATCH(MaxImpl)(logits, n);
  if (n == 0 || most == -std::numeric_limits<float>::infinity()) return {};
  size_t i = 0;
  while (!(logits[i] == most)) ++i;
  return {most, i, true};
}

float SumExp(const float* logits, size_t n, float most, float scale) {
  return HWY_DYNAMIC_DISPATCH(SumExpImpl)(logits, n, most, scale);
}

}  // namespace agentserve::kernels
#endif
