// Layer L1: whether a decode worker takes calls of new programs. A worker's load is the KV of what runs there plus the
// KV of idle programs times the probability that they come back soon; new programs wait while it is above `gate_close`
// of the pool and until it is below `gate_open`. Calls whose KV is resident are never gated (ThunderAgent 2602.13692
// and SAGA pause programs at such boundaries). Single-threaded, owned by the core.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "router/core/agent_options.h"
#include "router/core/tool_stats.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

// A program between two calls, its KV (perhaps) still on a worker.
struct IdleProgram {
  uint32_t context_tokens = 0;
  TimeNs since = 0;
  std::string workflow_class, tool;
  GapSummary gaps;
};

class Gate {
 public:
  // At most as many programs as the program table has.
  void OnIdle(uint64_t program, WorkerId worker, IdleProgram idle);
  void OnBack(uint64_t program);
  void OnWorkerGone(WorkerId worker);

  // Evaluates `w` and updates its `gated`.
  void Update(Worker* w, const AgentPolicyOptions& options, const ToolStats& tools, TimeNs now);
  size_t size() const { return where_.size(); }
  void CheckInvariants() const;

 private:
  // The newest this many idle programs of a worker count: older ones are not back soon, and an evaluation stays
  // under 100 us.
  static constexpr size_t kMostLooked = 512;
  // Sums over idle programs move slowly: they are taken again after this long, or when the worker's set changed by 1/8.
  static constexpr TimeNs kStale = 250 * base::kNsPerMs;
  struct PerWorker {
    std::map<uint64_t, IdleProgram> by_order;  // by order of becoming idle
    double back_soon_tokens = 0;
    TimeNs summed_at = -1;
    size_t changes = 0;
  };
  double BackSoon(PerWorker* p, const AgentPolicyOptions& options, const ToolStats& tools, TimeNs now) const;

  uint64_t next_ = 1;
  std::map<WorkerId, PerWorker> workers_;
  std::map<uint64_t, std::pair<WorkerId, uint64_t>> where_;  // program -> worker, order
};

}  // namespace agentserve::router
