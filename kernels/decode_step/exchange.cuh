// How blocks of a running kernel hand each other small rows: through memory that holds kNothing (all bits set) in every
// word until it is written. A reader loads the words themselves until none is kNothing: no flag, no fence, one trip
// through the L2. The conversions and sums of these kernels never make kNothing: as bf16 pair and as fp32 it is a NaN,
// and results that are NaN are the canonical ones (0x7fff, 0x7fffffff).
#pragma once

#include <cstdint>

namespace agentserve::kernels::cuda {

inline constexpr uint32_t kNothing = 0xffffffffu;

__device__ __forceinline__ void Publish(void* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void Publish(void* p, float2 v) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(v.x), "f"(v.y) : "memory");
}

__device__ __forceinline__ void Look(const void* p, uint32_t& v) {
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
}
__device__ __forceinline__ void Look(const void* p, float2& v) {
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
}
__device__ __forceinline__ bool Missing(uint32_t v) { return v == kNothing; }
__device__ __forceinline__ bool Missing(float2 v) {
  return __float_as_uint(v.x) == kNothing || __float_as_uint(v.y) == kNothing;
}

// Looks again until all of `v`, which was looked at before, is there. Traps after seconds: an error the host sees
// instead of a GPU that hangs.
template <typename T>
__device__ __forceinline__ void Await(const void* p, T& v) {
  if (!Missing(v)) return;
  const long long start = clock64();
  do {
    Look(p, v);
    if (clock64() - start > 4'000'000'000LL) __trap();
  } while (Missing(v));
}

}  // namespace agentserve::kernels::cuda
