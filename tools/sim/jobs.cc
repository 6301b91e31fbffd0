#include "tools/sim/jobs.h"

#include <algorithm>

namespace agentserve::sim {

double UnionLength(std::vector<std::pair<double, double>> intervals) {
  std::sort(intervals.begin(), intervals.end());
  double sum = 0, end = -1e300;
  for (const auto& [from, to] : intervals) {
    if (to <= end) continue;
    sum += to - std::max(from, end);
    end = to;
  }
  return sum;
}

namespace {

// Seconds of one call on an idle worker, client to client.
double AloneSeconds(const workload::Call& c, uint32_t cached, const StepModel& m, uint32_t step_tokens) {
  const Calibration& k = m.calibration();
  double ms = 2 * (k.client_ms + k.message_ms) + m.PrefillMs(c.in - std::min(cached, c.in - 1), cached, step_tokens);
  if (c.out > 1) {
    const double steps = c.out - 1;
    ms += steps * (m.DecodeBaseMs(1) + m.ContextMs(1) * (c.in + c.out / 2.0));
  }
  return ms / 1000;
}

// Decode of a token against prefill of one, at a batch of 32: what the router's cost unit means on this hardware.
double CallCost(const workload::Call& c, uint32_t cached, const StepModel& m, uint32_t step_tokens) {
  const double prefill_token = m.PrefillMs(8192, 0, step_tokens) / 8192;
  const double context = c.in + c.out / 2.0;
  const double decode = c.out * (m.DecodeBaseMs(32) / 32 + m.ContextMs(32) * context);
  return c.in - std::min(cached, c.in - 1) + decode / prefill_token;
}

}  // namespace

ProgramPlan MakePlan(const workload::Workload& w, uint32_t program, const StepModel& model, uint32_t step_tokens,
                     uint32_t block_tokens, double wait_scale) {
  const workload::Program& p = w.programs[program];
  ProgramPlan plan;
  plan.calls.resize(p.calls.size());
  std::vector<double> end(p.calls.size(), 0);
  std::vector<double> job_start;
  std::vector<std::vector<std::pair<double, double>>> intervals;
  for (uint32_t i = 0; i < p.calls.size(); ++i) {
    const workload::Call& c = p.calls[i];
    ProgramPlan::CallPlan& cp = plan.calls[i];
    double ready = 0;
    for (uint32_t d : c.wait_for) {
      plan.calls[d].dependents.push_back(i);
      ready = std::max(ready, end[d]);
      cp.job = std::max(cp.job, plan.calls[d].job);
    }
    if (i == 0 || c.user_turn) {
      cp.job = static_cast<uint32_t>(plan.jobs.size());
      plan.jobs.emplace_back();
      intervals.emplace_back();
      job_start.push_back(ready + wait_scale * c.wait_ms / 1000);
    }
    ProgramPlan::JobPlan& job = plan.jobs[cp.job];
    cp.step = static_cast<uint32_t>(intervals[cp.job].size());
    const uint32_t shared = c.ref != workload::kNone ? c.lcp : std::min(p.prefix_tokens, c.in);
    cp.bound_cached = std::min(shared, c.in - 1) / block_tokens * block_tokens;
    cp.cost = CallCost(c, cp.bound_cached, model, step_tokens);
    const double start = ready + wait_scale * c.wait_ms / 1000;
    end[i] = start + AloneSeconds(c, cp.bound_cached, model, step_tokens);
    intervals[cp.job].emplace_back(start, end[i]);
    job.out += c.out;
    if (c.background) continue;
    ++job.calls;
    job.alone_jct_s = std::max(job.alone_jct_s, end[i] - job_start[cp.job]);
  }
  for (size_t j = 0; j < plan.jobs.size(); ++j) plan.jobs[j].alone_serving_s = UnionLength(intervals[j]);
  std::vector<double> left(plan.jobs.size(), 0);
  for (size_t i = p.calls.size(); i-- > 0;) {
    left[plan.calls[i].job] += plan.calls[i].cost;
    plan.calls[i].remaining_cost = left[plan.calls[i].job];
  }
  return plan;
}

}  // namespace agentserve::sim
