// The command lines of `bench step` and `bench prefill`, for the agentserve program and for agentserve-bench-step.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace agentserve::model {

struct BenchProgram {
  std::string name;  // in messages and help
  // The model folder if neither --model nor --shape is given; empty = one of them must be.
  std::function<absl::StatusOr<std::string>()> default_model;
};

// argv[0] is ignored. Both return the exit code of the process.
int RunStepCommand(int argc, const char* const* argv, const BenchProgram& program);
int RunPrefillCommand(int argc, const char* const* argv, const BenchProgram& program);

}  // namespace agentserve::model
