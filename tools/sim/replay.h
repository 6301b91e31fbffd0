// The clients of a workload: which call of which session is sent when, and what came of it. Pure and stepped, so that
// the simulator and the live bench share it: times come in, calls to send come out.
//
// Closed loop: a call becomes ready `wait` after all calls that it waits for have really ended.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "tools/sim/jobs.h"
#include "tools/sim/metrics.h"
#include "tools/workload/workload.h"

namespace agentserve::sim {

using base::TimeNs;

class Replay {
 public:
  struct Options {
    // Jobs that start in [count_from, count_to) are counted.
    TimeNs count_from = 0, count_to = 0;
    uint32_t block_tokens = 16;
    uint32_t step_tokens = 2048;  // for the time a job would take alone
    uint32_t tenants = 0;         // > 0: sessions are dealt to so many tenants instead of the workload's own
    double wait_scale = 1;        // of tool waits and think times
  };
  struct Ready {
    TimeNs at = 0;
    uint64_t session = 0;
    uint32_t call = 0;
  };
  struct Outcome {
    bool ok = true;
    double ttft_s = 0, e2e_s = 0, queue_s = 0;
    uint32_t cached = 0;
  };
  struct Session {
    uint64_t number = 0;
    uint32_t program = 0;
    uint64_t instance = 0;
    uint16_t tenant = 0;
    const ProgramPlan* plan = nullptr;
    std::vector<uint32_t> waits;  // per call: calls not ended that it waits for
    struct Job {
      TimeNs start = -1, busy = 0, busy_since = 0;
      uint32_t in_flight = 0, left = 0;
      bool counted = false;
    };
    std::vector<Job> jobs;
    uint32_t calls_left = 0;
  };

  Replay(const workload::Workload* w, const StepModel* model, const Options& options);

  // Begins a session of `program`; its first calls become ready.
  uint64_t Start(uint32_t program, uint64_t instance, TimeNs now);
  // The client sends the call.
  void Sent(uint64_t session, uint32_t call, TimeNs now);
  // The client has its answer. True: the session is over and forgotten.
  bool Ended(uint64_t session, uint32_t call, const Outcome& outcome, TimeNs now);
  // Calls that became ready, to be sent at their times.
  std::vector<Ready> TakeReady() { return std::exchange(ready_, {}); }

  const Session& session(uint64_t number) const { return sessions_.at(number); }
  const workload::Workload& workload() const { return w_; }
  const workload::Call& call(uint64_t number, uint32_t c) const {
    return w_.programs[sessions_.at(number).program].calls[c];
  }
  size_t sessions() const { return sessions_.size(); }
  size_t counted_open() const { return counted_open_; }
  size_t jobs_done() const { return jobs_done_; }
  const std::vector<std::string>& tenants() const { return tenants_; }
  RunRecords& records() { return records_; }

 private:
  const ProgramPlan& PlanOf(uint32_t program);
  void EndJob(const Session& s, uint32_t job, TimeNs now);

  const workload::Workload& w_;
  const StepModel& model_;
  const Options o_;
  std::vector<std::string> tenants_;
  std::unordered_map<uint32_t, ProgramPlan> plans_;
  std::unordered_map<uint64_t, Session> sessions_;
  uint64_t next_session_ = 0;
  std::vector<Ready> ready_;
  size_t counted_open_ = 0, jobs_done_ = 0;
  RunRecords records_;
};

}  // namespace agentserve::sim
