// Launching the kernel for one shape.
#pragma once

#include "kernels/decode_step/decode_step_launch.h"
#include "kernels/decode_step/step_kernel.cuh"

namespace agentserve::kernels::cuda {

template <typename C>
cudaError_t LaunchStep(const DecodeStepArgs& args, int grid, int shared_bytes, cudaStream_t stream) {
  auto* kernel = DecodeStepKernel<C>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeCooperative;  // all blocks at once, or an error
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(kStepBlock);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <int kHidden, int kFfn, int kHeadDim>
cudaError_t LaunchStepRows(const DecodeStepArgs& args, int grid, int shared_bytes, cudaStream_t stream) {
  switch (args.step.rows) {
    case 1:
      return LaunchStep<StepConfig<1, kHidden, kFfn, kHeadDim>>(args, grid, shared_bytes, stream);
    case 2:
      return LaunchStep<StepConfig<2, kHidden, kFfn, kHeadDim>>(args, grid, shared_bytes, stream);
    case 4:
      return LaunchStep<StepConfig<4, kHidden, kFfn, kHeadDim>>(args, grid, shared_bytes, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace agentserve::kernels::cuda
