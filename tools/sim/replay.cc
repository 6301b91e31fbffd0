#include "tools/sim/replay.h"

#include "base/check.h"
#include "base/rng.h"
#include "base/strings.h"

namespace agentserve::sim {
namespace {

double Seconds(TimeNs ns) { return static_cast<double>(ns) / 1e9; }

}  // namespace

Replay::Replay(const workload::Workload* w, const StepModel* model, const Options& options)
    : w_(*w), model_(*model), o_(options), tenants_(w->tenants) {
  if (o_.tenants > 0) {
    tenants_.clear();
    for (uint32_t t = 0; t < o_.tenants; ++t) tenants_.push_back(base::StrCat("tenant-", t));
  }
  records_.tenant_asked.assign(tenants_.size(), 0);
  records_.window_from_s = Seconds(o_.count_from);
  records_.window_to_s = Seconds(o_.count_to);
}

const ProgramPlan& Replay::PlanOf(uint32_t program) {
  const auto [it, fresh] = plans_.try_emplace(program);
  if (fresh) it->second = MakePlan(w_, program, model_, o_.step_tokens, o_.block_tokens, o_.wait_scale);
  return it->second;
}

uint64_t Replay::Start(uint32_t program, uint64_t instance, TimeNs now) {
  const workload::Program& p = w_.programs[program];
  const uint64_t number = next_session_++;
  Session& s = sessions_[number];
  s.number = number;
  s.program = program;
  s.instance = instance;
  s.tenant = p.tenant;
  if (o_.tenants > 0) s.tenant = static_cast<uint16_t>(base::SplitMix64(number * 2 + 1).Next() % o_.tenants);
  s.plan = &PlanOf(program);
  s.calls_left = static_cast<uint32_t>(p.calls.size());
  s.waits.resize(p.calls.size());
  s.jobs.resize(s.plan->jobs.size());
  for (size_t j = 0; j < s.jobs.size(); ++j) s.jobs[j].left = s.plan->jobs[j].calls;
  for (uint32_t c = 0; c < p.calls.size(); ++c) {
    s.waits[c] = static_cast<uint32_t>(p.calls[c].wait_for.size());
    if (s.waits[c] > 0) continue;
    ready_.push_back({now + static_cast<TimeNs>(p.calls[c].wait_ms * o_.wait_scale * 1e6), number, c});
  }
  return number;
}

void Replay::Sent(uint64_t number, uint32_t call, TimeNs now) {
  Session& s = sessions_.at(number);
  Session::Job& job = s.jobs[s.plan->calls[call].job];
  if (job.start < 0) {
    job.start = now;
    job.counted = now >= o_.count_from && now < o_.count_to;
    counted_open_ += job.counted && job.left > 0;
  }
  if (job.in_flight++ == 0) job.busy_since = now;
  if (now >= o_.count_from && now < o_.count_to) {
    records_.tenant_asked[s.tenant] += w_.programs[s.program].calls[call].out;
  }
}

void Replay::EndJob(const Session& s, uint32_t j, TimeNs now) {
  const Session::Job& job = s.jobs[j];
  const ProgramPlan::JobPlan& plan = s.plan->jobs[j];
  ++jobs_done_;
  if (now >= o_.count_from && now < o_.count_to) ++records_.window_jobs;
  if (!job.counted) return;
  --counted_open_;
  JobRecord r;
  r.workflow = w_.programs[s.program].workflow;
  r.tenant = s.tenant;
  r.start_s = Seconds(job.start);
  r.jct_s = Seconds(now - job.start);
  r.serving_s = Seconds(job.busy + (job.in_flight > 0 ? now - job.busy_since : 0));
  r.alone_jct_s = plan.alone_jct_s;
  r.alone_serving_s = plan.alone_serving_s;
  r.calls = plan.calls;
  r.out = plan.out;
  records_.jobs.push_back(r);
}

bool Replay::Ended(uint64_t number, uint32_t call, const Outcome& outcome, TimeNs now) {
  Session& s = sessions_.at(number);
  const workload::Program& p = w_.programs[s.program];
  const ProgramPlan::CallPlan& plan = s.plan->calls[call];
  const workload::Call& c = p.calls[call];
  Session::Job& job = s.jobs[plan.job];
  AS_CHECK_GT(job.in_flight, 0u);
  if (--job.in_flight == 0) job.busy += now - job.busy_since;
  CallRecord r;
  r.workflow = p.workflow;
  r.tenant = s.tenant;
  r.label = c.label;
  r.ttft_s = static_cast<float>(outcome.ttft_s);
  r.e2e_s = static_cast<float>(outcome.e2e_s);
  r.queue_s = static_cast<float>(outcome.queue_s);
  if (c.out > 1) r.tpot_ms = static_cast<float>((outcome.e2e_s - outcome.ttft_s) * 1000 / (c.out - 1));
  r.in = c.in;
  r.out = c.out;
  r.cached = outcome.cached;
  r.bound_cached = plan.bound_cached;
  r.end_s = Seconds(now);
  r.measured = job.counted && outcome.ok;
  if (outcome.ok) {
    records_.calls.push_back(r);
  } else {
    ++records_.failed;
  }
  if (!c.background && --job.left == 0) EndJob(s, plan.job, now);
  for (uint32_t d : plan.dependents) {
    if (--s.waits[d] > 0) continue;
    ready_.push_back({now + static_cast<TimeNs>(p.calls[d].wait_ms * o_.wait_scale * 1e6), number, d});
  }
  if (--s.calls_left > 0) return false;
  sessions_.erase(number);
  return true;
}

}  // namespace agentserve::sim
