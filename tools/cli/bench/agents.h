// Agent workloads against a running cluster, over its OpenAI gateway: what `agentserve sim` does in virtual time, live.
// One thread; one coroutine per call in flight.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "tools/cli/http/url.h"
#include "tools/sim/replay.h"
#include "tools/workload/arrivals.h"
#include "tools/workload/workload.h"

namespace agentserve::tools {

struct AgentsConfig {
  Url url;
  std::string model, api_key;
  workload::ArrivalKind arrivals = workload::ArrivalKind::kPoisson;
  double rate = 1;          // sessions a second
  uint32_t population = 8;  // closed
  double duration_s = 60, warmup_s = 10;
  double wait_scale = 1;      // of tool waits and think times
  uint32_t most_calls = 256;  // in flight; calls beyond it wait at the client
  double timeout_s = 300;
  bool hints = true;  // program, class, step and tool as headers
  uint64_t seed = 1;
};

struct AgentsProgress {
  double seconds = 0;
  size_t sessions = 0, in_flight = 0, waiting = 0, jobs = 0, failed = 0;
};

// Runs until all counted jobs have ended (or SIGINT). `token_pool`: ids of which prompts are made.
absl::StatusOr<sim::RunRecords> RunAgents(const AgentsConfig& config, const workload::Workload& w,
                                          const sim::StepModel& model, const std::vector<uint32_t>& token_pool,
                                          const std::function<void(const AgentsProgress&)>& on_progress);

}  // namespace agentserve::tools
