#include <string>

#include "kernels/cuda/pdl.cuh"
#include "kernels/rmsnorm/rmsnorm_cuda.h"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kWarpRowThreads = 128;  // four rows a block
constexpr int kMaxBlockThreads = 1024;
// The kernel after this one is let in at once, but for few rows: measured slower there.
constexpr unsigned kFewRows = 16;
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
  const bool early = gridDim.x > kFewRows;
  if (early) PdlTrigger();
  uint4 weight[kVectors], x[kVectors];
  const int vectors = p.n / 8;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int v = static_cast<int>(i * blockDim.x + threadIdx.x);
    if (v < vectors) weight[i] = LoadConstant16(p.weight + v * 8);
  }
  PdlWait();
  if (!early) PdlTrigger();
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

// One block a row, four columns a thread, all partial sums of a batch in flight at once.
__global__ __launch_bounds__(kMaxBlockThreads) void PartialRowKernel(const RmsNormParams p) {
  constexpr int kBatch = 8;
  __shared__ float partial[kMaxBlockThreads / 32];
  PdlTrigger();
  const int column = static_cast<int>(threadIdx.x) * 4;
  const uint2 weight = __ldg(reinterpret_cast<const uint2*>(p.weight + column));
  PdlWait();
  const size_t at = static_cast<size_t>(blockIdx.x) * p.n + column;
  const uint2 residual = *reinterpret_cast<const uint2*>(p.x + at);
  float4 delta = {0, 0, 0, 0};
  for (int first = 0; first < p.splits; first += kBatch) {
    float4 parts[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= p.splits) continue;
      parts[i] = __ldcg(reinterpret_cast<const float4*>(p.partials + at + size_t(first + i) * p.rows * p.n));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= p.splits) continue;
      delta = {delta.x + parts[i].x, delta.y + parts[i].y, delta.z + parts[i].z, delta.w + parts[i].w};
    }
  }
  uint2 s;
  s.x = PackBf16(Bf16Low(residual.x) + RoundBf16(delta.x), Bf16High(residual.x) + RoundBf16(delta.y));
  s.y = PackBf16(Bf16Low(residual.y) + RoundBf16(delta.z), Bf16High(residual.y) + RoundBf16(delta.w));
  *reinterpret_cast<uint2*>(p.sum + at) = s;
  const float x[4] = {Bf16Low(s.x), Bf16High(s.x), Bf16Low(s.y), Bf16High(s.y)};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum = fmaf(x[i], x[i], sum);
  sum = LaneSum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float total = LaneSum(lane < static_cast<int>(blockDim.x / 32) ? partial[lane] : 0.0f);
  const float scale = rsqrtf(total / static_cast<float>(p.n) + p.eps);
  uint2 y;
  y.x = PackBf16(RoundBf16(x[0] * scale) * Bf16Low(weight.x), RoundBf16(x[1] * scale) * Bf16High(weight.x));
  y.y = PackBf16(RoundBf16(x[2] * scale) * Bf16Low(weight.y), RoundBf16(x[3] * scale) * Bf16High(weight.y));
  *reinterpret_cast<uint2*>(p.y + at) = y;
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
  if (p.partials != nullptr) {
    if (p.n % 128 != 0 || p.n > kMaxPartialColumns || p.delta != nullptr || p.sum == nullptr || p.splits < 1 ||
        p.splits > kMaxPartials) {
      return absl::InvalidArgumentError("RmsNorm: partial sums need n a multiple of 128, at most 4096, and sum");
    }
    return ToStatus(Launch(context, PartialRowKernel, dim3(p.rows), dim3(p.n / 4), 0, 1, p), "rmsnorm");
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
