// What the device under a model can do at best, measured now: what step times are compared with.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "model/model.h"

namespace agentserve::model {

struct Ceilings {
  std::string device;
  double read_gb_per_second = 0;   // plain reading of a buffer far larger than the caches
  double bf16_tflops = 0;          // one large matrix product of cuBLASLt; 0 = not measured
  double sheet_gb_per_second = 0;  // of the data sheet; 0 = not known
  double sheet_bf16_tflops = 0;    // of the data sheet, dense; 0 = not known
  std::string ToText() const;
  std::string ToJson() const;
};

// `threads`: of the CPU backend; 0 = all.
absl::StatusOr<Ceilings> MeasureCeilings(const Model& model, int threads);

// Gives the memory of a KV pool values that attention can work with, so that decoding at any context can be timed
// without computing what comes before.
absl::Status FillKv(const Model& model, std::byte* memory, size_t bytes);

}  // namespace agentserve::model
