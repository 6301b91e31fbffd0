// A model's weights in device memory, arranged for the kernels.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cuda/device.h"
#include "model/model.h"
#include "model/weights.h"

namespace agentserve::model::cuda {

// Row-major [out][in].
struct DeviceLayer {
  __nv_bfloat16* input_norm = nullptr;  // [hidden]
  __nv_bfloat16* qkv = nullptr;         // rows q, then k, then v
  __nv_bfloat16* o = nullptr;           // [hidden][q_size]
  __nv_bfloat16* post_norm = nullptr;   // [hidden]
  __nv_bfloat16* gate_up = nullptr;     // 8 rows of gate, 8 rows of up, and so on: [2 * intermediate][hidden]
  __nv_bfloat16* down = nullptr;        // [hidden][intermediate]
};

struct DeviceWeights {
  __nv_bfloat16* embedding = nullptr;  // [vocab][hidden]
  __nv_bfloat16* lm_head = nullptr;    // equals `embedding` if tied
  __nv_bfloat16* final_norm = nullptr;
  __nv_bfloat16* cos = nullptr;  // [max_position][head_dim / 2]
  __nv_bfloat16* sin = nullptr;
  float* frequencies = nullptr;  // [head_dim / 2]
  std::vector<DeviceLayer> layers;
  DeviceBuffer memory;
};

// Rows of gate and of up that alternate in gate_up (the SwiGLU epilogue of kernels/gemm/linear_cuda.h).
inline constexpr uint32_t kGateUpGroup = 8;

uint64_t DeviceWeightBytes(const ModelConfig& config);

// How long the phases of making weights ready took, seconds, and bytes copied.
struct UploadTimes {
  double allocate = 0, copy = 0, tables = 0;
  uint64_t bytes = 0;
  int threads = 0;
};

// Copies host weights to the current device: several threads read the files (not through the mapping: page faults cost
// more than the copy) into page-locked memory from which the copy engine takes them.
absl::StatusOr<DeviceWeights> UploadWeights(const Weights& weights, const ModelConfig& config, int threads,
                                            const std::function<void(const LoadProgress&)>& progress,
                                            UploadTimes* times);

// Random weights of the same arrangement, made on the device: for benchmarks without files.
absl::StatusOr<DeviceWeights> RandomWeights(const ModelConfig& config, uint64_t seed);

}  // namespace agentserve::model::cuda
