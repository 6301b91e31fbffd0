// Times decode steps over batch sizes and contexts, and prompts from end to end, as the worker's loop runs them (two
// steps in flight where the executor can), beside what the device can do at best.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/bench/ceilings.h"
#include "model/model.h"

namespace agentserve::model {

struct SweepOptions {
  std::vector<uint32_t> batches = {1};
  std::vector<uint32_t> contexts = {512};
  std::vector<uint32_t> prompts = {1024};
  uint32_t chunk_tokens = 8192;  // prompt tokens a step
  uint32_t steps = 48;           // decode steps per case
  uint32_t repeats = 5;          // runs of each prompt
  uint32_t block_tokens = 16;
};

// Of samples in milliseconds.
struct Spread {
  double median = 0, p95 = 0;
};
Spread SpreadOf(std::vector<double> ms);

struct DecodeFigures {
  uint32_t batch = 0, context = 0;
  std::string skipped;  // why; empty = measured
  Spread ms;            // from token to token, as served
  Spread alone_ms;      // one step at a time: planning, launch and return in full
  double step_gb = 0;   // weights and KV that a step must read
  double tokens_per_second() const { return ms.median > 0 ? batch * 1000.0 / ms.median : 0; }
  double gb_per_second() const { return ms.median > 0 ? step_gb * 1000.0 / ms.median : 0; }
};

struct PrefillFigures {
  uint32_t prompt = 0;
  std::string skipped;
  Spread ms;         // first launch to first token on the host
  double tflop = 0;  // of the matrices and of causal attention
  double tokens_per_second() const { return ms.median > 0 ? prompt * 1000.0 / ms.median : 0; }
  double tflops() const { return ms.median > 0 ? tflop * 1000.0 / ms.median : 0; }
};

// Every batch with every context. A case that does not fit the device's memory is skipped, with the reason.
absl::StatusOr<std::vector<DecodeFigures>> SweepDecode(Model& model, const SweepOptions& options);
absl::StatusOr<std::vector<PrefillFigures>> SweepPrefill(Model& model, const SweepOptions& options);

std::string DecodeTable(const std::vector<DecodeFigures>& figures, const Ceilings& ceilings);
std::string PrefillTable(const std::vector<PrefillFigures>& figures, const Ceilings& ceilings);
// One JSON object per line.
std::string DecodeJson(const std::vector<DecodeFigures>& figures, const Ceilings& ceilings);
std::string PrefillJson(const std::vector<PrefillFigures>& figures, const Ceilings& ceilings);

}  // namespace agentserve::model
