// The GPU side of ceilings.h.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentserve::model::cuda {

// Median of several products of 8192 x 8192 bf16 matrices with random values; 0 if cuBLASLt is not installed.
absl::StatusOr<double> GemmTflops(int device);
// Random bf16 values in [-1, 1).
absl::Status FillKv(int device, std::byte* memory, size_t bytes);

}  // namespace agentserve::model::cuda
