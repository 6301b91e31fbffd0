// Step times over batch sizes, contexts, prompt chunks and mixtures of them: the points that a simulator of this
// machine interpolates between. One step at a time: from the plan to the sampled tokens on the host.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"

namespace agentserve::model {

struct CalibrateOptions {
  std::vector<uint32_t> batches, contexts, chunks, prefixes;
  uint32_t steps = 24;   // timed steps of a decode or mixed case
  uint32_t repeats = 5;  // timed runs of a chunk
  uint32_t block_tokens = 16;
  std::function<void(const std::string&)> say;  // progress; may be empty
};

struct StepPoint {
  uint32_t decodes = 0, context = 0, chunk = 0, prefix = 0;
  double ms = 0, p95 = 0;
};

struct CalibrateFigures {
  std::vector<StepPoint> decode, prefill, mixed;
  std::vector<std::string> skipped;  // cases that do not fit, with the reason
};

absl::StatusOr<CalibrateFigures> MeasureSteps(Model& model, const CalibrateOptions& options);

// What the bench commands load: a folder, or random weights of a named shape on a GPU.
struct BenchModel {
  std::string dir, shape, device = "cpu";
  int threads = 0;
  uint32_t max_sequences = 1, max_step_tokens = 512;
};
absl::StatusOr<std::unique_ptr<Model>> LoadBenchModel(const BenchModel& m);

}  // namespace agentserve::model
