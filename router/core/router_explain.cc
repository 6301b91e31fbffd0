// Decision records: why a call waits or went where it went.
#include <algorithm>

#include "router/core/router_core.h"

namespace agentserve::router {

// What is known of a call whether it is queued or not.
void RouterCore::FillRecord(const Sequence& s, const Request& r, DecisionRecord* d) const {
  const AgentInfo& a = r.sub.agent;
  const Program* p = r.program.empty() ? nullptr : programs_.Find(r.program);
  d->request_id = r.sub.request_id;
  d->tenant = a.tenant_id;
  d->program = a.program_id;
  d->workflow_class = p == nullptr ? a.workflow_class : p->workflow_class;
  d->policy = std::string(queue_.lane(r.lane).policy.name);
  d->attempt = s.attempt;
  d->arrival = r.sub.arrival;
  d->tier = s.key.tier;
  d->difficulty = static_cast<uint32_t>(r.difficulty);
  d->predicted_output = r.prediction.Median();
  d->call_cost = CostLeft(r, static_cast<uint32_t>(s.generated.size()));
  d->program_attained = p == nullptr ? 0 : p->attained;
  d->program_remaining = RemainingCost(r, p, d->call_cost);
  d->queue_depth = r.queue_depth;
  d->kv_kept = std::string(retention_.LastReason(r.program));
  d->overtaken = s.overtaken;
  for (size_t i = 0; i < kNumWaitReasons; ++i) d->waited_for[i] = s.waits.count[i];
  d->last_wait = s.waits.last;
  if (d->last_wait || decided_at_ <= s.queued_at) return;
  // Never looked at closely: no worker had room for anything, or others were ahead.
  const WaitReason behind = queue_.active_lanes() > 1 ? WaitReason::kShare : WaitReason::kBehind;
  d->last_wait = full_at_ >= s.queued_at ? full_why_ : behind;
}

void RouterCore::RecordDecision(const Sequence& s, const Request& r, const CallQueue::Pick& pick, const Placement& p,
                                const PlacementQuery& q) {
  ++decision_stats_.pick[static_cast<size_t>(pick.reason)];
  ++decision_stats_.place[static_cast<size_t>(p.reason)];
  if (config_.max_decisions == 0 || s.index != 0) return;
  DecisionRecord d;
  FillRecord(s, r, &d);
  d.decided_at = decided_at_;
  d.pick = pick.reason;
  d.place = p.reason;
  d.candidates = Explain(workers_, config_, q, match_scratch_, p.decode, &d.candidates_seen);
  d.decode_worker = workers_.Find(p.decode)->info.name;
  if (p.prefill.value != 0) d.prefill_worker = workers_.Find(p.prefill)->info.name;
  d.new_tokens = p.new_tokens;
  d.cached_tokens = q.tokens - p.new_tokens;
  d.booked_blocks = p.booking.unreflected + p.booking.growth;
  d.preempted = preempted_;
  decisions_.Add(std::move(d));
}

std::optional<DecisionRecord> RouterCore::FindDecision(std::string_view request_id) const {
  // A queued one is rare to be asked for: the table of requests has no index by name, but a bound.
  RequestKey found;
  for (const auto& [key, r] : requests_) {
    if (r.sub.request_id == request_id && (found.value == 0 || key < found)) found = key;
  }
  if (found.value != 0) return DecisionOf(found);
  const DecisionRecord* d = decisions_.Find(request_id);
  return d == nullptr ? std::nullopt : std::optional<DecisionRecord>(*d);
}

std::optional<DecisionRecord> RouterCore::DecisionOf(RequestKey key) const {
  const auto it = requests_.find(key);
  if (it == requests_.end() || it->second.seqs.empty()) return std::nullopt;
  const Request& r = it->second;
  const auto seq = seqs_.find(r.seqs[0]);
  if (seq == seqs_.end() || seq->second.phase != SeqPhase::kQueued) {
    const DecisionRecord* d = decisions_.Find(r.sub.request_id);
    return d == nullptr ? std::nullopt : std::optional<DecisionRecord>(*d);
  }
  DecisionRecord d;
  FillRecord(seq->second, r, &d);
  if (!d.last_wait) d.last_wait = full_at_ >= seq->second.queued_at ? full_why_ : WaitReason::kBehind;
  return d;
}

}  // namespace agentserve::router
