// Problems with random operands on the GPU for the tests and the bench of Linear, and a slow reference in double.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda::testing {

inline void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA error: %s\n", cudaGetErrorString(error));
  std::fflush(stdout);
  std::_Exit(1);
}

// Device memory that frees itself.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) { Must(cudaMalloc(&data_, count * sizeof(T) + 256)); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
  ~DeviceArray() { cudaFree(data_); }
  T* get() const { return data_; }
  size_t size() const { return count_; }
  void FillBytes(int byte) { Must(cudaMemset(data_, byte, count_ * sizeof(T))); }
  void CopyFrom(const std::vector<T>& host) {
    Must(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};
using DeviceBf16 = DeviceArray<__nv_bfloat16>;

__device__ inline uint32_t Mix(uint64_t value) {
  value ^= value >> 33;
  value *= 0xff51afd7ed558ccdULL;
  value ^= value >> 33;
  value *= 0xc4ceb9fe1a85ec53ULL;
  return static_cast<uint32_t>(value >> 32);
}

// Sum of four uniforms: mean 0, deviation `scale`.
__global__ void RandomKernel(__nv_bfloat16* to, size_t count, uint64_t seed, float scale, float mean) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint32_t bits = Mix(i * 0x9e3779b97f4a7c15ULL + seed);
    const float sum = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24);
    to[i] = __float2bfloat16_rn((sum - 510.0f) / 147.8f * scale + mean);
  }
}
inline void FillRandom(const DeviceBf16& array, uint64_t seed, float scale, float mean = 0) {
  RandomKernel<<<1024, 256>>>(array.get(), array.size(), seed * 0x2545f4914f6cdd1dULL, scale, mean);
  Must(cudaGetLastError());
}

// product[m][n] = bf16(x w^T), summed in double.
__global__ void ReferenceProduct(const __nv_bfloat16* x, const __nv_bfloat16* w, __nv_bfloat16* product, int m, int n,
                                 int k) {
  __shared__ float xs[16][17], ws[16][17];
  const int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
  const int w_row = blockIdx.x * 16 + threadIdx.y;
  double sum = 0;
  for (int begin = 0; begin < k; begin += 16) {
    xs[threadIdx.y][threadIdx.x] = row < m ? __bfloat162float(x[size_t(row) * k + begin + threadIdx.x]) : 0.0f;
    ws[threadIdx.y][threadIdx.x] = w_row < n ? __bfloat162float(w[size_t(w_row) * k + begin + threadIdx.x]) : 0.0f;
    __syncthreads();
    for (int i = 0; i < 16; ++i) sum += double{xs[threadIdx.y][i]} * double{ws[threadIdx.x][i]};
    __syncthreads();
  }
  if (row < m && column < n) product[size_t(row) * n + column] = __double2bfloat16(sum);
}

__device__ inline double Bf16(double value) { return static_cast<double>(__bfloat162float(__double2bfloat16(value))); }

