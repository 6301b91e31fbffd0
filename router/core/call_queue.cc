#include "router/core/call_queue.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace agentserve::router {
namespace {

// Anchors and width of the windows of `relative`: the oldest calls, each with its neighbours by predicted output. A
// window is used up before the next is chosen, so the search costs some 64 steps a pick.
constexpr size_t kWindowAnchors = 64;
constexpr size_t kWindowWidth = 16;
// A second of waiting weighs as much as this relative spread of predicted outputs.
constexpr double kAgePerSecond = 0.05;

// Other tenants whose head is tried when nothing of the first fits.
constexpr size_t kMostOtherLanes = 8;

Policy PolicyOrDie(const std::string& name) {
  absl::StatusOr<Policy> p = FindPolicy(name);
  AS_CHECK(p.ok()) << std::string(p.status().message());
  return *p;
}

}  // namespace

CallQueue::CallQueue(const CoreConfig& config) : config_(config) {
  PolicyOrDie(config.policy);
  for (const auto& [name, policy] : config.tenant_policy) PolicyOrDie(policy);
}

LaneId CallQueue::LaneOf(std::string_view tenant) {
  auto of_class = config_.tenant_class.find(std::string(tenant));
  const std::string tenant_class = of_class == config_.tenant_class.end() ? std::string(tenant) : of_class->second;
  auto own = config_.tenant_policy.find(tenant_class);
  const std::string& policy = own == config_.tenant_policy.end() ? config_.policy : own->second;
  const bool fair = config_.agent.tenants && policy == "agent";
  std::string key = policy;
  if (fair) key.append(1, '\0').append(tenant);
  if (auto it = by_name_.find(key); it != by_name_.end()) return it->second;
  if (by_name_.size() >= config_.max_tenants) FreeIdleLanes();
  std::string name(fair ? tenant : "");
  if (by_name_.size() >= config_.max_tenants) {  // the rest share one lane
    key = policy;
    key.append(1, '\1');
    name = "(others)";
    if (auto it = by_name_.find(key); it != by_name_.end()) return it->second;
  }
  LaneId id = 0;
  while (id < lanes_.size() && lanes_[id].used) ++id;
  if (id == lanes_.size()) lanes_.emplace_back();
  Lane& lane = lanes_[id];
  lane = Lane{};
  lane.used = true;
  lane.name = name;
  lane.policy = PolicyOrDie(policy);
  lane.time = floor_;
  if (auto w = config_.tenant_share.find(std::string(tenant)); fair && w != config_.tenant_share.end()) {
    lane.weight = std::max(w->second, 1e-3);
  }
  by_name_.emplace(key, id);
  return id;
}

// An idle lane that is not ahead of the others says nothing that a new one would not.
void CallQueue::FreeIdleLanes() {
  for (auto it = by_name_.begin(); it != by_name_.end();) {
    Lane& lane = lanes_[it->second];
    if (lane.live == 0 && lane.by_key.empty() && lane.time <= floor_) {
      lane = Lane{};
      it = by_name_.erase(it);
    } else {
      ++it;
    }
  }
}

void CallQueue::Add(SeqId seq, const QueuePlace& p) {
  Lane& lane = lanes_[p.lane];
  if (lane.by_key.empty()) {
    lane.time = std::max(lane.time, floor_);
    active_.insert({lane.time, p.lane});
  }
  AS_CHECK(places_.emplace(seq, p).second);
  lane.by_key.insert({p.order.key, p.arrival, seq});
  if (p.order.lift_at != kNever) lane.by_lift.insert({p.order.lift_at, p.arrival, seq});
  if (lane.policy.pick == PickRule::kTurns) lane.by_age.insert({p.order.age, p.arrival, seq});
  if (lane.policy.pick == PickRule::kWindow) lane.by_age.insert({p.queued_at, p.arrival, seq});
}

void CallQueue::Remove(SeqId seq) {
  auto at = places_.find(seq);
  AS_CHECK(at != places_.end());
  const QueuePlace& p = at->second;
  Lane& lane = lanes_[p.lane];
  AS_CHECK_EQ(lane.by_key.erase({p.order.key, p.arrival, seq}), 1u);
  if (p.order.lift_at != kNever) AS_CHECK_EQ(lane.by_lift.erase({p.order.lift_at, p.arrival, seq}), 1u);
  if (lane.policy.pick == PickRule::kTurns) AS_CHECK_EQ(lane.by_age.erase({p.order.age, p.arrival, seq}), 1u);
  if (lane.policy.pick == PickRule::kWindow) AS_CHECK_EQ(lane.by_age.erase({p.queued_at, p.arrival, seq}), 1u);
  if (lane.by_key.empty()) {
    active_.erase({lane.time, p.lane});
    lane.window.clear();
  }
  places_.erase(at);
}

