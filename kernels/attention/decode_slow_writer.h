// A kernel that writes late: it lets the next kernel start at once, idles, and only then copies. For testing what
// decode attention reads before its wait.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct LateCopy {
  const void* from;  // device, 16-byte aligned
  void* to;
  int32_t bytes;  // multiple of 16
};
// `copies` is device memory.
cudaError_t LaunchSlowWriter(const LateCopy* copies, int count, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
