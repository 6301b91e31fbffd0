#include <string>

#include "kernels/cuda/pdl.cuh"
#include "kernels/rmsnorm/rmsnorm_cuda.h"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kWarpRowThreads = 128;  // four rows a block
constexpr int kMaxBlockThreads = 1024;
// From here on one warp per row has enough rows to fill the GPU; below, a whole block shortens the row's way.
constexpr int kWarpRowsMin = 1024;

// Inputs and outputs of this size do not fit into L2 together: what is written then leaves it first. (Smaller outputs
// are still there when the next kernel reads them.)
constexpr size_t kStreamBytes = size_t{100} << 20;

// s = bf16(x + delta), eight at once.
__device__ __forceinline__ uint4 AddRounded(uint4 x, uint4 delta) {
  float a[8], b[8];
  Unpack8(x, a);
  Unpack8(delta, b);
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] += b[i];
  return Pack8(a);
}

__device__ __forceinline__ float SumSquares(uint4 v, float sum) {
  float x[8];
  Unpack8(v, x);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(x[i], x[i], sum);
  return sum;
}

// bf16(w * bf16(x * scale)): the two roundings of LlamaRMSNorm.
__device__ __forceinline__ uint4 ScaleRounded(uint4 v, uint4 weight, float scale) {
  float x[8], w[8];
  Unpack8(v, x);
  Unpack8(weight, w);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] *= scale;
  Unpack8(Pack8(x), x);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] *= w[i];
  return Pack8(x);
}

// Many rows: one warp a row, n = 256 * kVectors. The row stays in registers between the two uses; with all its loads in
// flight at once a few warps an SM cover the latency of memory.
template <int kVectors, bool kDelta, bool kStream>
__global__ __launch_bounds__(kWarpRowThreads) void WarpRowKernel(const RmsNormParams p) {
  PdlWait();
  PdlTrigger();
  const auto store = [](__nv_bfloat16* to, uint4 v) {
    if constexpr (kStream) {
      __stcs(reinterpret_cast<uint4*>(to), v);
    } else {
      Store16(to, v);
    }
  };
  const int row = blockIdx.x * (kWarpRowThreads / 32) + static_cast<int>(threadIdx.x / 32);
  if (row >= p.rows) return;
  const size_t at = static_cast<size_t>(row) * p.n + threadIdx.x % 32 * 8;
  uint4 x[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) x[i] = LoadStreamCoherent16(p.x + at + i * 256);
  if constexpr (kDelta) {
    uint4 delta[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) delta[i] = LoadStreamCoherent16(p.delta + at + i * 256);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      x[i] = AddRounded(x[i], delta[i]);
      store(p.sum + at + i * 256, x[i]);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) sum = SumSquares(x[i], sum);
  const float scale = rsqrtf(LaneSum(sum) / static_cast<float>(p.n) + p.eps);
  const __nv_bfloat16* weight = p.weight + threadIdx.x % 32 * 8;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store(p.y + at + i * 256, ScaleRounded(x[i], LoadConstant16(weight + i * 256), scale));
  }
}

// Few rows, or any n: one block a row, kVectors vectors a thread. The weight is on its way before the kernel waits for
// its predecessor.
template <int kVectors>
__global__ __launch_bounds__(kMaxBlockThreads) void BlockRowKernel(const RmsNormParams p) {
  __shared__ float partial[kMaxBlockThreads / 32];
  uint4 weight[kVectors], x[kVectors];
  const int vectors = p.n / 8;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = static_cast<int>(i * blockDim.x + threadIdx.x);
    if (v < vectors) weight[i] = LoadConstant16(p.weight + v * 8);
  }
  PdlWait();
  PdlTrigger();
  const size_t at = static_cast<size_t>(blockIdx.x) * p.n;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = static_cast<int>(i * blockDim.x + threadIdx.x);
    if (v >= vectors) continue;
    x[i] = Load16(p.x + at + v * 8);
    if (p.delta != nullptr) {
      x[i] = AddRounded(x[i], Load16(p.delta + at + v * 8));
      Store16(p.sum + at + v * 8, x[i]);
    }
    sum = SumSquares(x[i], sum);
  }
  sum = LaneSum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float total = LaneSum(lane < static_cast<int>(blockDim.x / 32) ? partial[lane] : 0.0f);
  const float scale = rsqrtf(total / static_cast<float>(p.n) + p.eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = static_cast<int>(i * blockDim.x + threadIdx.x);
    if (v < vectors) Store16(p.y + at + v * 8, ScaleRounded(x[i], weight[i], scale));
  }
}

template <int kVectors, bool kDelta>
cudaError_t LaunchWarpRows(const RmsNormParams& p, const LaunchContext& context) {
  constexpr int kRows = kWarpRowThreads / 32;
  const bool stream = static_cast<size_t>(p.rows) * p.n * (kDelta ? 8 : 4) > kStreamBytes;
  return Launch(context, stream ? WarpRowKernel<kVectors, kDelta, true> : WarpRowKernel<kVectors, kDelta, false>,
                dim3((p.rows + kRows - 1) / kRows), dim3(kWarpRowThreads), 0, 1, p);
}

cudaError_t LaunchBlockRows(const RmsNormParams& p, const LaunchContext& context) {
  const int vectors = p.n / 8;
  const int threads = vectors > kMaxBlockThreads ? kMaxBlockThreads : (vectors + 31) / 32 * 32;
  return Launch(context, vectors > kMaxBlockThreads ? BlockRowKernel<2> : BlockRowKernel<1>, dim3(p.rows),
                dim3(threads), 0, 1, p);
}

}  // namespace

absl::Status RmsNorm(const RmsNormParams& p, const LaunchContext& context) {
  if (p.rows == 0) return absl::OkStatus();
  if (p.rows < 0 || p.n <= 0 || p.n % 64 != 0 || p.n > 16384 || (p.delta != nullptr && p.sum == nullptr)) {
    return absl::InvalidArgumentError("RmsNorm: rows " + std::to_string(p.rows) + ", n " + std::to_string(p.n) +
                                      ": n must be a multiple of 64, at most 16384, and delta needs sum");
  }
  const bool warp_rows = p.rows >= kWarpRowsMin && !p.invariant;
  cudaError_t error;
  if (warp_rows && p.n == 2048) {
    error = p.delta != nullptr ? LaunchWarpRows<8, true>(p, context) : LaunchWarpRows<8, false>(p, context);
  } else if (warp_rows && p.n == 3072) {
    error = p.delta != nullptr ? LaunchWarpRows<12, true>(p, context) : LaunchWarpRows<12, false>(p, context);
  } else {
    error = LaunchBlockRows(p, context);
  }
  return ToStatus(error, "rmsnorm");
}

}  // namespace agentserve::kernels::cuda
