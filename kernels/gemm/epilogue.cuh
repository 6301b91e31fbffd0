// Arithmetic of the linear epilogues with the roundings of Hugging Face's eager bf16 Llama, shared by the fused kernels
// and the separate elementwise ones, so that both give the same bits.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_kv.h"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

__device__ __forceinline__ float2 UnpackBf16(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// bf16(bf16(silu(gate)) * up) before its last rounding; gate and up are bf16 values.
__device__ __forceinline__ float SwigluProduct(float gate, float up) {
  return RoundBf16(__fdividef(gate, 1.0f + __expf(-gate))) * up;
}

// The pair (c, c + d / 2) of a head, bf16 values, rotated; before the last rounding of each.
__device__ __forceinline__ float2 Rotate(float low, float high, float cos, float sin) {
  return make_float2(RoundBf16(low * cos) + RoundBf16(-high * sin), RoundBf16(high * cos) + RoundBf16(low * sin));
}

// Row of `slot` (>= 0) in head `head`; offset is the pool's k_offset or v_offset.
__device__ __forceinline__ __nv_bfloat16* KvRow(const PagedKv& kv, int slot, size_t offset, int head) {
  const uint32_t block = static_cast<uint32_t>(slot) / kv.block_tokens;
  const uint32_t row = static_cast<uint32_t>(slot) - block * kv.block_tokens;
  return reinterpret_cast<__nv_bfloat16*>(kv.base + block * kv.block_bytes + offset + head * kv.head_bytes) +
         static_cast<size_t>(row) * kv.head_dim;
}

}  // namespace agentserve::kernels::cuda
