// Values of single logits in the sampling kernel: order-preserving keys, penalties, the random draw.
//
// A key sorts ascending where the logit sorts descending. A bf16 logit has a 16-bit key; an adjusted logit is fp32 and
// has a 32-bit key whose upper half is the 16-bit key of its truncation, so the two orders agree.
#pragma once

#include <cstdint>

#include "kernels/sampling/sampling_cuda.h"

namespace agentserve::kernels::cuda {

inline constexpr uint32_t kInfinityKey16 = 0x007f, kInfinityKey32 = 0x007fffff;
inline constexpr uint32_t kNoKey = 0xffffffff;

// Keys of finite logits are [0x80, 0xff80); below are NaN and +infinity, above -infinity and NaN.
__device__ __forceinline__ bool IsFiniteKey16(uint32_t key) { return key - 0x80u < 0xff00u; }

__device__ __forceinline__ uint32_t Key16(uint32_t bf16_bits) {
  if (bf16_bits == 0x8000u) bf16_bits = 0;  // -0 and +0 are equals
  return (bf16_bits & 0x8000u) != 0 ? bf16_bits : bf16_bits ^ 0x7fffu;
}
// The 32-bit key of a logit that is exactly the bf16 with this key.
__device__ __forceinline__ uint32_t WidenKey(uint32_t key16) {
  return key16 << 16 | ((key16 & 0x8000u) != 0 ? 0u : 0xffffu);
}
__device__ __forceinline__ float ValueOfKey(uint32_t key32) {
  return __uint_as_float((key32 & 0x80000000u) != 0 ? key32 : key32 ^ 0x7fffffffu);
}
// kNoKey for NaN and -infinity, which are never chosen.
__device__ __forceinline__ uint32_t Key32(float x) {
  if (!(x > -INFINITY)) return kNoKey;
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));  // -0 becomes +0
  return (bits & 0x80000000u) != 0 ? bits : bits ^ 0x7fffffffu;
}

// A candidate in the order of sampling: by logit descending, then id ascending; smaller comes first.
__device__ __forceinline__ uint64_t MakeItem(uint32_t key32, uint32_t id) {
  return static_cast<uint64_t>(key32) << 32 | id;
}
inline constexpr uint64_t kNoItem = ~uint64_t{0};

// Sampler::Adjust for one logit, rounding for rounding.
__device__ __forceinline__ float Adjust(const SamplingRow& row, const LogitEdit& edit, float logit) {
  if ((edit.flags & kEditMasked) != 0) return -INFINITY;
  if ((edit.flags & kEditSeen) != 0) {
    logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty) : __fmul_rn(logit, row.repetition_penalty);
    if (edit.output > 0) {
      const float often = __fmul_rn(row.frequency_penalty, static_cast<float>(edit.output));
      logit = __fsub_rn(logit, __fadd_rn(row.presence_penalty, often));
    }
  }
  return __fadd_rn(logit, edit.bias);
}

// base::UniformAt: Philox4x32-10 with the seed as key and the position as counter, 53 bits.
__device__ inline double UniformAt(uint64_t seed, uint64_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t bits = static_cast<uint64_t>(c0) << 32 | c1;
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace agentserve::kernels::cuda
