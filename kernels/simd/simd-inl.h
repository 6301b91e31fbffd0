// Sixteen virtual float lanes, whatever the register width: one AVX-512 register, two AVX2, four 128-bit, sixteen
// scalars. Every reduction in kernels/ keeps one partial sum per virtual lane, in ascending order of index, and folds
// the lanes in one fixed tree. So AVX2 and AVX-512 (and any target with fused multiply-add) give the same bits. Targets
// without it (the scalar fallback) round the product first and differ in the last bits.
//
// Included once per target by hwy/foreach_target.h.
#if defined(AGENTSERVE_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AGENTSERVE_KERNELS_SIMD_INL_H_
#undef AGENTSERVE_KERNELS_SIMD_INL_H_
#else
#define AGENTSERVE_KERNELS_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
// After highway.h, which sets the target:
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace agentserve::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr size_t kVirtualLanes = 16;
using DF = hn::CappedTag<float, kVirtualLanes>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
inline constexpr size_t kLanes = hn::MaxLanes(DF());
inline constexpr int kParts = static_cast<int>(kVirtualLanes / kLanes);

// P registers that together hold P * kLanes lanes, lowest lanes in `lo`.
template <int P>
struct Lanes {
  Lanes<P / 2> lo, hi;
};
template <>
struct Lanes<1> {
  VF v;
};
using V16 = Lanes<kParts>;

template <int P = kParts>
HWY_INLINE Lanes<P> Splat(float x) {
  if constexpr (P == 1) {
    return {hn::Set(DF(), x)};
  } else {
    return {Splat<P / 2>(x), Splat<P / 2>(x)};
  }
}
template <int P = kParts>
HWY_INLINE Lanes<P> LoadF(const float* p) {
  if constexpr (P == 1) {
    return {hn::LoadU(DF(), p)};
  } else {
    return {LoadF<P / 2>(p), LoadF<P / 2>(p + P / 2 * kLanes)};
  }
}
template <int P>
HWY_INLINE void StoreF(const Lanes<P>& x, float* p) {
  if constexpr (P == 1) {
    hn::StoreU(x.v, DF(), p);
  } else {
    StoreF(x.lo, p);
    StoreF(x.hi, p + P / 2 * kLanes);
  }
}

// Applies `op` to each register.
template <int P, class Op>
HWY_INLINE Lanes<P> Map(const Lanes<P>& a, Op op) {
  if constexpr (P == 1) {
    return {op(a.v)};
  } else {
    return {Map(a.lo, op), Map(a.hi, op)};
  }
}
template <int P, class Op>
HWY_INLINE Lanes<P> Map(const Lanes<P>& a, const Lanes<P>& b, Op op) {
  if constexpr (P == 1) {
    return {op(a.v, b.v)};
  } else {
    return {Map(a.lo, b.lo, op), Map(a.hi, b.hi, op)};
  }
}
template <int P>
HWY_INLINE Lanes<P> Add(const Lanes<P>& a, const Lanes<P>& b) {
  return Map(a, b, [](VF x, VF y) HWY_ATTR { return hn::Add(x, y); });
}
template <int P>
HWY_INLINE Lanes<P> Mul(const Lanes<P>& a, const Lanes<P>& b) {
  return Map(a, b, [](VF x, VF y) HWY_ATTR { return hn::Mul(x, y); });
}
template <int P>
HWY_INLINE Lanes<P> Max(const Lanes<P>& a, const Lanes<P>& b) {
  return Map(a, b, [](VF x, VF y) HWY_ATTR { return hn::Max(x, y); });
}
// a * b + c, one rounding.
template <int P>
HWY_INLINE Lanes<P> Fma(const Lanes<P>& a, const Lanes<P>& b, const Lanes<P>& c) {
  if constexpr (P == 1) {
    return {hn::MulAdd(a.v, b.v, c.v)};
  } else {
    return {Fma(a.lo, b.lo, c.lo), Fma(a.hi, b.hi, c.hi)};
  }
}
template <int P>
HWY_INLINE Lanes<P> ExpOf(const Lanes<P>& a) {
  return Map(a, [](VF x) HWY_ATTR { return hn::Exp(DF(), x); });
}

// Sum of all lanes by halves: lane i + lane i+8, then +4, +2, +1.
template <class D>
HWY_INLINE float FoldSum(D d, hn::Vec<D> v) {
#if HWY_TARGET == HWY_SCALAR
  (void)d;
  return hn::GetLane(v);  // one lane a register: ReduceSum has walked the whole tree
#else
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return FoldSum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    static_assert(hn::MaxLanes(D()) == 4);
    float t[4];
    hn::StoreU(v, d, t);
    return (t[0] + t[2]) + (t[1] + t[3]);
  }
#endif
}
template <int P>
HWY_INLINE float ReduceSum(const Lanes<P>& a) {
  if constexpr (P == 1) {
    return FoldSum(DF(), a.v);
  } else {
    return ReduceSum(Add(a.lo, a.hi));
  }
}
template <int P>
HWY_INLINE float ReduceMax(const Lanes<P>& a) {
  if constexpr (P == 1) {
    return hn::GetLane(hn::MaxOfLanes(DF(), a.v));
  } else {
    return ReduceMax(Max(a.lo, a.hi));
  }
}

// bf16 pairs as 16 words: word i holds element 2i in its low half and 2i+1 in its high half.
template <bool kOdd, int P = kParts>
HWY_INLINE Lanes<P> LoadBf16Half(const uint16_t* p) {
  if constexpr (P == 1) {
    const auto u = hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(p));
    if constexpr (kOdd) {
      return {hn::BitCast(DF(), hn::And(u, hn::Set(DU(), 0xffff0000u)))};
    } else {
      return {hn::BitCast(DF(), hn::ShiftLeft<16>(u))};
    }
  } else {
    return {LoadBf16Half<kOdd, P / 2>(p), LoadBf16Half<kOdd, P / 2>(p + P * kLanes)};
  }
}
// Sixteen consecutive bf16 values, in order.
template <int P = kParts>
HWY_INLINE Lanes<P> LoadBf16(const uint16_t* p) {
  if constexpr (P == 1) {
    const hn::Rebind<uint16_t, DF> d16;
    return {hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(d16, p))))};
  } else {
    return {LoadBf16<P / 2>(p), LoadBf16<P / 2>(p + P / 2 * kLanes)};
  }
}

}  // namespace agentserve::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