const QueuePlace* CallQueue::Find(SeqId seq) const {
  auto it = places_.find(seq);
  return it == places_.end() ? nullptr : &it->second;
}

void CallQueue::Push(SeqId seq, PickReason reason, LaneId lane, std::vector<Pick>* out) {
  for (const Pick& p : *out) {
    if (p.seq == seq) return;
  }
  out->push_back({seq, reason, lane});
}

// Calls whose deadline is missed are lifted when they are old, like others. Once for each call.
void CallQueue::DropMissedLifts(Lane* lane, TimeNs now) {
  while (!lane->by_lift.empty()) {
    const auto [at, arrival, seq] = *lane->by_lift.begin();
    Order& o = places_.at(seq).order;
    if (at > now || o.lift_until >= now) return;
    lane->by_lift.erase(lane->by_lift.begin());
    o.lift_at = o.aged_at;
    o.lift = PickReason::kAged;
    o.lift_until = o.aged_at = kNever;
    if (o.lift_at != kNever) lane->by_lift.insert({o.lift_at, arrival, seq});
  }
}

// Turns, in this order: the oldest program's, lifted calls', strict tiers', then by key.
void CallQueue::TurnsOf(const Lane& lane, LaneId id, TimeNs now, const AgentPolicyOptions& o, size_t most,
                        std::vector<Pick>* out) const {
  const uint64_t turn = lane.turn + 1;
  const bool oldest_turn = o.order && o.oldest_every > 0 && turn % o.oldest_every == 0;
  if (oldest_turn) Push(std::get<2>(*lane.by_age.begin()), PickReason::kOldestProgram, id, out);
  // Past its bound a call goes first, except that under overload, when all are late, every other pick still follows
  // the order: else one long backlog would turn it into arrival order.
  if (!lane.by_lift.empty() && std::get<0>(*lane.by_lift.begin()) <= now && turn % 2 == 0) {
    const SeqId lifted = std::get<2>(*lane.by_lift.begin());
    Push(lifted, places_.at(lifted).order.lift, id, out);
    // Newcomers that the gate holds are let in one by one, or they might wait for ever.
    out->back().through_gate = o.gate_pass_every > 0 && turn % o.gate_pass_every == 0;
  }
  auto it = lane.by_key.begin();
  if (std::get<0>(*it).tier < 0) {
    auto plain = lane.by_key.lower_bound({OrderKey{0, 0}, 0, SeqId()});
    if (lane.strict_run >= o.strict_most && plain != lane.by_key.end()) it = plain;
  }
  for (; it != lane.by_key.end() && out->size() < most; ++it) {
    Push(std::get<2>(*it), std::get<0>(*it).tier < 0 ? PickReason::kStrictTier : PickReason::kOrder, id, out);
  }
}

void CallQueue::HeadsOf(Lane* lane, LaneId id, TimeNs now, const AgentPolicyOptions& options, size_t most,
                        std::vector<Pick>* out) const {
  if (lane->policy.pick == PickRule::kTurns) {
    TurnsOf(*lane, id, now, options, most, out);
    return;
  }
  // Others never let a call overtake the one whose turn it is: a large prompt is not starved by small ones.
  if (!lane->by_lift.empty() && std::get<0>(*lane->by_lift.begin()) <= now) {
    const SeqId lifted = std::get<2>(*lane->by_lift.begin());
    Push(lifted, places_.at(lifted).order.lift, id, out);
    return;
  }
  if (lane->policy.pick == PickRule::kWindow) {
    while (!lane->window.empty() && lane->by_key.count(lane->window.front()) == 0) lane->window.pop_front();
    if (lane->window.empty()) ChooseWindow(lane, now);
    Push(std::get<2>(lane->window.front()), PickReason::kWindow, id, out);
  } else if (lane->policy.pick == PickRule::kRatio) {
    Push(HighestRatio(*lane, now), PickReason::kOrder, id, out);
  } else {
    Push(std::get<2>(*lane->by_key.begin()), PickReason::kOrder, id, out);
  }
}

