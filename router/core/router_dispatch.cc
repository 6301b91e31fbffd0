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
  CallView call;
  call.arrival = s->arrival;
  call.queued_at = now;
  call.deadline = r.sub.deadline;
  call.prompt_tokens = static_cast<uint32_t>(r.sub.prompt->size());
  call.generated_tokens = static_cast<uint32_t>(s->generated.size());
  call.agent = &r.sub.agent;
  ProgramView view;
  const Program* p = r.program.empty() ? nullptr : programs_.Find(r.program);
  if (p != nullptr) view = p->View();
  s->key = policy_.key(call, p == nullptr ? nullptr : &view, now);
  s->phase = SeqPhase::kQueued;
  queue_.insert({s->key, s->id});
  pump_wanted_ = true;
}

void RouterCore::Dequeue(Sequence* s) { AS_CHECK_EQ(queue_.erase({s->key, s->id}), 1u); }

// Siblings of an n > 1 request join the queue once sequence 0's prompt is computed.
void RouterCore::ReleaseHeld(Request* r, TimeNs now) {
  for (SeqId id : r->seqs) {
    auto it = seqs_.find(id);
    if (it != seqs_.end() && it->second.phase == SeqPhase::kHeld) Enqueue(&it->second, now);
  }
}

void RouterCore::RekeyAll(TimeNs now) {
  std::vector<SeqId> ids;
  ids.reserve(queue_.size());
  for (const auto& [key, id] : queue_) ids.push_back(id);
  queue_.clear();
  for (SeqId id : ids) Enqueue(&seqs_.at(id), now);
}

// Hands out from the head of the queue until the head fits nowhere. Nobody overtakes the head: a large prompt is never
// starved by small ones.
void RouterCore::Pump(TimeNs now) {
  if (!pump_wanted_) return;
  pump_wanted_ = false;
  if (policy_.rekey_every > 0 && now >= next_rekey_) {
    next_rekey_ = now + policy_.rekey_every;
    RekeyAll(now);
  }
  while (!queue_.empty() && DispatchHead(now)) {
  }
  pump_wanted_ = false;
}

uint32_t RouterCore::ExpectedOutput(const Request& r, const Sequence& s) const {
  const uint32_t left = r.sub.sampling.max_tokens - static_cast<uint32_t>(s.generated.size());
  const uint32_t hint = r.sub.agent.osl_hint.value_or(config_.expected_output_tokens);
  return std::min(left, std::clamp<uint32_t>(hint, 1, 8 * config_.expected_output_tokens));
}

bool RouterCore::DispatchHead(TimeNs now) {
  Sequence* s = &seqs_.at(queue_.begin()->second);
  Request& r = RequestOf(*s);
  PlacementQuery q;
  q.tokens = static_cast<uint32_t>(r.sub.prompt->size() + s->generated.size());
  q.expected_more = ExpectedOutput(r, *s);
  if (!AnyCapacity(workers_, q)) return false;
  if (const Program* p = r.program.empty() ? nullptr : programs_.Find(r.program); p != nullptr) {
    q.sticky = p->last_decode;
  }
  match_scratch_.clear();
  prefixes_.Match(r.sub.chain, &match_scratch_);
  if (directory_ != nullptr) directory_->Match(r.sub.chain, &match_scratch_);
  Placement p;
  if (!Place(workers_, config_, q, match_scratch_, &p)) return false;
  Dequeue(s);
  Dispatch(s, p, now);
  return true;
}

void RouterCore::Dispatch(Sequence* s, const Placement& p, TimeNs now) {
  Request& r = RequestOf(*s);
  ++s->attempt;
  LeaveQueueBounds(&r);
  SetTimer(&r);
  if (!s->first_dispatch_done) {
    s->first_dispatch_done = true;
    s->timeline.queue_ms = base::ToMs(now - r.queued_since);
  }
  s->dispatched_at = now;
  s->attached = false;
  s->prefix_recorded = false;
  s->decode = p.decode;
  s->booking = p.booking;
  r.last_decode = p.decode;
  workers_.Book(workers_.Find(p.decode), s->id, s->booking);
  s->timeline.decode_worker = workers_.Find(p.decode)->info.name;

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
  c.rank = s->key.Rank();
  if (p.prefill.value == 0) {
    StartLocal(s);
    return;
  }
  s->phase = SeqPhase::kReserving;
  s->prefill = p.prefill;
  s->spec = std::move(spec);
  workers_.Book(workers_.Find(p.prefill), s->id, Booking{});
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
