// Programs as the simulator and the live bench replay them: jobs (user turns) inside a session, who waits for whom, and
// how long a job would take alone.
#pragma once

#include <cstdint>
#include <vector>

#include "tools/sim/step_model.h"
#include "tools/workload/workload.h"

namespace agentserve::sim {

// What follows from a program's rows; shared by all its replays.
struct ProgramPlan {
  struct CallPlan {
    uint32_t job = 0;
    uint32_t step = 0;                    // in its job
    std::vector<uint32_t> dependents;     // calls that wait for it
    uint32_t bound_cached = 0;            // tokens an infinite cache would have
    double cost = 0, remaining_cost = 0;  // of the call; of it and all later calls of its job (prefilled tokens)
  };
  struct JobPlan {
    uint32_t calls = 0;      // foreground: the job ends with the last of them
    double alone_jct_s = 0;  // on an idle worker that still has the session's KV
    double alone_serving_s = 0;
    uint32_t out = 0;
  };
  std::vector<CallPlan> calls;
  std::vector<JobPlan> jobs;
};

ProgramPlan MakePlan(const workload::Workload& w, uint32_t program, const StepModel& model, uint32_t step_tokens,
                     uint32_t block_tokens, double wait_scale = 1);

// Total length of the union of [from, to) intervals.
double UnionLength(std::vector<std::pair<double, double>> intervals);

}  // namespace agentserve::sim
