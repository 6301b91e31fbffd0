#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/gemm/cublaslt.h"
#include "model/bench/ceilings_cuda.h"
#include "model/cuda/device.h"
#include "model/cuda/init_kernels.h"

namespace agentserve::model::cuda {

using kernels::cuda::LaunchContext;
using kernels::cuda::ToStatus;

namespace {

constexpr int kReadThreads = 512, kReadCtasPerSm = 2, kReadLoads = 8;

__device__ uint4 LoadOnce(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Reads [0, count) once; `out` takes a value that depends on all of it.
__global__ __launch_bounds__(kReadThreads) void ReadKernel(const uint4* from, size_t count, uint32_t* out) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  uint32_t mixed = 0;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + (kReadLoads - 1) * stride < count; i += kReadLoads * stride) {
    uint4 v[kReadLoads];
#pragma unroll
    for (int j = 0; j < kReadLoads; ++j) v[j] = LoadOnce(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < kReadLoads; ++j) mixed ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += stride) mixed ^= LoadOnce(from + i).x;
  if (mixed == 0x9e3779b9) *out = mixed;
}

// Milliseconds of each run of `work` after `warm` runs; ascending.
template <typename Work>
absl::StatusOr<std::vector<float>> TimeEach(int warm, int runs, Work work) {
  std::vector<cudaEvent_t> events(static_cast<size_t>(runs) + 1);
  for (cudaEvent_t& event : events) {
    if (absl::Status s = ToStatus(cudaEventCreate(&event), "timing"); !s.ok()) return s;
  }
  absl::Status status;
  for (int i = 0; i < warm && status.ok(); ++i) status = work();
  cudaEventRecord(events[0], nullptr);
  for (int i = 0; i < runs && status.ok(); ++i) {
    status = work();
    cudaEventRecord(events[static_cast<size_t>(i) + 1], nullptr);
  }
  status.Update(ToStatus(cudaDeviceSynchronize(), "timing"));
  std::vector<float> ms(static_cast<size_t>(runs));
  for (size_t i = 0; i < ms.size() && status.ok(); ++i) {
    status = ToStatus(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]), "timing");
  }
  for (cudaEvent_t event : events) cudaEventDestroy(event);
  if (!status.ok()) return status;
  std::sort(ms.begin(), ms.end());
  return ms;
}

}  // namespace

absl::StatusOr<double> ReadGbPerSecond(int device) {
  size_t free = 0, total = 0;
  int sms = 0;
  absl::Status status = ToStatus(cudaSetDevice(device), "choosing the GPU");
  status.Update(ToStatus(cudaMemGetInfo(&free, &total), "free memory"));
  status.Update(ToStatus(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "GPU properties"));
  if (!status.ok()) return status;
  const size_t bytes = std::min(size_t{4} << 30, free / 4) / 4096 * 4096;
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(bytes, "measuring the read rate");
  if (!buffer.ok()) return buffer.status();
  status = FillKv(device, buffer->data(), bytes);  // a buffer of zeros would be flattering
  if (!status.ok()) return status;
  const auto work = [&] {
    ReadKernel<<<sms * kReadCtasPerSm, kReadThreads>>>(reinterpret_cast<const uint4*>(buffer->data()),
                                                       bytes / sizeof(uint4),
                                                       reinterpret_cast<uint32_t*>(buffer->data()));
    return ToStatus(cudaGetLastError(), "measuring the read rate");
  };
  absl::StatusOr<std::vector<float>> ms = TimeEach(2, 10, work);
  if (!ms.ok()) return ms.status();
  return static_cast<double>(bytes) / 1e6 / ms->front();
}

absl::StatusOr<double> GemmTflops(int device) {
  if (!kernels::cuda::CublasLtAvailable()) return 0.0;
  constexpr int kSize = 8192;
  constexpr size_t kBytes = size_t{kSize} * kSize * sizeof(__nv_bfloat16);
  absl::Status status = ToStatus(cudaSetDevice(device), "choosing the GPU");
  if (!status.ok()) return status;
  absl::StatusOr<DeviceBuffer> buffer =
      DeviceBuffer::Allocate(3 * kBytes + kernels::cuda::kCublasLtWorkspaceBytes, "measuring matrix products");
  if (!buffer.ok()) return buffer.status();
  status = FillKv(device, buffer->data(), 2 * kBytes);
  if (!status.ok()) return status;
  kernels::cuda::CublasLtGemmParams p;
  p.x = reinterpret_cast<const __nv_bfloat16*>(buffer->data());
  p.w = reinterpret_cast<const __nv_bfloat16*>(buffer->data() + kBytes);
  p.y = reinterpret_cast<__nv_bfloat16*>(buffer->data() + 2 * kBytes);
  p.workspace = buffer->data() + 3 * kBytes;
  p.workspace_bytes = kernels::cuda::kCublasLtWorkspaceBytes;
  p.m = p.n = p.k = kSize;
  absl::StatusOr<std::vector<float>> ms = TimeEach(3, 11, [&] { return kernels::cuda::CublasLtGemm(p, nullptr); });
  if (!ms.ok()) return ms.status();
  return 2.0 * kSize * kSize * kSize / 1e9 / (*ms)[ms->size() / 2];
}

absl::Status FillKv(int device, std::byte* memory, size_t bytes) {
  absl::Status status = ToStatus(cudaSetDevice(device), "choosing the GPU");
  if (!status.ok()) return status;
  status = FillRandom(reinterpret_cast<__nv_bfloat16*>(memory), bytes / sizeof(__nv_bfloat16), 2.0f, 0.0f, 3,
                      LaunchContext{});
  status.Update(ToStatus(cudaDeviceSynchronize(), "filling a KV pool"));
  return status;
}

}  // namespace agentserve::model::cuda
