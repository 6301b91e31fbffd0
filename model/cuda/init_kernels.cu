#include <cuda_bf16.h>

#include "kernels/cuda/pdl.cuh"
#include "model/cuda/init_kernels.h"

namespace agentserve::model::cuda {
namespace {

using kernels::cuda::LaunchContext;
using kernels::cuda::PdlTrigger;
using kernels::cuda::PdlWait;

constexpr int kThreads = 256;

__global__ void RopeTableKernel(const float* frequencies, uint32_t half, size_t n, __nv_bfloat16* cos_table,
                                __nv_bfloat16* sin_table) {
  PdlWait();
  PdlTrigger();
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float angle = __fmul_rn(static_cast<float>(i / half), frequencies[i % half]);
  double s, c;
  sincos(static_cast<double>(angle), &s, &c);
  cos_table[i] = __float2bfloat16_rn(static_cast<float>(c));
  sin_table[i] = __float2bfloat16_rn(static_cast<float>(s));
}

// SplitMix64's finaliser.
__device__ uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__global__ void RandomKernel(__nv_bfloat16* out, size_t n, float scale, float shift, uint64_t seed) {
  PdlWait();
  PdlTrigger();
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    const float unit = static_cast<float>(Mix(seed ^ Mix(i)) >> 40) * 0x1p-24f - 0.5f;
    out[i] = __float2bfloat16_rn(unit * scale + shift);
  }
}

constexpr size_t kPrefetchBytes = 4096;  // of one instruction

__global__ void PrefetchKernel(const std::byte* first, size_t first_bytes, const std::byte* second,
                               size_t second_bytes) {
  const size_t pieces_first = (first_bytes + kPrefetchBytes - 1) / kPrefetchBytes;
  const size_t pieces = pieces_first + (second_bytes + kPrefetchBytes - 1) / kPrefetchBytes;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  // Neighbouring blocks take neighbouring pieces, so that the front moves evenly over all channels.
  for (size_t i = size_t{threadIdx.x} * gridDim.x + blockIdx.x; i < pieces; i += stride) {
    const bool in_first = i < pieces_first;
    const size_t at = (in_first ? i : i - pieces_first) * kPrefetchBytes;
    const size_t left = (in_first ? first_bytes : second_bytes) - at;
    const uint32_t bytes = static_cast<uint32_t>(left < kPrefetchBytes ? left : kPrefetchBytes);
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"((in_first ? first : second) + at), "r"(bytes)
                 : "memory");
  }
}

constexpr int kReadThreads = 512, kReadUnroll = 8;

// Two blocks per SM, 8 loads of 16 bytes in flight per thread.
__global__ void __launch_bounds__(kReadThreads) ReadKernel(const uint4* from, size_t n, uint32_t* sink) {
  PdlWait();
  PdlTrigger();
  const size_t stride = size_t{gridDim.x} * kReadThreads;
  size_t i = size_t{blockIdx.x} * kReadThreads + threadIdx.x;
  uint32_t sum = 0;
  for (; i + (kReadUnroll - 1) * stride < n; i += kReadUnroll * stride) {
    uint4 v[kReadUnroll];
#pragma unroll
    for (int u = 0; u < kReadUnroll; ++u) v[u] = from[i + static_cast<size_t>(u) * stride];
#pragma unroll
    for (int u = 0; u < kReadUnroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < n; i += stride) sum += from[i].x ^ from[i].y ^ from[i].z ^ from[i].w;
  if (sum == 0x9e3779b9u) *sink = sum;  // keeps the loads
}

__global__ void WriteKernel(uint32_t* to) { *to = 1; }

}  // namespace

absl::Status FillRopeTable(const float* frequencies, uint32_t half, uint32_t positions, __nv_bfloat16* cos,
                           __nv_bfloat16* sin, const LaunchContext& context) {
  const size_t n = size_t{half} * positions;
  const dim3 grid(static_cast<unsigned>((n + kThreads - 1) / kThreads));
  return kernels::cuda::ToStatus(
      kernels::cuda::Launch(context, RopeTableKernel, grid, dim3(kThreads), 0, 1, frequencies, half, n, cos, sin),
      "RoPE table");
}

absl::Status FillRandom(__nv_bfloat16* out, size_t n, float scale, float shift, uint64_t seed,
                        const LaunchContext& context) {
  const dim3 grid(static_cast<unsigned>(context.num_sms * 8));
  return kernels::cuda::ToStatus(
      kernels::cuda::Launch(context, RandomKernel, grid, dim3(kThreads), 0, 1, out, n, scale, shift, seed),
      "random weights");
}

absl::Status PrefetchToL2(const std::byte* first, size_t first_bytes, const std::byte* second, size_t second_bytes,
                          const LaunchContext& context) {
  constexpr int kPrefetchThreads = 32;
  return kernels::cuda::ToStatus(
      kernels::cuda::Launch(context, PrefetchKernel, dim3(static_cast<unsigned>(context.num_sms)),
                            dim3(kPrefetchThreads), 0, 1, first, first_bytes, second, second_bytes),
      "prefetch");
}

absl::Status ReadAll(const std::byte* from, size_t n, uint32_t* sink, const LaunchContext& context) {
  const dim3 grid(static_cast<unsigned>(context.num_sms * 2));
  return kernels::cuda::ToStatus(kernels::cuda::Launch(context, ReadKernel, grid, dim3(kReadThreads), 0, 1,
                                                       reinterpret_cast<const uint4*>(from), n / sizeof(uint4), sink),
                                 "reading memory");
}

absl::Status WriteNowhere(const LaunchContext& context) {
  uint32_t* const nowhere = reinterpret_cast<uint32_t*>(uintptr_t{16});
  return kernels::cuda::ToStatus(kernels::cuda::Launch(context, WriteKernel, dim3(1), dim3(1), 0, 1, nowhere),
                                 "a write that fails");
}

}  // namespace agentserve::model::cuda
