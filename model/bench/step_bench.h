// Times prefill and decode steps of a loaded model, beside the memory read bandwidth of the same machine.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "model/model.h"

namespace agentserve::model {

struct StepBenchOptions {
  uint32_t prompt_tokens = 512;
  uint32_t decode_tokens = 32;
  uint32_t batch = 1;
  uint32_t chunk_tokens = 512;
  int threads = 0;
};

struct StepBenchResult {
  double prefill_tokens_per_second = 0;
  double prefill_gflops = 0;
  double decode_ms_median = 0;  // per step
  double decode_ms_p95 = 0;
  double decode_tokens_per_second = 0;
  double decode_weight_gb_per_second = 0;  // weight bytes read per second of decode
  double memory_read_gb_per_second = 0;    // best of several passes over a buffer far larger than the caches
  double decode_bandwidth_percent = 0;
  std::string ToText() const;
  std::string ToJson() const;
};

absl::StatusOr<StepBenchResult> RunStepBench(Model& model, const StepBenchOptions& options);

}  // namespace agentserve::model
