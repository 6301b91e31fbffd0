// Workers come, leave and die; what becomes of the sequences they had.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/strings.h"
#include "router/core/router_core.h"

namespace agentserve::router {

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
  retention_.OnWorkerGone(w->id);  // sequences of a link that broke have no names any more
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
  retention_.OnWorkerGone(w->id);  // sequences of a link that broke have no names any more
  effects_.links.push_back({id, false});
  workers_.Remove(id);
  gate_.OnWorkerGone(id);
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
  if (s->attempt - s->preempted >= config_.max_attempts) {
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

}  // namespace agentserve::router
