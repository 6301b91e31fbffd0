// Workloads by name, for command lines.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "tools/workload/generate.h"
#include "tools/workload/import.h"
#include "tools/workload/workload.h"

namespace agentserve::workload {

struct SourceOptions {
  // A generator's shape; coding, mooncake, azure-code, azure-conv, published-trajectories, published-ablation (files
  // below `data_dir`/traces); or rows:FILE.
  std::string name = "mix";
  std::string data_dir = "../shared/data";
  GenerateOptions generate;  // shape is set from the name
  CodingOptions coding;
  size_t most_requests = 0;  // of request traces; 0 = all
  double in_scale = 1, out_scale = 1;
  bool forget_outputs = false;
  bool characters = true;  // published trajectories: prompt sizes of the published run
};
absl::StatusOr<Workload> OpenWorkload(const SourceOptions& options);
// For help texts.
std::string WorkloadNames();

}  // namespace agentserve::workload
