// Writes model folders with random weights: real shapes for benchmarks, small ones for tests.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace agentserve::model {

struct RandomModelOptions {
  ModelConfig config;
  uint64_t seed = 1;
  WeightDtype dtype = WeightDtype::kBf16;
  uint32_t shards = 1;  // above 1: model-0000i-of-0000n.safetensors and an index
};

// "1b" and "3b" are the shapes of Llama 3.2; "tiny" is a few hundred KB. INVALID_ARGUMENT names the known shapes.
absl::StatusOr<ModelConfig> NamedShape(const std::string& name);

// Creates `dir` if needed and writes config.json, generation_config.json and weights. Equal options give equal bytes.
// An error (no space, no permission) names the file.
absl::Status WriteRandomModel(const std::string& dir, const RandomModelOptions& options);

}  // namespace agentserve::model
