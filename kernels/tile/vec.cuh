// Moving 16-byte vectors and converting bf16: the smallest pieces of a memory-bound kernel.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace agentserve::kernels::cuda {

// Address in the shared window, as the asm forms want it.
__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes of global memory (16-byte aligned). Load: coherent, for anything an earlier kernel wrote. LoadConstant: for
// data no kernel in flight writes (weights, tables). LoadStream: the same, read once, so it does not stay in L1.
__device__ __forceinline__ uint4 Load16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ uint4 LoadConstant16(const void* p) { return __ldg(static_cast<const uint4*>(p)); }
__device__ __forceinline__ uint4 LoadStream16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// The same for data that earlier kernels wrote (no read-only path).
__device__ __forceinline__ uint4 LoadStreamCoherent16(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void Store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

// Asynchronous copies of 16 bytes, global -> shared, past L1. A commit closes a group; CpAsyncWait<N> returns when all
// but the N youngest groups of this thread have landed (then a barrier shows them to the other threads).
__device__ __forceinline__ void CpAsync16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
// Reads nothing and writes zeros where `valid` is false.
__device__ __forceinline__ void CpAsync16OrZero(uint32_t shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CpAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void CpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two bf16 in one register, the first in the low half. bf16 -> fp32 is exact: the bits move up by 16.
__device__ __forceinline__ float Bf16Low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float Bf16High(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
// Rounds to nearest even, one instruction.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// One bf16 rounding of an fp32 value, kept as fp32.
__device__ __forceinline__ float RoundBf16(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

// Eight bf16 of a 16-byte vector as fp32, and back with one rounding each.
__device__ __forceinline__ void Unpack8(uint4 v, float (&x)[8]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = Bf16Low(words[i]);
    x[2 * i + 1] = Bf16High(words[i]);
  }
}
__device__ __forceinline__ uint4 Pack8(const float (&x)[8]) {
  return make_uint4(PackBf16(x[0], x[1]), PackBf16(x[2], x[3]), PackBf16(x[4], x[5]), PackBf16(x[6], x[7]));
}

}  // namespace agentserve::kernels::cuda
