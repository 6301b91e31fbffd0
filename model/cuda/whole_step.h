// Decode steps of few rows as one kernel (kernels/decode_step) instead of the chain in forward.cc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/kv_layout.h"
#include "kernels/decode_step/decode_step_cuda.h"
#include "model/config.h"
#include "model/cuda/device_weights.h"

namespace agentserve::model::cuda {

// Device memory that it takes; 0 for models it does not run.
size_t WholeStepBytes(const ModelConfig& config, int num_sms);

// Null where it cannot run: another shape of model, or a GPU that is shared by MPS. (All its blocks wait for each
// other, so all must be on the GPU at once; another process could hold some of the multiprocessors.)
absl::StatusOr<std::unique_ptr<kernels::cuda::DecodeStep>> MakeWholeStep(const ModelConfig& config,
                                                                         const DeviceWeights& weights,
                                                                         const engine::KvPoolView& pool,
                                                                         std::byte* memory, int num_sms,
                                                                         cudaStream_t stream);

}  // namespace agentserve::model::cuda