// The epilogues, one thread per row and output feature, every step in double and rounded as HF's eager bf16 does.
__global__ void ReferenceEpilogue(LinearParams p, const __nv_bfloat16* product) {
  const size_t row = blockIdx.y, columns = p.epilogue == LinearEpilogue::kSwiglu ? p.n / 2 : p.n;
  const size_t c = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  auto at = [&](size_t column) { return double{__bfloat162float(product[row * p.n + column])}; };
  if (p.epilogue == LinearEpilogue::kNone) p.y[row * p.n + c] = product[row * p.n + c];
  if (p.epilogue == LinearEpilogue::kResidual) {
    p.y[row * p.n + c] = __double2bfloat16(at(c) + double{__bfloat162float(p.residual[row * p.n + c])});
  }
  if (p.epilogue == LinearEpilogue::kSwiglu) {
    const double gate = at(c / 8 * 16 + c % 8), up = at(c / 8 * 16 + 8 + c % 8);
    p.y[row * columns + c] = __double2bfloat16(Bf16(gate / (1.0 + exp(-gate))) * up);
  }
  if (p.epilogue == LinearEpilogue::kQkv) {
    const PagedKv& kv = p.qkv.kv;
    const int dim = kv.head_dim, half = dim / 2, head = c / dim, e = c % dim, q_heads = p.qkv.q_heads;
    const int kv_heads = kv.kv_heads, pair = e % half;
    const size_t angle = size_t(p.qkv.positions[row]) * half + pair;
    const double cos = __bfloat162float(p.qkv.cos[angle]), sin = __bfloat162float(p.qkv.sin[angle]);
    const double other = e < half ? -at(c + half) : at(c - half);
    double value = at(c);
    if (head < q_heads + kv_heads) value = Bf16(value * cos) + Bf16(other * sin);
    if (head < q_heads) {
      p.y[row * q_heads * dim + c] = __double2bfloat16(value);
    } else if (p.qkv.slots[row] >= 0) {
      const uint32_t slot = p.qkv.slots[row];
      const bool is_k = head < q_heads + kv_heads;
      std::byte* at_head = kv.base + slot / kv.block_tokens * kv.block_bytes + (is_k ? kv.k_offset : kv.v_offset) +
                           (head - q_heads - (is_k ? 0 : kv_heads)) * kv.head_bytes;
      reinterpret_cast<__nv_bfloat16*>(at_head)[slot % kv.block_tokens * dim + e] = __double2bfloat16(value);
    }
  }
}

struct Difference {
  double error = 0, norm = 0;    // sums of squares
  unsigned long long wrong = 0;  // finite on one side only, or untouched values that changed
  unsigned long long different_bits = 0;
  double Relative() const;
};
inline double Difference::Relative() const { return norm > 0 ? sqrt(error / norm) : error; }

__global__ void CompareKernel(const __nv_bfloat16* got, const __nv_bfloat16* want, size_t count, Difference* out) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  double error = 0, norm = 0;
  unsigned long long wrong = 0, bits = 0;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const double a = __bfloat162float(got[i]), b = __bfloat162float(want[i]);
    bits += __bfloat16_as_ushort(got[i]) != __bfloat16_as_ushort(want[i]);
    if (isfinite(a) && isfinite(b)) {
      error += (a - b) * (a - b);
      norm += b * b;
    } else {
      wrong += __bfloat16_as_ushort(got[i]) != __bfloat16_as_ushort(want[i]);
    }
  }
  atomicAdd(&out->error, error);
  atomicAdd(&out->norm, norm);
  atomicAdd(&out->wrong, wrong);
  atomicAdd(&out->different_bits, bits);
}
inline Difference Compare(const DeviceBf16& got, const DeviceBf16& want) {
  DeviceArray<Difference> out(1);
  out.FillBytes(0);
  CompareKernel<<<264, 256>>>(got.get(), want.get(), got.size(), out.get());
  Difference difference;
  Must(cudaMemcpy(&difference, out.get(), sizeof(difference), cudaMemcpyDeviceToHost));
  return difference;
}

struct Shape {
  int m = 0, n = 0, k = 0;
  LinearEpilogue epilogue = LinearEpilogue::kNone;
  int head_dim = 64, q_heads = 0, kv_heads = 0;  // kQkv
};

// Operands of one call. Outputs have guard rows past m and start as NaN (all bits set), the KV pool too.
class Problem {
 public:
  static constexpr int kGuardRows = 40, kBlockTokens = 16, kPositions = 4096;

