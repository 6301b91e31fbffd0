// The simulation's loop: events to router and workers, and what they answer.
#include "tools/sim/driver.h"

namespace agentserve::sim::driver {

// ---- router and workers ----

void Simulation::Carry(router::Command c) {
  const auto it = by_id_.find(c.worker.value);
  if (it == by_id_.end()) return;
  Order order;
  if (c.spec != nullptr) {
    const auto live = live_.find(std::stoull(c.spec->request_id));
    if (live == live_.end()) return;
    order.spans = live->second.spans;
    order.tokens = static_cast<uint32_t>(c.spec->tokens.size());
    order.generated = order.tokens - c.spec->prompt_tokens;
    order.max_tokens =
        o_.exact_max_tokens ? c.spec->sampling.max_tokens : replay_.call(live->second.session, live->second.call).out;
    order.stops = !o_.exact_max_tokens;
  }
  order.command = std::move(c);
  Push(now_ + message_, EventKind::kDown, orders_.Put(std::move(order)));
}

void Simulation::Down(uint32_t index) {
  const Order order = orders_.Take(index);
  const auto it = by_id_.find(order.command.worker.value);
  if (it == by_id_.end()) return;
  const uint32_t i = it->second;
  if (slots_[i].worker == nullptr || slots_[i].id != order.command.worker) return;
  if (order.command.kind == CommandKind::kConnectPeer) {
    const auto peer = by_id_.find(order.command.peer.value);
    if (peer != by_id_.end()) Push(now_ + message_, EventKind::kPeer, i, peer->second);
    return;
  }
  slots_[i].worker->Obey(order, now_);
  AfterWorker(i);
}

// Sends what the worker said and plans when to wake it.
void Simulation::AfterWorker(uint32_t i) {
  Slot& s = slots_[i];
  for (UpMessage& m : s.worker->outbox()) {
    Push(now_ + message_, EventKind::kUp, messages_.Put(std::move(m)), s.id.value);
  }
  s.worker->outbox().clear();
  const TimeNs next = s.worker->NextEvent();
  if (next == s.wake) return;
  s.wake = next;
  ++s.version;
  if (next != kNever) Push(std::max(next, now_), EventKind::kWake, i, s.version);
}

void Simulation::Deliver(WorkerId id, UpMessage& m) {
  using Kind = UpMessage::Kind;
  switch (m.kind) {
    case Kind::kReserved:
      return core_->OnReserved(id, m.seq, m.attempt, m.cached_tokens, now_);
    case Kind::kAdmitted:
      return core_->OnAdmitted(id, m.seq, m.attempt, std::move(m.kv), m.cached_tokens, now_);
    case Kind::kFirstToken:
      return core_->OnFirstToken(id, m.seq, m.attempt, m.first, now_);
    case Kind::kKvReady:
      return core_->OnKvReady(id, m.seq, m.attempt, m.ready, now_);
    case Kind::kStep:
      return core_->OnStep(id, m.step, m.tokens, now_);
    case Kind::kFinished:
      return core_->OnFinished(id, m.seq, m.attempt, m.totals, now_);
    case Kind::kFailed:
      return core_->OnFailed(id, m.seq, m.attempt, m.failure, now_);
    case Kind::kLoad:
      return core_->OnLoad(id, m.load, now_);
  }
}

void Simulation::Drain() {
  for (;;) {
    core_->TakeEffects(&effects_);
    if (effects_.empty()) return;
    router::Effects e = std::move(effects_);
    effects_ = {};
    for (const router::LinkEffect& l : e.links) {
      if (l.open) Push(now_ + message_, EventKind::kLinkUp, 0, l.worker.value);
    }
    for (router::Command& c : e.commands) Carry(std::move(c));
    for (const router::RequestDone& d : e.request_ends) OnRequestDone(d);
  }
}

void Simulation::ScheduleTick() {
  // NextWake costs O(workers): with many of them it is asked less often.
  if (slots_.size() > 64 && handled_ % (slots_.size() / 16) != 0) return;
  const TimeNs wake = std::max(core_->NextWake(), now_ + 1);
  if (wake >= kFar || wake >= tick_at_) return;
  tick_at_ = wake;
  Push(wake, EventKind::kTick, 0);
}

void Simulation::Handle(const Event& e) {
  switch (e.kind) {
    case EventKind::kSession:
      ++sessions_begun_;
      replay_.Start(e.a, e.b, now_);
      ScheduleReady();
      if (gaps_ != nullptr) {
        const TimeNs next = now_ + FromSeconds(gaps_->Next());
        if (next < FromSeconds(o_.duration_s)) NextSession(next);
      }
      return;
    case EventKind::kSubmit:
      return Submit(e.b, e.a);
    case EventKind::kDown:
      return Down(e.a);
    case EventKind::kUp: {
      UpMessage m = messages_.Take(e.a);
      return Deliver(WorkerId(e.b), m);
    }
    case EventKind::kWake:
      if (slots_[e.a].version != e.b || slots_[e.a].worker == nullptr) return;
      slots_[e.a].wake = kNever;
      slots_[e.a].worker->Advance(now_);
      return AfterWorker(e.a);
    case EventKind::kLinkUp: {
      const auto it = by_id_.find(e.b);
      if (it == by_id_.end() || slots_[it->second].id.value != e.b || slots_[it->second].worker == nullptr) return;
      return core_->OnLinkUp(WorkerId(e.b), now_);
    }
    case EventKind::kLinkDown:
      return core_->OnLinkDown(WorkerId(e.b), now_);
    case EventKind::kPeer: {
      const Slot& peer = slots_[e.b];
      return core_->OnPeerConnected(slots_[e.a].id, peer.info.name, peer.info.incarnation, true, now_);
    }
    case EventKind::kTick:
      tick_at_ = kNever;
      return core_->Tick(now_);
    case EventKind::kClient:
      return OnClient(ends_.Take(e.a));
    case EventKind::kKill:
      return Kill(e.a);
    case EventKind::kRevive:
      return Revive(e.a);
  }
}

bool Simulation::Done() const {
  if (o_.arrivals == workload::ArrivalKind::kTrace)
    return sessions_begun_ == w_.programs.size() && replay_.sessions() == 0;
  return now_ >= FromSeconds(o_.duration_s) && replay_.counted_open() == 0;
}

void Simulation::CheckInvariants() const {
  core_->CheckInvariants();
  for (const Slot& s : slots_) {
    if (s.worker != nullptr) s.worker->CheckInvariants();
  }
}

SimResult Simulation::Run() {
  message_ = FromMs(model_.calibration().message_ms);
  client_ = FromMs(model_.calibration().client_ms);
  MakeWorkers();
  core_ = std::make_unique<RouterCore>(Config(), now_);
  for (uint32_t i = 0; i < slots_.size(); ++i) Revive(i);
  Drain();
  base::SplitMix64 rng(o_.seed + 4242);
  for (double at : o_.kill_at_s) {
    Push(FromSeconds(at), EventKind::kKill, static_cast<uint32_t>(rng.Below(o_.decode_workers)));
  }
  ScheduleArrivals();
  uint64_t next_report = 0;
  while (!events_.empty() && !Done()) {
    const Event e = events_.top();
    events_.pop();
    if (e.at > FromSeconds(o_.limit_s)) {
      gave_up_ = true;
      break;
    }
    AS_CHECK_GE(e.at, now_);
    now_ = e.at;
    hash_ =
        (hash_ ^ (static_cast<uint64_t>(e.at) * 31 + static_cast<uint64_t>(e.kind) * 7 + e.a + e.b)) * 0x100000001b3ull;
    ++handled_;
    Handle(e);
    Drain();
    ScheduleTick();
    if (o_.check_every > 0 && handled_ % o_.check_every == 0) CheckInvariants();
    if (o_.progress && handled_ >= next_report) {
      next_report = handled_ + 200'000;
      o_.progress(static_cast<double>(now_) / 1e9, replay_.jobs_done());
    }
  }
  return Result();
}

SimResult Simulation::Result() {
  SimResult r;
  r.records = std::move(replay_.records());
  if (o_.arrivals == workload::ArrivalKind::kTrace) {
    r.records.window_from_s = 0;
    r.records.window_to_s = static_cast<double>(now_) / 1e9;
    r.records.window_jobs = r.records.jobs.size();
  }
  r.figures = MakeFigures(r.records, w_.classes, w_.labels, o_.slo);
  r.event_hash = hash_;
  r.events = handled_;
  r.calls_ended = calls_ended_;
  r.virtual_s = static_cast<double>(now_) / 1e9;
  r.migrations = core_->stats().migrations;
  r.gave_up = gave_up_;
  for (const Slot& s : slots_) {
    const WorkerStats now = s.worker == nullptr ? WorkerStats{} : s.worker->stats();
    r.preemptions += now.preemptions + s.past.preemptions;
    if (s.options.role == router::Role::kDecode) r.busy_share += (now.busy_ns + s.past.busy_ns) / 1e9 / r.virtual_s;
  }
  r.busy_share /= o_.decode_workers;
  return r;
}

}  // namespace agentserve::sim::driver
