// What workers say, and time.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/strings.h"
#include "router/core/router_core.h"

namespace agentserve::router {

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
  c.rank = s->rank;
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
    t.host_cached_tokens = totals.host_tokens;
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
  retention_.Tick(RetentionNow(now));
  RetirePrograms(now);
  if (now >= sticky_wake_) pump_wanted_ = true;
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
    Request& r = requests_.at(timers_.begin()->second);
    const double waited = base::ToMs(now - r.sub.arrival);
    if (r.waits) {
      TickWaiting(&r, now);
      continue;
    }
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
      CompleteRequest(seqs_.at(queue_.First()).request, EndReason::kNoWorkers,
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
  next = std::min(next, retention_.NextWake());
  if (!finishing_.empty()) next = std::min(next, finishing_.begin()->first);
  if (no_decode_since_ >= 0 && !queue_.empty()) next = std::min(next, no_decode_since_ + config_.no_worker_grace);
  next = std::min(next, sticky_wake_);
  if (!idle_programs_.empty()) next = std::min(next, idle_programs_.begin()->first.first);
  return next;
}

}  // namespace agentserve::router
