// A small cluster in virtual time for tests of policies: the real router core, decode workers with a fixed time per
// token whatever their batch, programs whose next call comes a while after the last one ended. One seed, one history.
// Test code.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "router/core/router_core.h"

namespace agentserve::router::policy_test {

struct ClusterOptions {
  uint64_t seed = 1;
  uint32_t workers = 2, slots = 4;
  uint32_t programs = 40, calls = 4, tenants = 1;
  double long_share = 0.1;  // of calls
  // Tenant 0 claims whatever might bring its calls forward; the work stays the same.
  bool hostile = false;
  bool check_idle = false;
  bool tell_length = false;  // max_tokens is the true length
  CoreConfig core;
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options);
  void Run();

  RouterCore& core() { return *core_; }
  uint32_t done() const { return done_; }
  // Hand-outs in order: request ids and workers.
  const std::string& log() const { return log_; }
  uint32_t idle_beside_work() const { return idle_beside_work_; }
  // Of any call: hand-outs of calls that came after it, from its aging bound on.
  uint32_t most_younger_after_bound() const { return most_younger_; }
  uint32_t most_queued() const { return most_queued_; }
  double LatencyMs(uint32_t tenant, double quantile) const;
  double ShortLatencyMs() const;  // mean of calls with short outputs

 private:
  struct Call {
    uint32_t program = 0, output = 0, prompt = 0;
    TimeNs submitted = -1, handed_out = -1, ended = -1;
    uint32_t younger = 0;
  };
  struct Run1 {  // on a worker
    uint32_t call = 0, attempt = 0, generated = 0;
  };
  enum class What : uint8_t { kSubmit, kFirst, kLast };
  struct Event {
    What what = What::kSubmit;
    uint32_t call = 0;
    WorkerId worker;
    SeqId seq;
    uint32_t attempt = 0;
  };

  void Submit(uint32_t call);
  void Speak(const Event& e);
  void Drain();
  void HandOut(const Command& c);
  void Check();

  const ClusterOptions options_;
  base::SplitMix64 rng_;
  TimeNs now_ = base::kNsPerSecond;
  std::unique_ptr<RouterCore> core_;
  std::vector<Call> calls_;
  std::vector<TimeNs> gaps_;  // before each call
  std::map<std::pair<TimeNs, uint64_t>, Event> events_;
  uint64_t next_event_ = 0;
  std::map<WorkerId, uint64_t> steps_;
  std::map<WorkerId, std::map<SeqId, Run1>> running_;
  std::map<RequestKey, uint32_t> by_key_;
  std::string log_;
  uint32_t done_ = 0, idle_beside_work_ = 0, most_younger_ = 0, most_queued_ = 0;
};

}  // namespace agentserve::router::policy_test
