// Reductions over lanes, warps and blocks. All in a fixed order: the same inputs give the same bits.
#pragma once

#include <cstdint>

namespace agentserve::kernels::cuda {

struct SumOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct MaxOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over groups of kWidth neighbouring lanes (a power of two); every lane gets its group's result. All lanes take part.
template <int kWidth = 32, typename Op, typename T>
__device__ __forceinline__ T LaneReduce(T x, Op op) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
template <int kWidth = 32>
__device__ __forceinline__ float LaneSum(float x) {
  return LaneReduce<kWidth>(x, SumOp());
}
template <int kWidth = 32>
__device__ __forceinline__ float LaneMax(float x) {
  return LaneReduce<kWidth>(x, MaxOp());
}

// Over a block of kWarps full warps (one-dimensional); every thread gets the result. `scratch` is kWarps values of
// shared memory, free again after the next __syncthreads. Two block barriers less one: the caller separates two calls
// on the same scratch by a barrier.
template <int kWarps, typename Op, typename T>
__device__ __forceinline__ T BlockReduce(T x, T* scratch, Op op) {
  x = LaneReduce<32>(x, op);
  if constexpr (kWarps == 1) return x;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) scratch[warp] = x;
  __syncthreads();
  T total = scratch[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) total = op(total, scratch[i]);
  return total;
}
template <int kWarps>
__device__ __forceinline__ float BlockSum(float x, float* scratch) {
  return BlockReduce<kWarps>(x, scratch, SumOp());
}
template <int kWarps>
__device__ __forceinline__ float BlockMax(float x, float* scratch) {
  return BlockReduce<kWarps>(x, scratch, MaxOp());
}

// The largest value and the lowest index that has it.
struct Best {
  float value;
  int32_t index;
};
struct BestOp {
  __device__ __forceinline__ Best operator()(Best a, Best b) const {
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
  }
};
template <int kWidth = 32>
__device__ __forceinline__ Best LaneBest(Best x) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(0xffffffffu, x.value, offset), __shfl_xor_sync(0xffffffffu, x.index, offset)};
    x = BestOp()(x, other);
  }
  return x;
}

}  // namespace agentserve::kernels::cuda
