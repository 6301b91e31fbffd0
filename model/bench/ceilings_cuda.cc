#include "model/bench/ceilings_cuda.h"

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/gemm/cublaslt.h"
#include "model/cuda/device.h"
#include "model/cuda/init_kernels.h"

namespace agentserve::model::cuda {

using kernels::cuda::LaunchContext;
using kernels::cuda::ToStatus;

namespace {

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