  Problem(const Shape& shape, uint64_t seed)
      : shape_(shape),
        x_(Count(shape.m, shape.k)),
        w_(Count(shape.n, shape.k)),
        residual_(Count(shape.m, shape.n)),
        y_(Count(shape.m + kGuardRows, shape.n)),
        cos_(Count(kPositions, shape.head_dim / 2)),
        sin_(Count(kPositions, shape.head_dim / 2)),
        positions_(shape.m),
        slots_(shape.m),
        pool_(PoolBytes() / 2) {
    FillRandom(x_, seed * 8 + 1, 1.0f);
    FillRandom(w_, seed * 8 + 2, 0.03f);
    FillRandom(residual_, seed * 8 + 3, 1.0f);
    FillRandom(cos_, seed * 8 + 4, 0.7f);
    FillRandom(sin_, seed * 8 + 5, 0.7f);
    std::vector<int32_t> positions(shape.m), slots(shape.m);
    const int last = Blocks() * kBlockTokens - 1;
    for (int i = 0; i < shape.m; ++i) {
      positions[i] = static_cast<int32_t>((i * 37 + seed * 11) % kPositions);
      slots[i] = i % 13 == 5 ? -1 : last - i;  // every slot once, up to the end of the pool
    }
    positions_.CopyFrom(positions);
    slots_.CopyFrom(slots);
    Poison();
  }

  LinearParams Params() const {
    LinearParams p;
    p.x = x_.get();
    p.w = w_.get();
    p.y = y_.get();
    p.residual = residual_.get();
    p.m = shape_.m;
    p.n = shape_.n;
    p.k = shape_.k;
    p.epilogue = shape_.epilogue;
    if (shape_.epilogue != LinearEpilogue::kQkv) return p;
    PagedKv& kv = p.qkv.kv;
    kv.head_dim = static_cast<uint32_t>(shape_.head_dim);
    kv.kv_heads = static_cast<uint32_t>(shape_.kv_heads);
    kv.block_tokens = kBlockTokens;
    kv.head_bytes = size_t{kBlockTokens} * kv.head_dim * 2;
    kv.block_bytes = BlockBytes();
    kv.k_offset = 2 * kv.kv_heads * kv.head_bytes;  // layer 1 of 2
    kv.v_offset = 3 * kv.kv_heads * kv.head_bytes;
    kv.base = reinterpret_cast<std::byte*>(pool_.get());
    p.qkv.cos = cos_.get();
    p.qkv.sin = sin_.get();
    p.qkv.positions = positions_.get();
    p.qkv.slots = slots_.get();
    p.qkv.q_heads = shape_.q_heads;
    return p;
  }
  // The same call into the y and the pool of `other`, which has the same shape.
  LinearParams ParamsInto(const Problem& other) const {
    LinearParams p = Params();
    p.y = other.y_.get();
    p.qkv.kv.base = reinterpret_cast<std::byte*>(other.pool_.get());
    return p;
  }
  void Poison() {
    y_.FillBytes(0xff);
    pool_.FillBytes(0xff);
  }
  const DeviceBf16& y() const { return y_; }
  const DeviceBf16& pool() const { return pool_; }

 private:
  static size_t Count(int rows, int columns) { return static_cast<size_t>(rows) * static_cast<size_t>(columns); }
  int Blocks() const { return (shape_.m + kBlockTokens - 1) / kBlockTokens + 1; }
  size_t BlockBytes() const { return size_t{4} * shape_.kv_heads * kBlockTokens * shape_.head_dim * 2; }
  size_t PoolBytes() const { return BlockBytes() * Blocks() + 256; }

  Shape shape_;
  DeviceBf16 x_, w_, residual_, y_, cos_, sin_;
  DeviceArray<int32_t> positions_, slots_;
  DeviceBf16 pool_;
};

// Runs the reference on `params` (outputs into its y and pool).
inline void RunReference(const LinearParams& params) {
  DeviceBf16 product(static_cast<size_t>(params.m) * params.n);
  ReferenceProduct<<<dim3((params.n + 15) / 16, (params.m + 15) / 16), dim3(16, 16)>>>(
      params.x, params.w, product.get(), params.m, params.n, params.k);
  ReferenceEpilogue<<<dim3((params.n + 255) / 256, params.m), 256>>>(params, product.get());
  Must(cudaGetLastError());
  Must(cudaDeviceSynchronize());
}

}  // namespace agentserve::kernels::cuda::testing
