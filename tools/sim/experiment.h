// Many runs: policies x loads x seeds of one workload, their means, the gap to the oracle, tables and JSON.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/sim/simulation.h"

namespace agentserve::sim {

// One row of an ablation. Text form: NAME[/inf][/full][/none][/layers=L1.L2][/KEY=VALUE]
//   inf      the workers' caches are infinite (an oracle)
//   full     clients tell true sizes; none: clients tell nothing
//   layers   of the agent policy; '.' stands for ',' ("all.-L7")
struct Variant {
  std::string text;
  std::string policy;
  bool infinite_cache = false;
  bool set_hints = false;
  Hints hints = Hints::kIds;
  std::string layers;
};
absl::StatusOr<Variant> ParseVariant(const std::string& text);
// "a,b,c"
absl::StatusOr<std::vector<Variant>> ParseVariants(const std::string& list);

struct Row {
  std::string variant;
  double load = 0;  // of the saturation; 0 = not by load
  double rate = 0;
  uint64_t seed = 0;  // 0 = mean over seeds
  Figures figures;
  double busy_share = 0, virtual_s = 0, wall_s = 0;
  uint64_t preemptions = 0, calls = 0, event_hash = 0;
  bool gave_up = false;
  // Share of the way from FIFO to the oracle in mean serving time; NaN where it is not defined.
  double gap_call_fifo = 0, gap_program_fifo = 0;
};

struct Experiment {
  std::vector<Variant> variants;
  std::vector<double> loads;  // empty: options.rate or the population as they are
  uint32_t seeds = 1;
  double saturation = 0;  // sessions a second; 0 = measure it when loads are given
  SimOptions options;
  std::function<void(const std::string& line)> say;  // progress
};

// The most sessions a second that FIFO sustains: closed loop, twice the population each time until the output rate
// grows by less than 3 %.
absl::StatusOr<double> MeasureSaturation(const workload::Workload& w, const Calibration& c, const SimOptions& base,
                                         const std::function<void(const std::string&)>& say);

struct ExperimentResult {
  double saturation = 0;
  std::vector<Row> runs;   // each
  std::vector<Row> means;  // over seeds, by load and variant
};
absl::StatusOr<ExperimentResult> RunExperiment(const workload::Workload& w, const Calibration& c, const Experiment& e);

std::string ResultTable(const ExperimentResult& r);
std::string ResultJson(const ExperimentResult& r, const workload::Workload& w, const Calibration& c,
                       const Experiment& e);
std::string ResultCsv(const ExperimentResult& r);

}  // namespace agentserve::sim
