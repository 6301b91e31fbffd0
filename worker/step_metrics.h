// Prometheus figures of a worker's loop. Names and labels are equal for both roles; `role` tells them apart.
#pragma once

#include <string>

#include "base/clock.h"
#include "base/metrics.h"
#include "engine/batch.h"
#include "engine/block_pool.h"
#include "engine/planner.h"
#include "engine/worker_limits.h"

namespace agentserve::worker {

// Called by the loop thread only, a fixed number of times per step.
class StepMetrics {
 public:
  explicit StepMetrics(base::Metrics* metrics);

  void OnStep(const engine::PlannedStep& step, base::TimeNs started, base::TimeNs ended);
  // Copies the totals kept by the cores.
  void Update(const engine::PlannerStats& stats, const engine::Load& load, const engine::BlockPool& pool);
  void OnPrefill(base::TimeNs wait_ns, base::TimeNs prefill_ns);
  void OnFailure(const std::string& reason);
  // One line when something ran in the last 10 s.
  void LogThroughput(const engine::PlannerStats& stats, const engine::Load& load, base::TimeNs now);
  // Tokens per second of steps that were mostly prefill; 0 = not measured yet.
  double prefill_tokens_per_s() const { return prefill_rate_; }

 private:
  prometheus::Counter& FailureCounter(const std::string& reason);

  base::Metrics* const metrics_;
  prometheus::Histogram& step_seconds_;
  prometheus::Histogram& itl_seconds_;
  prometheus::Histogram& batch_size_;
  prometheus::Histogram& prefill_seconds_;
  prometheus::Histogram& prefill_wait_seconds_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& generated_tokens_;
  prometheus::Counter& computed_tokens_;
  prometheus::Counter& prefix_queries_;
  prometheus::Counter& prefix_hits_;
  prometheus::Counter& preemptions_;
  prometheus::Gauge& kv_use_;
  prometheus::Gauge& cached_blocks_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& waiting_tokens_;
  std::map<std::string, prometheus::Counter*> failures_;

  engine::PlannerStats last_;    // what the counters show
  engine::PlannerStats logged_;  // at the last throughput line
  base::TimeNs logged_at_ = 0;
  base::TimeNs last_decode_end_ = 0;  // 0 = the previous step had no decode
  double prefill_rate_ = 0;
};

}  // namespace agentserve::worker
