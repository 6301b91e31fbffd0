// The queued calls in lanes: one lane per tenant (layer L8) or per policy, each ordered by its policy. Lanes take turns
// by virtual time in units of cost, so that each gets its share and an unused share is lent (start-time fair queueing,
// Goyal et al. 1996: the deficit of a lane is how far its time lags behind the one served last).
//
// All of it is O(log n) in queued calls; a decision looks at a bounded number of candidates. Single-threaded, owned by
// the core. Deterministic: ties go by arrival.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "router/core/config.h"
#include "router/core/policy.h"
#include "router/core/types.h"

namespace agentserve::router {

using LaneId = uint32_t;

// Where a call stands in the queue.
struct QueuePlace {
  LaneId lane = 0;
  Order order;
  int64_t arrival = 0;
  TimeNs queued_at = 0;
};

class CallQueue {
 public:
  struct Pick {
    SeqId seq;
    PickReason reason = PickReason::kOrder;
    LaneId lane = 0;
    bool through_gate = false;  // a newcomer that has waited too long
  };
  struct Lane {
    std::string name;  // tenant, or "" for a lane of all tenants with that policy
    Policy policy;
    double weight = 1;
    double time = 0;          // virtual, cost / weight
    uint32_t live = 0;        // calls queued or running: a lane with any stays
    double clock = 0;         // Justitia: fair service of each program so far
    uint32_t programs = 0;    // with live calls
    double served = 0;        // cost handed out, for metrics
    uint64_t turn = 0;        // picks made
    uint32_t strict_run = 0;  // of the last picks
    using ByKey = std::set<std::tuple<OrderKey, int64_t, SeqId>>;
    using ByTime = std::set<std::tuple<int64_t, int64_t, SeqId>>;
    ByKey by_key;
    ByTime by_lift;                        // those with a lift time
    ByTime by_age;                         // kTurns: by the program's age; kWindow: by the time the call was queued
    std::deque<ByKey::value_type> window;  // PickRule::kWindow: what is left of the chosen one
    bool used = false;
  };

  explicit CallQueue(const CoreConfig& config);

  // The lane of a tenant's calls, made if absent. Past `max_tenants` lanes, tenants share the last one.
  LaneId LaneOf(std::string_view tenant);
  Lane& lane(LaneId id) { return lanes_[id]; }
  const Lane& lane(LaneId id) const { return lanes_[id]; }
  const std::vector<Lane>& lanes() const { return lanes_; }

  void Add(SeqId seq, const QueuePlace& place);
  void Remove(SeqId seq);
  // Some queued call, the same for the same history. The queue must not be empty.
  SeqId First() const { return std::get<2>(*lanes_[active_.begin()->second].by_key.begin()); }
  // Null if it is not queued. Valid until the next change.
  const QueuePlace* Find(SeqId seq) const;
  // The calls to try now, in order: the head of the lane whose turn it is, those that may overtake it if it fits
  // nowhere, then heads of other lanes. Replaces `out`.
  void Candidates(TimeNs now, const AgentPolicyOptions& options, std::vector<Pick>* out);
  // `pick` was handed out at an estimated `cost`.
  void Taken(const Pick& pick, double cost);
  // What was handed out cost `more` than estimated (or less).
  void Settle(LaneId lane, double more);

  size_t size() const { return places_.size(); }
  bool empty() const { return places_.empty(); }
  size_t active_lanes() const { return active_.size(); }
  void CheckInvariants() const;

 private:
  void HeadsOf(Lane* lane, LaneId id, TimeNs now, const AgentPolicyOptions& options, size_t most,
               std::vector<Pick>* out) const;
  void TurnsOf(const Lane& lane, LaneId id, TimeNs now, const AgentPolicyOptions& options, size_t most,
               std::vector<Pick>* out) const;
  static void Push(SeqId seq, PickReason reason, LaneId lane, std::vector<Pick>* out);
  void DropMissedLifts(Lane* lane, TimeNs now);
  void ChooseWindow(Lane* lane, TimeNs now) const;
  SeqId HighestRatio(const Lane& lane, TimeNs now) const;
  void FreeIdleLanes();

  const CoreConfig& config_;
  std::vector<Lane> lanes_;
  std::map<std::string, LaneId, std::less<>> by_name_;
  std::set<std::pair<double, LaneId>> active_;  // lanes with queued calls, by virtual time
  double floor_ = 0;                            // virtual time of the lane served last
  std::unordered_map<SeqId, QueuePlace> places_;
};

}  // namespace agentserve::router