// Neighbours by predicted output with the least relative spread, less what their ages count; windows start at one of
// the oldest calls.
void CallQueue::ChooseWindow(Lane* lane, TimeNs now) const {
  lane->window.clear();
  const int64_t tier = std::get<0>(*lane->by_key.begin()).tier;
  double best = 0;
  size_t looked = 0;
  for (const auto& [queued_at, arrival, seq] : lane->by_age) {
    if (++looked > kWindowAnchors) break;
    const OrderKey key = places_.at(seq).order.key;
    if (key.tier != tier) continue;
    std::deque<Lane::ByKey::value_type> window;
    double sum = 0, squares = 0;
    for (auto it = lane->by_key.find({key, arrival, seq}); it != lane->by_key.end(); ++it) {
      if (window.size() == kWindowWidth || std::get<0>(*it).tier != tier) break;
      const auto v = static_cast<double>(std::get<0>(*it).within);
      sum += v;
      squares += v * v;
      window.push_back(*it);
    }
    const double n = static_cast<double>(window.size()), mean = sum / n;
    const double spread = std::sqrt(std::max(0.0, squares / n - mean * mean)) / std::max(mean, 1.0);
    const double score = spread - kAgePerSecond * base::ToMs(now - queued_at) / 1000;
    if (lane->window.empty() || score < best) best = score, lane->window = std::move(window);
  }
  if (lane->window.empty()) lane->window.push_back(*lane->by_key.begin());
}

SeqId CallQueue::HighestRatio(const Lane& lane, TimeNs now) const {
  SeqId best;
  double best_ratio = -1;
  for (auto it = lane.by_key.begin(); it != lane.by_key.end();) {
    const auto& [key, arrival, seq] = *it;
    const auto wait_ns = static_cast<double>(std::max<TimeNs>(0, now - places_.at(seq).queued_at));
    const double ratio = wait_ns / std::pow(kRatioStep, static_cast<double>(key.tier));
    if (ratio > best_ratio) best = seq, best_ratio = ratio;
    it = lane.by_key.lower_bound({OrderKey{key.tier + 1, 0}, 0, SeqId()});
  }
  return best;
}

void CallQueue::Candidates(TimeNs now, const AgentPolicyOptions& options, std::vector<Pick>* out) {
  out->clear();
  size_t lanes = 0;
  for (const auto& [time, id] : active_) {
    Lane& lane = lanes_[id];
    const bool agent = lane.policy.agent;
    DropMissedLifts(&lane, now);
    const size_t most = lanes == 0 ? 1 + (agent ? options.backfill : 0) : out->size() + 1;
    HeadsOf(&lane, id, now, options, most, out);
    if (++lanes > kMostOtherLanes) return;
  }
}

void CallQueue::Taken(const Pick& pick, double cost) {
  Lane& lane = lanes_[pick.lane];
  // A lane that overtook others says nothing of how far they have got.
  const double least = active_.empty() ? lane.time : std::min(lane.time, active_.begin()->first);
  floor_ = std::max(floor_, least);
  const bool was_active = active_.erase({lane.time, pick.lane}) > 0;
  lane.time += cost / lane.weight;
  lane.served += cost;
  ++lane.turn;
  lane.strict_run = pick.reason == PickReason::kStrictTier ? lane.strict_run + 1 : 0;
  if (was_active) active_.insert({lane.time, pick.lane});
}

void CallQueue::Settle(LaneId id, double more) {
  Lane& lane = lanes_[id];
  const bool was_active = active_.erase({lane.time, id}) > 0;
  lane.time += more / lane.weight;
  lane.served += more;
  if (was_active) active_.insert({lane.time, id});
}

void CallQueue::CheckInvariants() const {
  size_t queued = 0, active = 0;
  for (LaneId id = 0; id < lanes_.size(); ++id) {
    const Lane& lane = lanes_[id];
    queued += lane.by_key.size();
    if (!lane.by_key.empty()) {
      ++active;
      AS_CHECK(lane.used && active_.count({lane.time, id}) == 1);
    }
    for (const auto& [key, arrival, seq] : lane.by_key) {
      const QueuePlace& p = places_.at(seq);
      AS_CHECK(p.lane == id && p.order.key == key && p.arrival == arrival);
    }
    const bool aged = lane.policy.pick == PickRule::kTurns || lane.policy.pick == PickRule::kWindow;
    AS_CHECK_EQ(lane.by_age.size(), aged ? lane.by_key.size() : 0);
    AS_CHECK_LE(lane.by_lift.size(), lane.by_key.size());
  }
  AS_CHECK_EQ(queued, places_.size());
  AS_CHECK_EQ(active, active_.size());
  AS_CHECK_LE(by_name_.size(), config_.max_tenants + 1 + config_.tenant_policy.size() + 1);
}

}  // namespace agentserve::router
