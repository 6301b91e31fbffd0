// What workers say, what becomes of their sequences when they die, and time.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/strings.h"
#include "router/core/router_core.h"

namespace agentserve::router {

// ---- membership ----

absl::StatusOr<WorkerId> RouterCore::RegisterWorker(const WorkerInfo& info, TimeNs now) {
  absl::StatusOr<WorkerTable::Registered> reg = workers_.Register(info, now);
  if (!reg.ok()) return reg.status();
  if (reg->replaced) LoseWorker(*reg->replaced, /*crash=*/true, now);
  Worker* w = workers_.Find(reg->id);
  if (reg->fresh) {
    w->phase = WorkerPhase::kConnecting;
    effects_.links.push_back({w->id, true});
  }
  if (w->linked) {
    const bool drain = w->info.draining || w->drain_asked;
    w->phase = drain ? WorkerPhase::kDraining : WorkerPhase::kReady;
  }
  NoteDecodePresence(now);
  pump_wanted_ = true;
  Pump(now);
  return reg->id;
}

absl::StatusOr<uint32_t> RouterCore::DrainWorker(std::string_view name, TimeNs now) {
  Worker* w = workers_.FindByName(name);
  if (w == nullptr) return absl::NotFoundError(base::StrCat("no worker \"", name, "\" is registered"));
  w->drain_asked = true;
  if (w->linked) w->phase = WorkerPhase::kDraining;
  NoteDecodePresence(now);
  return static_cast<uint32_t>(w->sequences.size());
}

void RouterCore::NoteDecodePresence(TimeNs now) {
  if (workers_.AnyDecode()) {
    no_decode_since_ = -1;
  } else if (no_decode_since_ < 0) {
    no_decode_since_ = now;
  }
}

void RouterCore::OnLinkUp(WorkerId id, TimeNs now) {
  Worker* w = workers_.Find(id);
  if (w == nullptr || w->linked) return;
  w->linked = true;
  w->link_failures = 0;
  w->last_step = -1;
  w->last_message = now;
  w->has_load = false;
  w->saturated = false;
  w->peers.clear();
  w->phase = w->info.draining || w->drain_asked ? WorkerPhase::kDraining : WorkerPhase::kReady;
  ConnectPairs(*w);
  NoteDecodePresence(now);
  pump_wanted_ = true;
  Pump(now);
}

// Lets decode workers map the pools of prefill workers before any request needs it.
void RouterCore::ConnectPairs(const Worker& w) {
  for (const auto& [id, other] : workers_.all()) {
    if (!other.linked || other.info.role == w.info.role) continue;
    Command& c = effects_.commands.emplace_back();
    c.kind = CommandKind::kConnectPeer;
    c.worker = w.info.role == Role::kDecode ? w.id : id;
    c.peer = w.info.role == Role::kDecode ? id : w.id;
  }
}

void RouterCore::OnPeerConnected(WorkerId decode, std::string_view peer, uint64_t peer_incarnation, bool usable,
                                 TimeNs now) {
  Worker* d = Heard(decode, now);
  const Worker* p = workers_.FindByName(peer);
  if (d == nullptr || p == nullptr || p->info.incarnation != peer_incarnation || !p->linked) return;
  if (usable) {
    d->peers.insert(p->id);
  } else {
    d->peers.erase(p->id);
  }
  pump_wanted_ = true;
  Pump(now);
}

void RouterCore::OnLinkDown(WorkerId id, TimeNs now) {
  Worker* w = workers_.Find(id);
  if (w == nullptr) return;
  DropLink(w, /*crash=*/!w->info.draining, now);
  Pump(now);
}

// The worker drops everything of a broken link, so its sequences move on. The worker itself stays while its lease does.
void RouterCore::DropLink(Worker* w, bool crash, TimeNs now) {
  w->linked = false;
  w->phase = WorkerPhase::kBackoff;
  const TimeNs wait = config_.link_backoff_first << std::min<uint32_t>(w->link_failures, 10);
  ++w->link_failures;
  w->retry_at = now + std::min(wait, config_.link_backoff_most);
  EvictSequences(w, crash, now);
  for (auto& [id, other] : workers_.all()) other.peers.erase(w->id);
  NoteDecodePresence(now);
}

void RouterCore::EvictSequences(Worker* w, bool crash, TimeNs now) {
  const std::vector<SeqId> lost(w->sequences.begin(), w->sequences.end());
  for (SeqId id : lost) {
    auto it = seqs_.find(id);
    if (it == seqs_.end()) continue;  // ended with its request meanwhile
    if (w->info.role == Role::kDecode) {
      LoseDecode(&it->second, crash, now);
    } else {
      LosePrefill(&it->second, crash, now);
    }
  }
  AS_CHECK(w->sequences.empty());
}

void RouterCore::LoseWorker(WorkerId id, bool crash, TimeNs now) {
  Worker* w = workers_.Find(id);
  ++stats_.workers_lost;
  w->linked = false;
  w->phase = WorkerPhase::kBackoff;
  w->retry_at = std::numeric_limits<TimeNs>::max();
  EvictSequences(w, crash, now);
  effects_.links.push_back({id, false});
  workers_.Remove(id);
  NoteDecodePresence(now);
  pump_wanted_ = true;
}

// ---- sequences of dead workers ----

// False: the sequence's request was refused as poison, and both are gone.
bool RouterCore::CountCrash(Sequence* s, TimeNs now) {
  if (++s->crashes < config_.poison_limit) return true;
  ++stats_.poisoned;
  const Request& r = RequestOf(*s);
  AddPoison(r.sub.digest, now);
  CompleteRequest(
      s->request, EndReason::kPoison,
      base::StrCat("the request was running on ", s->crashes, " workers when they died; it is not tried again"), 0,
      now);
  return false;
}

void RouterCore::AddPoison(const base::Hash128& digest, TimeNs now) {
  poisoned_[digest] = now + config_.poison_ttl;
  poison_order_.emplace_back(now + config_.poison_ttl, digest);
  while (poison_order_.size() > config_.max_poisoned ||
         (!poison_order_.empty() && poison_order_.front().first <= now)) {
    auto it = poisoned_.find(poison_order_.front().second);
    if (it != poisoned_.end() && it->second <= poison_order_.front().first) poisoned_.erase(it);
    poison_order_.pop_front();
  }
}

void RouterCore::LoseDecode(Sequence* s, bool crash, TimeNs now) {
  if (s->phase == SeqPhase::kFinishing) {  // only its totals are lost
    ReleasePrefill(s, CommandKind::kReleaseKv);
    ReleaseWorkers(s, /*tell_decode=*/false);
    EndSequence(s, s->finish, now);
    return;
  }
  ReleasePrefill(s, CommandKind::kCancel);
  ReleaseWorkers(s, /*tell_decode=*/false);
  ++s->timeline.migrations;
  ++stats_.migrations;
  s->phase = SeqPhase::kHeld;  // between states
  if (crash && !CountCrash(s, now)) return;
  Requeue(s, now);
}

// Back into the queue with all tokens made so far, under its old key: it has waited already.
void RouterCore::Requeue(Sequence* s, TimeNs now) {
  if (s->attempt >= config_.max_attempts) {
    CompleteRequest(s->request, EndReason::kWorkerFailed,
                    base::StrCat("the request failed on workers ", s->attempt, " times; try again later"),
                    base::kNsPerSecond, now);
    return;
  }
  Enqueue(s, now);
}

void RouterCore::LosePrefill(Sequence* s, bool crash, TimeNs now) {
  const bool started = s->phase == SeqPhase::kPrefilling;
  ReleasePrefill(s, CommandKind::kCancel);
  if (!started) return;  // kReserving: decided at Reserved; later phases: the decode worker recomputes by itself
  if (crash && !CountCrash(s, now)) return;
  StartLocal(s);
}

// ---- messages ----

Worker* RouterCore::Heard(WorkerId id, TimeNs now) {
  Worker* w = workers_.Find(id);
  if (w == nullptr || !w->linked) {
    ++stats_.late_messages;
    return nullptr;
  }
  w->last_message = now;
  return w;
}

Sequence* RouterCore::FindForDecode(WorkerId w, SeqId seq, uint32_t attempt) {
  auto it = seqs_.find(seq);
  if (it == seqs_.end() || it->second.decode != w || it->second.attempt != attempt) {
    ++stats_.late_messages;
    return nullptr;
  }
  return &it->second;
}

Sequence* RouterCore::FindForPrefill(WorkerId w, SeqId seq, uint32_t attempt) {
  auto it = seqs_.find(seq);
  if (it == seqs_.end() || it->second.prefill != w || it->second.attempt != attempt) {
    ++stats_.late_messages;
    return nullptr;
  }
  return &it->second;
}

void RouterCore::OnLoad(WorkerId id, const WorkerLoad& load, TimeNs now) {
  Worker* w = Heard(id, now);
  if (w == nullptr) return;
  w->load = load;
  w->has_load = true;
  w->saturated = false;
  // Reserved comes before the load on the same stream, so these are part of the report.
  for (SeqId seq : w->reserved_since_load) {
    Sequence& s = seqs_.at(seq);
    w->unreflected_blocks -= s.booking.unreflected;
    s.booking.unreflected = 0;
  }
  w->reserved_since_load.clear();
  pump_wanted_ = true;
  Pump(now);
}

void RouterCore::OnReserved(WorkerId id, SeqId seq, uint32_t attempt, uint32_t cached_tokens, TimeNs now) {
  Worker* w = Heard(id, now);
  Sequence* s = w == nullptr ? nullptr : FindForDecode(id, seq, attempt);
  if (s == nullptr) return;
  if (s->booking.unreflected > 0) w->reserved_since_load.insert(seq);
  if (s->phase == SeqPhase::kLocal) {
    s->timeline.cached_tokens = cached_tokens;
    return;
  }
  if (s->phase != SeqPhase::kReserving) return;
  const Request& r = RequestOf(*s);
  const size_t tokens = r.sub.prompt->size() + s->generated.size();
  const size_t fresh = tokens - std::min<size_t>(tokens, cached_tokens);
  if (s->prefill.value == 0 || fresh < config_.prefill_threshold) {
    ReleasePrefill(s, CommandKind::kCancel);
    s->timeline.cached_tokens = cached_tokens;
    StartLocal(s);
    Pump(now);
    return;
  }
  s->phase = SeqPhase::kPrefilling;
  s->timeline.prefill_worker = workers_.Find(s->prefill)->info.name;
  ++stats_.placed_remote;
  Command& c = Send(s->prefill, CommandKind::kStart, *s);
  c.spec = std::move(s->spec);
  c.budget_ms = BudgetMs(r, now);
  c.rank = s->key.Rank();
}

void RouterCore::OnAdmitted(WorkerId id, SeqId seq, uint32_t attempt, OpaquePtr kv, uint32_t cached_tokens,
                            TimeNs now) {
  if (Heard(id, now) == nullptr) return;
  Sequence* s = FindForPrefill(id, seq, attempt);
  if (s == nullptr || s->phase != SeqPhase::kPrefilling || s->attached) return;
  s->attached = true;
  s->timeline.cached_tokens = cached_tokens;
  Send(s->decode, CommandKind::kAttach, *s).kv = std::move(kv);
}

void RouterCore::OnFirstToken(WorkerId id, SeqId seq, uint32_t attempt, const FirstToken& first, TimeNs now) {
  if (Heard(id, now) == nullptr) return;
  Sequence* s = FindForPrefill(id, seq, attempt);
  if (s == nullptr || s->phase != SeqPhase::kPrefilling) return;
  s->timeline.prefill_wait_ms = first.wait_ms;
  s->timeline.prefill_ms = first.prefill_ms;
  RecordPrefix(s, id);
  s->phase = SeqPhase::kTransferring;
  s->finish = FinishOnToken(RequestOf(*s), *s, first.token);
  EmitToken(s, first.token, s->finish, first.logprobs, now);
  if (s->finish != FinishReason::kNone) {  // nothing to decode
    ReleasePrefill(s, CommandKind::kReleaseKv);
    ReleaseWorkers(s, /*tell_decode=*/true);
    EndSequence(s, s->finish, now);
  } else {
    Command& c = Send(s->decode, CommandKind::kAdmit, *s);
    c.kv = first.kv;
    c.first_token = first.token;
  }
  Pump(now);
}

void RouterCore::OnKvReady(WorkerId id, SeqId seq, uint32_t attempt, const KvReady& ready, TimeNs now) {
  if (Heard(id, now) == nullptr) return;
  Sequence* s = FindForDecode(id, seq, attempt);
  if (s == nullptr || s->phase != SeqPhase::kTransferring) return;
  s->phase = SeqPhase::kDecoding;
  s->timeline.transfer_bytes = ready.bytes;
  s->timeline.transfer_path = ready.transport;
  s->timeline.transfer_gb_per_s = ready.gb_per_s;
  s->timeline.transfer_exposed_ms = ready.exposed_ms;
  if (!s->prefix_recorded) {
    s->prefix_recorded = true;
    RecordPrefix(s, id);
  }
  ReleasePrefill(s, CommandKind::kReleaseKv);
  Pump(now);
}

void RouterCore::OnStep(WorkerId id, uint64_t step, const std::vector<StepToken>& tokens, TimeNs now) {
  Worker* w = Heard(id, now);
  if (w == nullptr) return;
  if (static_cast<int64_t>(step) <= w->last_step) {  // a repeated message: its tokens are out already
    ++stats_.late_messages;
    return;
  }
  w->last_step = static_cast<int64_t>(step);
  for (const StepToken& t : tokens) OnStepToken(w, t, now);
  Pump(now);
}

void RouterCore::OnStepToken(Worker* w, const StepToken& t, TimeNs now) {
  Sequence* s = FindForDecode(w->id, t.seq, t.attempt);
  if (s == nullptr) return;
  if (s->phase == SeqPhase::kLocal) {
    s->phase = SeqPhase::kDecoding;
    if (!s->prefix_recorded) {
      s->prefix_recorded = true;
      RecordPrefix(s, w->id);
    }
  } else if (s->phase != SeqPhase::kDecoding) {
    ++stats_.late_messages;  // not asked for: before Admit, or after its end
    return;
  }
  const size_t length = RequestOf(*s).sub.prompt->size() + s->generated.size();
  if (s->booking.growth > 0 && length % w->info.block_tokens == 0) {  // a block of the booking is in use now
    --s->booking.growth;
    --w->growth_blocks;
  }
  EmitToken(s, t.token, t.finish, t.logprobs, now);
  if (t.finish == FinishReason::kNone) return;
  s->finish = t.finish;
  s->finish_by = now + config_.finish_grace;
  s->phase = SeqPhase::kFinishing;
  finishing_.insert({s->finish_by, s->id});
}

void RouterCore::OnFinished(WorkerId id, SeqId seq, uint32_t attempt, const SequenceTotals& totals, TimeNs now) {
  if (Heard(id, now) == nullptr) return;
  Sequence* s = FindForDecode(id, seq, attempt);
  if (s == nullptr) return;
  if (s->phase != SeqPhase::kFinishing) {
    const uint32_t context = workers_.Find(id)->info.context_length;
    const size_t length = RequestOf(*s).sub.prompt->size() + s->generated.size();
    const bool at_its_limit = context > 0 && length >= context && !s->generated.empty();
    if (at_its_limit) {
      s->finish = FinishReason::kLength;  // the last token came from the prefill worker
    } else {
      FailOnDecode(s, {FailKind::kExecutor, "it ended without a last token"}, now);
    }
    if (at_its_limit) FinishAndMaybePark(s, now);
    Pump(now);
    return;
  }
  Timeline& t = s->timeline;
  t.decode_steps += totals.steps;
  t.decode_wait_ms = totals.decode_wait_ms;
  t.decode_ms += totals.decode_ms;
  t.preemptions += totals.preemptions;
  if (t.transfer_path.empty()) {
    t.prefill_wait_ms = totals.prefill_wait_ms;
    t.prefill_ms = totals.prefill_ms;
    t.cached_tokens = totals.cached_tokens;
  }
  FinishAndMaybePark(s, now);
  Pump(now);
}

void RouterCore::OnFailed(WorkerId id, SeqId seq, uint32_t attempt, const WorkerFailure& failure, TimeNs now) {
  Worker* w = Heard(id, now);
  if (w == nullptr) return;
  if (w->info.role == Role::kPrefill) {
    if (Sequence* s = FindForPrefill(id, seq, attempt); s != nullptr) FailOnPrefill(s, failure, now);
  } else {
    if (Sequence* s = FindForDecode(id, seq, attempt); s != nullptr) FailOnDecode(s, failure, now);
  }
  Pump(now);
}

// The worker has freed the sequence already.
void RouterCore::FailOnDecode(Sequence* s, const WorkerFailure& failure, TimeNs now) {
  if (s->phase == SeqPhase::kFinishing) {
    FinishAndMaybePark(s, now);
    return;
  }
  const std::string name = s->timeline.decode_worker;
  Worker* w = workers_.Find(s->decode);
  ReleasePrefill(s, CommandKind::kCancel);
  ReleaseWorkers(s, /*tell_decode=*/true);
  s->phase = SeqPhase::kHeld;
  switch (failure.kind) {
    case FailKind::kTooLong:
      CompleteRequest(s->request, EndReason::kTooLong, base::StrCat("worker ", name, ": ", failure.message), 0, now);
      return;
    case FailKind::kDeadline:
      CompleteRequest(s->request, EndReason::kDeadline, base::StrCat("worker ", name, ": ", failure.message), 0, now);
      return;
    case FailKind::kQueueFull:
      w->saturated = true;  // until its next load
      break;
    case FailKind::kHoldExpired:
    case FailKind::kExecutor:
      ++s->timeline.migrations;
      ++stats_.migrations;
      break;
  }
  Requeue(s, now);
}

void RouterCore::FailOnPrefill(Sequence* s, const WorkerFailure& failure, TimeNs now) {
  const bool started = s->phase == SeqPhase::kPrefilling;
  const std::string name = s->timeline.prefill_worker;
  Worker* w = workers_.Find(s->prefill);
  if (failure.kind == FailKind::kQueueFull) w->saturated = true;
  ReleasePrefill(s, CommandKind::kCancel);
  if (!started) return;  // the decode worker finds the blocks gone and recomputes
  if (failure.kind == FailKind::kDeadline) {
    CompleteRequest(s->request, EndReason::kDeadline, base::StrCat("worker ", name, ": ", failure.message), 0, now);
    return;
  }
  StartLocal(s);
}

// ---- time ----

void RouterCore::Tick(TimeNs now) {
  TickWorkers(now);
  TickRequests(now);
  if (policy_.rekey_every > 0 && now >= next_rekey_) pump_wanted_ = true;
  Pump(now);
}

void RouterCore::TickWorkers(TimeNs now) {
  std::vector<WorkerId> expired, stalled;
  for (auto& [id, w] : workers_.all()) {
    if (w.lease_until <= now) {
      expired.push_back(id);
    } else if (w.linked && !w.sequences.empty() && w.last_message + config_.stall_timeout <= now) {
      stalled.push_back(id);
    } else if (w.phase == WorkerPhase::kBackoff && w.retry_at <= now) {
      w.phase = WorkerPhase::kConnecting;
      effects_.links.push_back({id, true});
    }
  }
  for (WorkerId id : expired) LoseWorker(id, /*crash=*/!workers_.Find(id)->info.draining, now);
  for (WorkerId id : stalled) {
    effects_.links.push_back({id, false});
    DropLink(workers_.Find(id), /*crash=*/true, now);
  }
}

void RouterCore::TickRequests(TimeNs now) {
  while (!finishing_.empty() && finishing_.begin()->first <= now) {
    FinishAndMaybePark(&seqs_.at(finishing_.begin()->second), now);
  }
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const Request& r = requests_.at(timers_.begin()->second);
    const double waited = base::ToMs(now - r.sub.arrival);
    if (!r.dispatched) {
      CompleteRequest(r.key, EndReason::kQueueTimeout,
                      base::StrCat("no worker was free within ", waited, " ms; try again later"), base::kNsPerSecond,
                      now);
    } else {
      CompleteRequest(r.key, EndReason::kDeadline,
                      base::StrCat("the time budget ran out after ", waited, " ms and ", r.completion_tokens,
                                   " tokens; ask for a larger one or fewer tokens"),
                      0, now);
    }
  }
  if (no_decode_since_ >= 0 && now - no_decode_since_ >= config_.no_worker_grace) {
    while (!queue_.empty()) {
      CompleteRequest(seqs_.at(queue_.begin()->second).request, EndReason::kNoWorkers,
                      base::StrCat("there has been no decode worker for ", base::ToMs(now - no_decode_since_) / 1000,
                                   " s; try again later"),
                      base::kNsPerSecond, now);
    }
  }
}

TimeNs RouterCore::NextWake() const {
  TimeNs next = std::numeric_limits<TimeNs>::max();
  for (const auto& [id, w] : workers_.all()) {
    next = std::min(next, w.lease_until);
    if (w.phase == WorkerPhase::kBackoff) next = std::min(next, w.retry_at);
    if (w.linked && !w.sequences.empty()) next = std::min(next, w.last_message + config_.stall_timeout);
  }
  if (!timers_.empty()) next = std::min(next, timers_.begin()->first);
  if (!finishing_.empty()) next = std::min(next, finishing_.begin()->first);
  if (no_decode_since_ >= 0 && !queue_.empty()) next = std::min(next, no_decode_since_ + config_.no_worker_grace);
  if (policy_.rekey_every > 0 && !queue_.empty()) next = std::min(next, next_rekey_);
  return next;
}

}  // namespace agentserve::router
