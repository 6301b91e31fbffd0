// The GPUs of this machine: device_memory.h in builds with CUDA.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <string>
#include <utility>

#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/cuda/cuda_memory.h"
#include "kvstore/transport/device_memory.h"

namespace agentserve::kvstore {
namespace {

std::string Hex(const char* bytes, size_t n) {
  std::string out;
  char text[3];
  for (size_t i = 0; i < n; ++i) {
    std::snprintf(text, sizeof(text), "%02x", static_cast<unsigned>(static_cast<unsigned char>(bytes[i])));
    out += text;
  }
  return out;
}

}  // namespace

std::vector<DeviceInfo> ListDevices(std::string* why_none) {
  std::string why = "this machine has no GPU";
  std::vector<DeviceInfo> out;
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    (void)cudaGetLastError();
    count = 0;
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
      why = "this machine has no GPU driver";
    } else if (error != cudaErrorNoDevice)
      why = base::StrCat("no GPU can be used: ", cudaGetErrorString(error));
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    if (p.major != 9 || p.minor != 0) {
      why = base::StrCat(p.name, " has compute capability ", p.major, ".", p.minor,
                         "; the kernels are built for 9.0 (Hopper)");
      continue;
    }
    out.push_back({i, p.name, Hex(p.uuid.bytes, sizeof(p.uuid.bytes)), p.totalGlobalMem});
  }
  if (out.empty() && why_none != nullptr) *why_none = why;
  return out;
}

absl::StatusOr<uint64_t> FreeDeviceMemory(int index) {
  AS_RETURN_IF_ERROR(cuda::Check(cudaSetDevice(index), "select the GPU"));
  size_t free = 0, total = 0;
  AS_RETURN_IF_ERROR(cuda::Check(cudaMemGetInfo(&free, &total), "free memory of the GPU"));
  return free;
}

absl::StatusOr<std::unique_ptr<BlockMemory>> NewDeviceMemory(int index, const engine::KvLayout& layout,
                                                             uint32_t num_blocks) {
  AS_ASSIGN_OR_RETURN(std::unique_ptr<cuda::CudaMemory> memory, cuda::CudaMemory::Make(index, layout, num_blocks));
  return memory;
}

}  // namespace agentserve::kvstore
