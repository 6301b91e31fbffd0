#include "kernels/attention/decode_slow_writer.h"
#include "kernels/cuda/pdl.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

__global__ void SlowWriterKernel(const LateCopy* copies, int count) {
  PdlWait();
  PdlTrigger();
  for (int i = 0; i < 40; ++i) __nanosleep(500);
  for (int c = blockIdx.x; c < count; c += gridDim.x) {
    const char* from = static_cast<const char*>(copies[c].from);
    char* to = static_cast<char*>(copies[c].to);
    for (int b = threadIdx.x * 16; b < copies[c].bytes; b += blockDim.x * 16) Store16(to + b, Load16(from + b));
  }
}

}  // namespace

cudaError_t LaunchSlowWriter(const LateCopy* copies, int count, const LaunchContext& context) {
  return Launch(context, SlowWriterKernel, dim3(16), dim3(64), 0, 1, copies, count);
}

}  // namespace agentserve::kernels::cuda
