// Synthetic agents: six shapes with heavy-tailed sizes, all from one seed. A program depends only on (options, its
// number), so a longer workload begins with the shorter one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/workload/workload.h"

namespace agentserve::workload {

struct GenerateOptions {
  // react, plan_execute, reflect, fanout, tree, chat; or "mix" = all of them, most of them ReAct.
  std::string shape = "mix";
  uint32_t programs = 1000;
  uint64_t seed = 1;
  uint32_t tenants = 4;
  // Share of the programs that tenant 0 sends; the others share the rest. 0 = equal shares.
  double heavy_tenant = 0;
  // Tool waits and think times are multiplied by this.
  double gap_scale = 1;
};

// Names of the shapes, "mix" last.
const std::vector<std::string>& Shapes();
absl::StatusOr<Workload> Generate(const GenerateOptions& options);

}  // namespace agentserve::workload
