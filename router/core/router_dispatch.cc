// The queue, placement and hand-out of sequences.
#include <algorithm>

#include "base/check.h"
#include "engine/block_hash.h"
#include "router/core/router_core.h"

namespace agentserve::router {

Command& RouterCore::Send(WorkerId w, CommandKind kind, const Sequence& s) {
  Command& c = effects_.commands.emplace_back();
  c.worker = w;
  c.kind = kind;
  c.seq = s.id;
  c.attempt = s.attempt;
  return c;
}

uint64_t RouterCore::BudgetMs(const Request& r, TimeNs now) const {
  return static_cast<uint64_t>(std::max<TimeNs>(1, (r.sub.deadline - now) / base::kNsPerMs));
}

void RouterCore::Enqueue(Sequence* s, TimeNs now) {
  const Request& r = RequestOf(*s);
  Program* p = r.program.empty() ? nullptr : programs_.Find(r.program);
  if (p != nullptr) p->width = std::max(p->width, p->Running());
  s->queued_at = now;
  s->sticky_since = -1;
  QueuePlace place;
  place.lane = r.lane;
  place.arrival = s->arrival;
  place.queued_at = now;
  place.order = OrderOf(*s, r, p);
  s->key = place.order.key;
  s->phase = SeqPhase::kQueued;
  queue_.Add(s->id, place);
  if (p != nullptr) {
    if (p->queued.empty()) p->ordered_at = p->attained, p->ordered_straggler = p->Straggler();
    p->queued.push_back(s->id);
  }
  pump_wanted_ = true;
}

void RouterCore::Dequeue(Sequence* s) {
  queue_.Remove(s->id);
  const Request& r = RequestOf(*s);
  if (Program* p = r.program.empty() ? nullptr : programs_.Find(r.program); p != nullptr) std::erase(p->queued, s->id);
}

// Siblings of an n > 1 request join the queue once sequence 0's prompt is computed.
void RouterCore::ReleaseHeld(Request* r, TimeNs now) {
  for (SeqId id : r->seqs) {
    auto it = seqs_.find(id);
    if (it != seqs_.end() && it->second.phase == SeqPhase::kHeld) Enqueue(&it->second, now);
  }
}

// Hands out calls until none of the candidates fits anywhere.
void RouterCore::Pump(TimeNs now) {
  if (!pump_wanted_) return;
  sticky_wake_ = kNever;
  do {
    pump_wanted_ = false;
    while (!queue_.empty() && DispatchOne(now)) {
    }
  } while (pump_wanted_);
  if (!queue_.empty()) retention_.OnPressure(RetentionNow(now));
}

uint32_t RouterCore::ExpectedOutput(const Request& r, const Sequence& s) const {
  const auto done = static_cast<uint32_t>(s.generated.size());
  const uint32_t left = r.sub.sampling.max_tokens - done;
  // Until enough calls ended to know better, the hint or the configured guess.
  constexpr uint64_t kEnoughCalls = 32;
  if (predictor_.stats().calls < kEnoughCalls) {
    const uint32_t hint = r.sub.agent.osl_hint.value_or(config_.expected_output_tokens);
    return std::min(left, std::clamp<uint32_t>(hint, 1, 8 * config_.expected_output_tokens));
  }
  const auto likely = static_cast<uint32_t>(std::max(r.prediction.Above(kZ70), r.plain.Median()));
  return std::min(left, likely > done ? likely - done : std::max(1u, done / 2));
}

// Whether any worker could take even the smallest call. O(workers), before anything is looked at more closely.
bool RouterCore::SomeCapacity(TimeNs now) {
  PlacementQuery q;
  q.tokens = 1;
  q.overflow = most_overflow_;
  if (AnyCapacity(workers_, config_, q, &full_why_)) return true;
  full_at_ = now;
  ++decision_stats_.wait[static_cast<size_t>(full_why_)];
  return false;
}

PlacementQuery RouterCore::QueryFor(const Sequence& s, const Request& r, const CallQueue::Pick& pick) const {
  PlacementQuery q;
  q.tokens = static_cast<uint32_t>(r.sub.prompt->size() + s.generated.size());
  q.expected_more = ExpectedOutput(r, s);
  const Program* p = r.program.empty() ? nullptr : programs_.Find(r.program);
  if (p != nullptr) q.sticky = p->last_decode;
  if (!queue_.lane(r.lane).policy.agent) return q;
  const AgentPolicyOptions& o = config_.agent;
  if (o.gate && !pick.through_gate) {
    const Worker* last = p == nullptr ? nullptr : workers_.Find(p->last_decode);
    q.fresh = true;
    q.resident = last != nullptr && (p->Running() > 1 || gate_.Resident(p->serial, *last));
  }
  q.by_prefix = o.route;
  q.append_local = o.placement;
  if (o.route && !r.fresh) q.wait_for_tokens = config_.prefill_threshold;
  return q;
}

// Waiting for the worker that holds the KV is worth as long as computing it again would take; then it goes elsewhere.
// So at most twice the best is lost (ski rental).
bool RouterCore::WaitsForSticky(Sequence* s, const PlacementQuery& q, const Placement& p, TimeNs now) {
  // Where workers do not tell their speed: one slower than all but the smallest CPU.
  constexpr double kSlowTokensPerS = 2'000;
  const double told = workers_.Find(q.sticky)->info.prefill_tokens_per_s;
  const double seconds = p.saved_tokens / (told > 0 ? told : kSlowTokensPerS);
  if (s->sticky_since < 0) s->sticky_since = now;
  const TimeNs until = s->sticky_since + static_cast<TimeNs>(seconds * 1e9);
  if (now >= until) return false;
  sticky_wake_ = std::min(sticky_wake_, until);
  return true;
}

bool RouterCore::TryPlace(Sequence* s, CallQueue::Pick* pick, PlacementQuery* q, Placement* p, TimeNs now) {
  const Request& r = RequestOf(*s);
  *q = QueryFor(*s, r, *pick);
  match_scratch_.clear();
  prefixes_.Match(r.sub.chain, &match_scratch_);
  if (directory_ != nullptr) directory_->Match(r.sub.chain, &match_scratch_);
  if (Place(workers_, config_, *q, match_scratch_, p)) return true;
  if (p->waits_for_sticky) {
    if (WaitsForSticky(s, *q, *p, now)) return false;
    q->wait_for_tokens = 0;
    return Place(workers_, config_, *q, match_scratch_, p);
  }
  const Policy& policy = queue_.lane(r.lane).policy;
  if (r.difficulty != Difficulty::kEasy) return false;
  if (policy.overflow > 1) {
    q->overflow = policy.overflow;
    pick->reason = PickReason::kOverflow;
    if (Place(workers_, config_, *q, match_scratch_, p)) return true;
  }
  return policy.preempt && PreemptFor(r, now) && Place(workers_, config_, *q, match_scratch_, p);
}

// The youngest hard call that decodes gives its slot and blocks back and is queued again with what it has made. Its
// blocks stay in the worker's cache until somebody needs them.
bool RouterCore::PreemptFor(const Request& r, TimeNs now) {
  constexpr uint32_t kMostPreempted = 2;  // then it is left alone: easy calls may come for ever
  for (auto it = running_hard_.rbegin(); it != running_hard_.rend(); ++it) {
    Sequence& victim = seqs_.at(it->second);
    if (victim.phase != SeqPhase::kDecoding || victim.preempted >= kMostPreempted) continue;
    if (RequestOf(victim).lane != r.lane) continue;
    ++victim.preempted;
    ++victim.timeline.preemptions;
    ++decision_stats_.preemptions;
    victim.waits.Note(WaitReason::kPreempted);
    ++decision_stats_.wait[static_cast<size_t>(WaitReason::kPreempted)];
    preempted_.push_back(RequestOf(victim).sub.request_id);
    RecordOutput(&victim, victim.decode);
    ReleaseWorkers(&victim, /*tell_decode=*/true);
    Enqueue(&victim, now);
    return true;
  }
  return false;
}

bool RouterCore::DispatchOne(TimeNs now) {
  if (running_hard_.empty() && !SomeCapacity(now)) return false;
  if (config_.agent.gate && now != gates_at_) {
    gates_at_ = now;
    for (auto& [id, w] : workers_.all()) {
      if (w.info.role == Role::kDecode) gate_.Update(&w, config_.agent, tool_stats_, now);
    }
  }
  queue_.Candidates(now, config_.agent, &picks_);
  for (size_t i = 0; i < picks_.size(); ++i) {
    CallQueue::Pick pick = picks_[i];
    Sequence* s = &seqs_.at(pick.seq);
    const Request& r = RequestOf(*s);
    PlacementQuery q;
    Placement p;
    preempted_.clear();
    if (TryPlace(s, &pick, &q, &p, now)) {
      if (i > 0) NoteOvertaken(i);
      if (i > 0 && pick.reason == PickReason::kOrder) pick.reason = PickReason::kBackfill;
      ++s->attempt;
      decided_at_ = now;
      RecordDecision(*s, r, pick, p, q);
      const double cost = CostLeft(r, static_cast<uint32_t>(s->generated.size()), /*plain=*/true) / r.sub.n;
      RequestOf(*s).charged += cost;
      Dequeue(s);
      queue_.Taken(pick, cost);
      Dispatch(s, p, now);
      return true;
    }
    s->waits.Note(p.wait);
    ++decision_stats_.wait[static_cast<size_t>(p.wait)];
    // Overtaken often enough, a call that lacks room gets what becomes free next.
    const bool lacks_room = p.wait == WaitReason::kNoBlocks && !p.waits_for_sticky;
    if (lacks_room && s->overtaken >= config_.agent.most_overtakes) return false;
  }
  return false;
}

void RouterCore::NoteOvertaken(size_t taken) {
  for (size_t j = 0; j < taken; ++j) {
    Sequence& s = seqs_.at(picks_[j].seq);
    ++s.overtaken;
    ++decision_stats_.overtakes;
  }
}

void RouterCore::Dispatch(Sequence* s, const Placement& p, TimeNs now) {
  Request& r = RequestOf(*s);
  LeaveQueueBounds(&r);
  SetTimer(&r);
  if (!s->first_dispatch_done) {
    s->first_dispatch_done = true;
    s->timeline.queue_ms = base::ToMs(now - r.queued_since);
  }
  if (const Program* program = r.program.empty() ? nullptr : programs_.Find(r.program); program != nullptr) {
    gate_.OnBack(program->serial);
  }
  s->dispatched_at = now;
  s->attached = false;
  s->prefix_recorded = false;
  s->decode = p.decode;
  s->booking = p.booking;
  r.last_decode = p.decode;
  workers_.Book(workers_.Find(p.decode), s->id, s->booking);
  s->timeline.decode_worker = workers_.Find(p.decode)->info.name;
  if (queue_.lane(r.lane).policy.preempt && r.difficulty == Difficulty::kHard) running_hard_.insert({now, s->id});

  auto spec = std::make_shared<SequenceSpec>();
  spec->request_id = r.sub.request_id;
  spec->tokens.reserve(r.sub.prompt->size() + s->generated.size());
  spec->tokens = *r.sub.prompt;
  spec->tokens.insert(spec->tokens.end(), s->generated.begin(), s->generated.end());
  spec->prompt_tokens = static_cast<uint32_t>(r.sub.prompt->size());
  spec->sampling = r.sub.sampling;
  spec->sampling.seed += s->index;
  spec->cache_salt = r.sub.cache_salt;
  spec->traceparent = r.sub.traceparent;
  Command& c = Send(p.decode, CommandKind::kReserve, *s);
  c.spec = spec;
  c.budget_ms = BudgetMs(r, now);
  s->rank = RankFor(*s, r, p.new_tokens, now);
  c.rank = s->rank;
  if (p.prefill.value == 0) {
    StartLocal(s);
    return;
  }
  s->phase = SeqPhase::kReserving;
  s->prefill = p.prefill;
  s->spec = std::move(spec);
  workers_.Book(workers_.Find(p.prefill), s->id, Booking{});
}

// Order at the workers, larger first. Tenants meet there, so under the agent policy nothing that a caller says counts:
// calls go in the order in which they were handed out, as if those with more to compute had come later by about the
// time that takes. So a short append overtakes a long prompt, but only those that come within that time do.
int64_t RouterCore::RankFor(const Sequence& s, const Request& r, uint32_t new_tokens, TimeNs now) const {
  if (!queue_.lane(r.lane).policy.agent) return s.key.Rank();
  constexpr int64_t kUsPerToken = 50;
  return -(now / 1000 + kUsPerToken * int64_t{new_tokens});
}

// The decode worker computes the prompt; its blocks are (being) reserved.
void RouterCore::StartLocal(Sequence* s) {
  AS_CHECK(s->prefill.value == 0);
  s->phase = SeqPhase::kLocal;
  s->timeline.prefill_worker = s->timeline.decode_worker;
  ++stats_.placed_local;
  Send(s->decode, CommandKind::kPrefillLocal, *s);
}

// Lets go of the prefill worker, telling it with `how` if it was started.
void RouterCore::ReleasePrefill(Sequence* s, CommandKind how) {
  if (s->prefill.value == 0) return;
  Worker* p = workers_.Find(s->prefill);
  AS_CHECK(p != nullptr);
  workers_.Unbook(p, s->id, Booking{});
  if (p->linked && s->phase != SeqPhase::kReserving) Send(s->prefill, how, *s);
  s->prefill = WorkerId();
  s->spec.reset();
  pump_wanted_ = true;
}

// Lets go of the decode worker. The prefill worker must have been released before.
void RouterCore::ReleaseWorkers(Sequence* s, bool tell_decode) {
  AS_CHECK(s->prefill.value == 0);
  if (s->decode.value == 0) return;
  running_hard_.erase({s->dispatched_at, s->id});
  Worker* d = workers_.Find(s->decode);
  AS_CHECK(d != nullptr);
  workers_.Unbook(d, s->id, s->booking);
  if (tell_decode && d->linked) Send(s->decode, CommandKind::kCancel, *s);
  s->booking = Booking{};
  s->decode = WorkerId();
  pump_wanted_ = true;
}

void RouterCore::RecordPrefix(Sequence* s, WorkerId w) { prefixes_.Record(RequestOf(*s).sub.chain, w); }

// The worker also holds the blocks of the output, which the next turn's prompt will contain. The last token was never
// run, so it has no KV.
void RouterCore::RecordOutput(Sequence* s, WorkerId w) {
  const Submission& sub = RequestOf(*s).sub;
  if (sub.block_tokens == 0 || s->generated.empty()) return;
  std::vector<TokenId> tokens = *sub.prompt;
  tokens.insert(tokens.end(), s->generated.begin(), s->generated.end() - 1);
  std::vector<base::Hash128> chain = sub.chain;
  engine::ExtendChain(sub.chain_root, tokens, sub.block_tokens, &chain);
  if (chain.size() > sub.chain.size()) prefixes_.Record(chain, w);
}

}  // namespace agentserve::router
