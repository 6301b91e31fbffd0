// Layer L1: which calls a decode worker takes while its KV pool is spoken for, after Denning's working sets. A worker's
// load is the KV of what runs there, plus that of idle programs still resident there times the probability that they
// come back soon (1 if their call is queued already). Newcomers (first calls, and returning ones whose KV is gone) wait
// while it is above `gate_close` of the pool and until it is below `gate_open`; calls whose KV is resident never do.
// Without it, programs evict each other's KV between their turns until every turn is a full prefill.
//
// What is resident is known without being told: workers evict what was used longest ago, so an idle program's KV is
// there as long as what was used since then fits beside it (its stack distance). Single-threaded, owned by the core.
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
  bool ready = false;  // its next call is queued
  std::string workflow_class, tool;
  GapSummary gaps;
};

class Gate {
 public:
  // At most as many programs as the program table has.
  void OnIdle(uint64_t program, WorkerId worker, IdleProgram idle);
  // Its next call came, or went without having run.
  void OnReady(uint64_t program, bool ready);
  // The call was handed out, or the program ended.
  void OnBack(uint64_t program);
  void OnWorkerGone(WorkerId worker);

  // Evaluates `w` and updates its `gated`.
  void Update(Worker* w, const AgentPolicyOptions& options, const ToolStats& tools, TimeNs now);
  // Whether the program's KV is (most likely) still on `w`, where it ran last.
  bool Resident(uint64_t program, const Worker& w) const;
  size_t size() const { return where_.size(); }
  void CheckInvariants() const;

 private:
  // The newest this many idle programs of a worker are looked at, so that an evaluation stays under 100 us.
  static constexpr size_t kMostLooked = 1024;
  // Sums over idle programs move slowly: they are taken again after this long, or when the worker's set changed by 1/8.
  static constexpr TimeNs kStale = 250 * base::kNsPerMs;
  struct PerWorker {
    std::map<uint64_t, IdleProgram> by_order;  // by order of becoming idle
    double back_soon_tokens = 0;
    TimeNs summed_at = -1;
    size_t changes = 0;
  };
  static double IdleRoom(const Worker& w);
  double BackSoon(PerWorker* p, const Worker& w, const AgentPolicyOptions& options, const ToolStats& tools,
                  TimeNs now) const;

  uint64_t next_ = 1;
  std::map<WorkerId, PerWorker> workers_;
  std::map<uint64_t, std::pair<WorkerId, uint64_t>> where_;  // program -> worker, order
};

}  // namespace agentserve::router
