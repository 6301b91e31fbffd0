// The simulation's driver, for its two source files.
#pragma once

#include <algorithm>
#include <limits>
#include <map>
#include <queue>
#include <unordered_map>

#include "base/check.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "engine/block_hash.h"
#include "router/core/router_core.h"
#include "tools/sim/content.h"
#include "tools/sim/replay.h"
#include "tools/sim/simulation.h"
#include "tools/sim/worker.h"

namespace agentserve::sim::driver {

using router::CommandKind;
using router::RouterCore;
using router::WorkerId;

inline constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();
inline constexpr TimeNs kFar = 100'000'000 * base::kNsPerSecond;
inline constexpr TimeNs kReviveAfter = 5 * base::kNsPerSecond;
inline constexpr uint32_t kGenerousMaxTokens = 8192;

inline TimeNs FromMs(double ms) { return static_cast<TimeNs>(ms * 1e6 + 0.5); }
inline TimeNs FromSeconds(double s) { return static_cast<TimeNs>(s * 1e9); }

enum class EventKind : uint8_t {
  kSession,
  kSubmit,
  kDown,
  kUp,
  kWake,
  kLinkUp,
  kLinkDown,
  kPeer,
  kTick,
  kClient,
  kKill,
  kRevive
};

struct Event {
  TimeNs at = 0;
  uint64_t order = 0;
  EventKind kind = EventKind::kTick;
  uint32_t a = 0;
  uint64_t b = 0;
  bool operator>(const Event& o) const { return at != o.at ? at > o.at : order > o.order; }
};

// Things that events carry; slots are used again.
template <typename T>
class Slots {
 public:
  uint32_t Put(T value) {
    if (free_.empty()) {
      items_.push_back(std::move(value));
      return static_cast<uint32_t>(items_.size() - 1);
    }
    const uint32_t i = free_.back();
    free_.pop_back();
    items_[i] = std::move(value);
    return i;
  }
  T Take(uint32_t i) {
    free_.push_back(i);
    return std::move(items_[i]);
  }

 private:
  std::vector<T> items_;
  std::vector<uint32_t> free_;
};

class Simulation {
 public:
  Simulation(const workload::Workload& w, const StepModel& model, const SimOptions& options)
      : w_(w), model_(model), o_(options), replay_(&w, &model_, ReplayOptions()) {}

  SimResult Run();

 private:
  struct Slot {
    std::unique_ptr<SimWorker> worker;
    WorkerOptions options;
    router::WorkerInfo info;
    WorkerId id;
    TimeNs wake = kNever;
    uint64_t version = 0;
    WorkerStats past;  // of lives that ended
  };
  struct Live {
    uint64_t session = 0;
    uint32_t call = 0;
    SpansPtr spans;
  };
  struct ClientEnd {
    uint64_t session = 0;
    uint32_t call = 0;
    Replay::Outcome outcome;
  };

  Replay::Options ReplayOptions() const;
  router::CoreConfig Config() const;
  void MakeWorkers();
  void Revive(uint32_t i);
  void Kill(uint32_t i);
  void ScheduleArrivals();
  void NextSession(TimeNs at);
  void Push(TimeNs at, EventKind kind, uint32_t a, uint64_t b = 0) { events_.push({at, ++order_, kind, a, b}); }
  void Handle(const Event& e);
  void Submit(uint64_t session, uint32_t call);
  void FillAgent(const Replay::Session& s, uint32_t call, router::Submission* sub) const;
  void Down(uint32_t index);
  void Deliver(WorkerId id, UpMessage& m);
  void AfterWorker(uint32_t i);
  void Drain();
  void Carry(router::Command c);
  void OnRequestDone(const router::RequestDone& d);
  void OnClient(const ClientEnd& e);
  void ScheduleReady();
  void ScheduleTick();
  bool Done() const;
  void CheckInvariants() const;
  SimResult Result();

  const workload::Workload& w_;
  const StepModel& model_;
  const SimOptions& o_;
  Replay replay_;
  std::unique_ptr<RouterCore> core_;
  std::vector<Slot> slots_;
  std::unordered_map<uint64_t, uint32_t> by_id_;  // WorkerId -> slot
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  Slots<Order> orders_;
  Slots<UpMessage> messages_;
  Slots<ClientEnd> ends_;
  std::unordered_map<uint64_t, Live> live_;            // by call number = request id
  std::unordered_map<uint64_t, uint64_t> by_request_;  // RequestKey -> call number
  std::vector<uint32_t> program_order_;
  std::unique_ptr<workload::ArrivalGaps> gaps_;
  router::Effects effects_;
  TimeNs now_ = 0, tick_at_ = kNever;
  TimeNs message_ = 0, client_ = 0;
  uint64_t order_ = 0, next_call_ = 1, next_program_ = 0;
  uint64_t hash_ = 0xcbf29ce484222325ull, handled_ = 0, calls_ended_ = 0;
  uint64_t incarnations_ = 0;
  size_t sessions_begun_ = 0;
  bool gave_up_ = false;
};

}  // namespace agentserve::sim::driver
