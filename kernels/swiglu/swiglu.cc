#include "kernels/swiglu/swiglu.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/swiglu/swiglu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include "hwy/highway.h"
#include "kernels/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace agentserve::kernels::HWY_NAMESPACE {

void SwigluImpl(const SwigluParams& p) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  const VF most = hn::Set(d, 88.0f);  // exp stays finite; silu(-88) is below 1e-36
  for (size_t i = 0; i < p.n; i += kLanes) {
    const VF g = hn::LoadU(d, p.gate + i);
    const VF e = hn::Exp(d, hn::Min(hn::Neg(g), most));
    hn::StoreU(hn::Mul(hn::Div(g, hn::Add(one, e)), hn::LoadU(d, p.up + i)), d, p.gate + i);
  }
}

}  // namespace agentserve::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentserve::kernels {

HWY_EXPORT(SwigluImpl);

void Swiglu(const SwigluParams& params) { HWY_DYNAMIC_DISPATCH(SwigluImpl)(params); }

void SwigluReference(const SwigluParams& p) {
  for (size_t i = 0; i < p.n; ++i) {
    const double g = p.gate[i];
    p.gate[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * p.up[i]);
  }
}

}  // namespace agentserve::kernels
#endif
