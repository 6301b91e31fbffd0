// The instances of the kernel, a file per shape.
#pragma once

#include "kernels/decode_step/decode_step_args.h"

namespace agentserve::kernels::cuda {

// Stages of the ring that fit and bytes of dynamic shared memory with them.
struct StepShape {
  int stages = 0, shared_bytes = 0;
};
StepShape StepShapeOf(int rows, int group, int head_dim);

cudaError_t LaunchStep1B(const DecodeStepArgs& args, int grid, int shared_bytes, cudaStream_t stream);
cudaError_t LaunchStep3B(const DecodeStepArgs& args, int grid, int shared_bytes, cudaStream_t stream);

}  // namespace agentserve::kernels::cuda
