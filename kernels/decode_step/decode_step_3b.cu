#include "kernels/decode_step/step_launch.cuh"

namespace agentserve::kernels::cuda {

cudaError_t LaunchStep3B(const DecodeStepArgs& args, int grid, int shared_bytes, cudaStream_t stream) {
  return LaunchStepRows<3072, 8192, 128>(args, grid, shared_bytes, stream);
}

}  // namespace agentserve::kernels::cuda
