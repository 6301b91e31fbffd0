// The production cores as simulated workers: one step at a time, real tokens (see content.h), real block names.
#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <variant>

#include "base/check.h"
#include "base/rng.h"
#include "decode_worker/core/core.h"
#include "prefill_worker/core/core.h"
#include "tools/sim/content.h"
#include "tools/sim/worker.h"

namespace agentserve::sim {
namespace {

using engine::SeqId;
using router::CommandKind;
using Kind = UpMessage::Kind;

constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();

TimeNs FromMs(double ms) { return static_cast<TimeNs>(ms * 1e6 + 0.5); }

router::WorkerLoad ToRouter(const engine::Load& l) {
  router::WorkerLoad out;
  out.running = l.running;
  out.waiting = l.waiting;
  out.waiting_tokens = static_cast<uint32_t>(l.waiting_tokens);
  out.available_blocks = l.available_blocks;
  out.total_blocks = l.total_blocks;
  out.cached_blocks = l.cached_blocks;
  out.preemptions = l.preemptions;
  out.steps = l.steps;
  out.parked_blocks = l.parked_blocks;
  out.host_blocks = l.host_blocks;
  out.host_total_blocks = l.host_total_blocks;
  return out;
}

router::WorkerFailure ToRouter(const engine::Failure& f) {
  using router::FailKind;
  const FailKind kind = f.reason == "TOO_LONG"       ? FailKind::kTooLong
                        : f.reason == "DEADLINE"     ? FailKind::kDeadline
                        : f.reason == "QUEUE_FULL"   ? FailKind::kQueueFull
                        : f.reason == "HOLD_EXPIRED" ? FailKind::kHoldExpired
                                                     : FailKind::kExecutor;
  return {kind, f.message};
}

// What both roles share: sequences' tokens, the step in flight, noise.
template <typename Core>
class CoreWorkerBase : public SimWorker {
 public:
  CoreWorkerBase(const WorkerOptions& o, const StepModel* model, const typename Core::OptionsType& options)
      : o_(o), model_(*model), rng_(o.seed), core_(options.value) {}

  void Advance(TimeNs now) override {
    if (step_ != nullptr && step_end_ <= now) EndStep(now);
    if (core_.core.NextDeadline() <= now) StepCore(Tick(), now);
    More(now);
    while (!copies_.empty() && copies_.begin()->first <= now) {
      const engine::CopyEnded ended = copies_.begin()->second;
      copies_.erase(copies_.begin());
      StepCore(ended, now);
    }
    Turn(now);
  }
  TimeNs NextEvent() const override {
    const TimeNs copy = copies_.empty() ? kNever : copies_.begin()->first;
    return std::min({step_ == nullptr ? kNever : step_end_, core_.core.NextDeadline(), Other(), copy});
  }
  size_t size() const override { return core_.core.size(); }
  WorkerStats stats() const override {
    WorkerStats s;
    s.steps = core_.core.stats().steps;
    s.computed_tokens = core_.core.stats().computed_tokens;
    s.preemptions = core_.core.stats().preemptions;
    s.busy_ns = busy_ns_;
    return s;
  }
  void CheckInvariants() const override { core_.core.CheckInvariants(); }

 protected:
  struct Live {
    SpansPtr spans;
    uint32_t attempt = 0;
    bool stops = false;
  };
  using Tick = typename Core::TickType;

  virtual void Handle(TimeNs now) = 0;  // the core's effects
  virtual void More(TimeNs) {}          // other work that is due
  virtual TimeNs Other() const { return kNever; }

  template <typename Event>
  void StepCore(const Event& e, TimeNs now) {
    core_.core.Step(e, now);
    Handle(now);
  }

  // One copy after the other on the host link.
  void Copy(const engine::HostCopy& e, TimeNs now) {
    const double bytes = static_cast<double>(e.blocks.size()) * o_.block_tokens * model_.calibration().bytes_per_token;
    const TimeNs took = FromMs(model_.HostCopyMs(bytes));
    TimeNs& link = host_link_free_[e.to_host];
    link = std::max(link, now) + took;
    copies_.emplace(link, engine::CopyEnded{e.job, static_cast<uint32_t>(e.blocks.size()), false, took});
  }

  engine::SequenceSpec SpecOf(const Order& order) const {
    engine::SequenceSpec spec;
    spec.id = order.command.seq;
    spec.tokens = Tokens(*order.spans, order.tokens);
    spec.prompt_tokens = order.tokens - order.generated;
    spec.sampling = order.command.spec->sampling;
    spec.rank = order.command.rank;
    return spec;
  }

  StepWork WorkOf(const engine::PlannedStep& step) const {
    StepWork w;
    for (const engine::SeqSlice& s : step.plan.slices) {
      const auto tokens = static_cast<uint32_t>(s.tokens.size());
      if (tokens == 1 && s.sample && s.start >= s.prompt_tokens) {
        ++w.decodes;
        w.context += s.start + 1;
      } else {
        w.chunk_tokens += tokens;
        w.attention += tokens * (s.start + tokens / 2.0);
      }
    }
    return w;
  }

  // Plans and starts a step if none runs, then tells the load.
  void Turn(TimeNs now) {
    if (step_ == nullptr) {
      step_ = core_.core.PlanStep(now);
      Handle(now);
      core_.core.TakeBlockChanges();
      if (step_ != nullptr) {
        const double sigma = model_.calibration().residual_sigma;
        const double noise = sigma == 0 ? 1 : 1 + sigma * 1.732 * (2 * rng_.Uniform() - 1);
        step_end_ = now + std::max<TimeNs>(1, FromMs(model_.StepMs(WorkOf(*step_)) * noise));
        busy_ns_ += static_cast<double>(step_end_ - now);
      }
    }
    if (load_wanted_) {
      load_wanted_ = false;
      Say(Kind::kLoad, {}, 0).load = ToRouter(core_.core.load());
    }
  }

  void EndStep(TimeNs now) {
    typename Core::StepDoneType done;
    for (const engine::SeqSlice& s : step_->plan.slices) {
      if (!s.sample) continue;
      engine::SampledToken t;
      t.seq = s.seq;
      const auto it = live_.find(s.seq);
      const auto position = static_cast<uint32_t>(s.start + s.tokens.size());
      t.token = it == live_.end() ? 1 : TokenOf(it->second, position);
      done.output.tokens.push_back(std::move(t));
    }
    done.digests.assign(step_->seals.size(), 1);
    step_ = nullptr;
    load_wanted_ = true;
    StepCore(done, now);
  }

  static engine::TokenId TokenOf(const Live& live, uint32_t position) {
    if (live.stops && position + 1 >= live.spans->back().end) return kStopToken;
    for (const workload::Span& s : *live.spans) {
      if (position < s.end) return TokenAt(s.origin, position);
    }
    return 1;
  }

  const WorkerOptions o_;
  const StepModel& model_;
  base::SplitMix64 rng_;
  Core core_;
  std::map<SeqId, Live> live_;
  const engine::PlannedStep* step_ = nullptr;
  TimeNs step_end_ = 0;
  double busy_ns_ = 0;
  bool load_wanted_ = false;
  std::multimap<TimeNs, engine::CopyEnded> copies_;  // to and from host memory, by their end
  TimeNs host_link_free_[2] = {0, 0};
};

engine::Planner::Options PlannerOptions(const WorkerOptions& o) {
  engine::Planner::Options p;
  p.block_tokens = o.block_tokens;
  p.max_batch = o.max_batch;
  p.step_tokens = std::max(o.step_tokens, o.max_batch);
  p.context_length =
      static_cast<uint32_t>(std::min<uint64_t>(o.context_length, uint64_t{o.num_blocks} * o.block_tokens + 1));
  p.layout_fingerprint = 7;
  return p;
}

struct DecodeTypes {
  struct OptionsType {
    decode_worker::Options value;
  };
  using TickType = decode_worker::Tick;
  using StepDoneType = decode_worker::StepDone;
  explicit DecodeTypes(const decode_worker::Options& o) : core(o) {}
  decode_worker::Core core;
};

DecodeTypes::OptionsType DecodeOptions(const WorkerOptions& o, const StepModel& model) {
  decode_worker::Options d;
  d.pool.num_blocks = o.num_blocks;
  d.planner = PlannerOptions(o);
  d.vocab_size = kSimVocab;
  d.tiers.host_slots = o.host_blocks;
  d.tiers.block_tokens = o.block_tokens;
  d.tiers.block_bytes = static_cast<uint64_t>(model.calibration().bytes_per_token * o.block_tokens);
  d.tiers.host_bytes_per_s = model.calibration().host_gb_per_s * 1e9;
  return {d};
}

class CoreDecode final : public CoreWorkerBase<DecodeTypes> {
 public:
  CoreDecode(const WorkerOptions& o, const StepModel* model) : CoreWorkerBase(o, model, DecodeOptions(o, *model)) {
    core_.core.set_prefill_rate(8192e3 / model->PrefillMs(8192, 0, o.step_tokens));
  }

  void Obey(const Order& order, TimeNs now) override {
    const router::Command& c = order.command;
    if (c.kind == CommandKind::kReserve) {
      live_[c.seq] = {order.spans, c.attempt, order.stops};
      decode_worker::Reserve e;
      e.spec = SpecOf(order);
      e.budget_ns = static_cast<TimeNs>(c.budget_ms) * base::kNsPerMs;
      StepCore(e, now);
    } else if (c.kind == CommandKind::kRetain) {
      engine::KvTiers::Keep keep;
      keep.where = static_cast<engine::KeepWhere>(c.keep);
      keep.ttl = static_cast<TimeNs>(c.ttl_ms) * base::kNsPerMs;
      keep.worth = static_cast<uint32_t>(std::clamp(c.worth, 1.f / 64, 64.f) * engine::BlockPool::kBaseWorth);
      StepCore(decode_worker::Retain{c.seq, keep}, now);
    } else if (c.kind == CommandKind::kPrefetch) {
      StepCore(decode_worker::Prefetch{c.seq, static_cast<TimeNs>(c.ttl_ms) * base::kNsPerMs}, now);
    } else if (const auto it = live_.find(c.seq); it != live_.end() && it->second.attempt == c.attempt) {
      ObeyLive(c, now);
    }
    Turn(now);
  }

  void PeerLost(uint32_t worker, TimeNs now) override {
    std::vector<SeqId> lost;
    for (const auto& [seq, pull] : pulls_) {
      if (pull.peer == worker) lost.push_back(seq);
    }
    for (SeqId seq : lost) EndPull(seq, decode_worker::PullOutcome::kFailed, now);
    Turn(now);
  }

 private:
  struct Pull {
    uint32_t peer = 0, tail_tokens = 0;
    TimeNs begun = 0, due = kNever;
    double bytes = 0;
    bool aborted = false;
  };

  void ObeyLive(const router::Command& c, TimeNs now) {
    switch (c.kind) {
      case CommandKind::kPrefillLocal:
        return StepCore(decode_worker::PrefillLocal{c.seq}, now);
      case CommandKind::kAttach:
      case CommandKind::kAdmit: {
        const auto* kv = dynamic_cast<const SimKv*>(c.kv.get());
        AS_CHECK(kv != nullptr);
        peer_[c.seq] = {kv->worker, kv->tail_tokens};
        const auto& remote = *std::static_pointer_cast<const decode_worker::RemoteKv>(kv->remote);
        if (c.kind == CommandKind::kAttach) return StepCore(decode_worker::Attach{c.seq, remote}, now);
        return StepCore(decode_worker::Admit{c.seq, c.first_token, remote}, now);
      }
      case CommandKind::kCancel:
        return StepCore(decode_worker::Cancel{c.seq}, now);
      default:
        return;
    }
  }

  void More(TimeNs now) override {
    for (;;) {
      const auto due = std::find_if(pulls_.begin(), pulls_.end(), [&](const auto& p) { return p.second.due <= now; });
      if (due == pulls_.end()) break;
      using decode_worker::PullOutcome;
      EndPull(due->first, due->second.aborted ? PullOutcome::kAborted : PullOutcome::kOk, now);
    }
  }
  TimeNs Other() const override {
    TimeNs next = kNever;
    for (const auto& [seq, p] : pulls_) next = std::min(next, p.due);
    return next;
  }

  void EndPull(SeqId seq, decode_worker::PullOutcome outcome, TimeNs now) {
    decode_worker::PullEnded e;
    e.seq = seq;
    e.outcome = outcome;
    e.transport = "simulated";
    e.bytes = static_cast<uint64_t>(pulls_.at(seq).bytes);
    pulls_.erase(seq);
    StepCore(e, now);
  }

  void Handle(TimeNs now) override {
    for (const decode_worker::Effect& e : core_.core.TakeEffects()) {
      std::visit([&](const auto& x) { On(x, now); }, e);
    }
  }
  uint32_t Attempt(SeqId seq) const {
    const auto it = live_.find(seq);
    return it == live_.end() ? 0 : it->second.attempt;
  }
  void On(const decode_worker::Reserved& e, TimeNs) {
    Say(Kind::kReserved, e.seq, Attempt(e.seq)).cached_tokens = e.cached_tokens;
    load_wanted_ = true;
  }
  void On(const decode_worker::StartPull& e, TimeNs now) {
    Pull& p = pulls_[e.seq];
    p.peer = peer_[e.seq].first;
    p.begun = now;
    p.bytes = (static_cast<double>(e.blocks.size()) - e.first) * o_.block_tokens * model_.calibration().bytes_per_token;
  }
  void On(const decode_worker::FinishPull& e, TimeNs now) {
    Pull& p = pulls_.at(e.seq);
    const double tail = peer_[e.seq].second * model_.calibration().bytes_per_token;
    const auto flows = static_cast<uint32_t>(pulls_.size());
    p.due = std::max(p.begun + FromMs(model_.TransferMs(p.bytes, flows)),
                     now + FromMs(model_.TransferMs(std::min(tail, p.bytes), flows)));
  }
  void On(const decode_worker::AbortPull& e, TimeNs now) {
    const auto it = pulls_.find(e.seq);
    if (it != pulls_.end()) it->second.aborted = true, it->second.due = now;
  }
  void On(const decode_worker::HostCopy& e, TimeNs now) { Copy(e, now); }
  void On(const decode_worker::KvReady& e, TimeNs) {
    router::KvReady& r = Say(Kind::kKvReady, e.seq, Attempt(e.seq)).ready;
    r.bytes = e.bytes;
    r.transport = e.transport;
    r.exposed_ms = base::ToMs(e.exposed_ns);
  }
  void On(const decode_worker::StepTokens& e, TimeNs) {
    UpMessage& m = Say(Kind::kStep, {}, 0);
    m.step = e.step;
    for (const decode_worker::TokenOut& t : e.tokens) {
      router::StepToken& out = m.tokens.emplace_back();
      out.seq = t.token.seq;
      out.attempt = Attempt(t.token.seq);
      out.token = t.token.token;
      out.finish = t.finish;
    }
  }
  void On(const decode_worker::Finished& e, TimeNs) {
    router::SequenceTotals& t = Say(Kind::kFinished, e.seq, Attempt(e.seq)).totals;
    t.steps = e.steps;
    t.cached_tokens = e.cached_tokens;
    t.preemptions = e.preemptions;
    t.host_tokens = e.host_tokens;
    t.prefill_wait_ms = base::ToMs(e.prefill_wait_ns);
    t.prefill_ms = base::ToMs(e.prefill_ns);
    t.decode_wait_ms = base::ToMs(e.decode_wait_ns);
    t.decode_ms = base::ToMs(e.decode_ns);
  }
  void On(const decode_worker::Failed& e, TimeNs) {
    Say(Kind::kFailed, e.seq, Attempt(e.seq)).failure = ToRouter(e.failure);
  }
  void On(const decode_worker::Closed& e, TimeNs) {
    live_.erase(e.seq);
    peer_.erase(e.seq);
    load_wanted_ = true;
  }

  std::map<SeqId, std::pair<uint32_t, uint32_t>> peer_;  // prefill worker, tokens of the last chunk
  std::map<SeqId, Pull> pulls_;
};

struct PrefillTypes {
  struct OptionsType {
    prefill_worker::Options value;
  };
  using TickType = prefill_worker::Tick;
  using StepDoneType = prefill_worker::StepDone;
  explicit PrefillTypes(const prefill_worker::Options& o) : core(o) {}
  prefill_worker::Core core;
};

PrefillTypes::OptionsType PrefillOptions(const WorkerOptions& o) {
  prefill_worker::Options p;
  p.pool.num_blocks = o.num_blocks;
  p.planner = PlannerOptions(o);
  p.vocab_size = kSimVocab;
  return {p};
}

class CorePrefill final : public CoreWorkerBase<PrefillTypes> {
 public:
  CorePrefill(const WorkerOptions& o, const StepModel* model) : CoreWorkerBase(o, model, PrefillOptions(o)) {}

  void Obey(const Order& order, TimeNs now) override {
    const router::Command& c = order.command;
    if (c.kind == CommandKind::kStart) {
      live_[c.seq] = {order.spans, c.attempt, order.stops};
      prefill_worker::Start e;
      e.spec = SpecOf(order);
      e.budget_ns = static_cast<TimeNs>(c.budget_ms) * base::kNsPerMs;
      StepCore(e, now);
    } else if (const auto it = live_.find(c.seq); it != live_.end() && it->second.attempt == c.attempt) {
      if (c.kind == CommandKind::kReorder) StepCore(prefill_worker::Reorder{c.seq, c.rank}, now);
      if (c.kind == CommandKind::kCancel) StepCore(prefill_worker::Cancel{c.seq}, now);
      if (c.kind == CommandKind::kReleaseKv) StepCore(prefill_worker::ReleaseKv{c.seq}, now);
    }
    Turn(now);
  }
  void PeerLost(uint32_t, TimeNs) override {}

 private:
  void Handle(TimeNs now) override {
    for (const prefill_worker::Effect& e : core_.core.TakeEffects()) {
      if (const auto* copy = std::get_if<engine::HostCopy>(&e)) {
        Copy(*copy, now);
        continue;
      }
      std::visit([&](const auto& x) { On(x); }, e);
    }
  }
  void On(const engine::HostCopy&) {}
  router::OpaquePtr Offer(const std::vector<prefill_worker::OfferedBlock>& blocks, uint32_t tail) const {
    auto remote = std::make_shared<decode_worker::RemoteKv>();
    for (const prefill_worker::OfferedBlock& b : blocks) {
      remote->blocks.push_back({b.block.value, b.epoch.value, b.tokens, b.digest});
    }
    auto kv = std::make_shared<SimKv>();
    kv->worker = o_.index;
    kv->tokens = static_cast<uint32_t>(blocks.size()) * o_.block_tokens;
    kv->tail_tokens = tail;
    kv->remote = std::move(remote);
    return kv;
  }
  void On(const prefill_worker::Admitted& e) {
    UpMessage& m = Say(Kind::kAdmitted, e.seq, live_.at(e.seq).attempt);
    m.cached_tokens = e.cached_tokens;
    m.kv = Offer(e.blocks, 0);
    load_wanted_ = true;
  }
  void On(const prefill_worker::ChunkDone&) {}
  void On(const prefill_worker::FirstToken& e) {
    UpMessage& m = Say(Kind::kFirstToken, e.seq, live_.at(e.seq).attempt);
    m.first.token = e.token.token;
    m.first.kv = Offer(e.blocks, std::min(o_.step_tokens, static_cast<uint32_t>(e.blocks.size()) * o_.block_tokens));
    m.first.wait_ms = base::ToMs(e.wait_ns);
    m.first.prefill_ms = base::ToMs(e.prefill_ns);
  }
  void On(const prefill_worker::Failed& e) {
    Say(Kind::kFailed, e.seq, live_.at(e.seq).attempt).failure = ToRouter(e.failure);
  }
  void On(const prefill_worker::Closed& e) {
    live_.erase(e.seq);
    load_wanted_ = true;
  }
};

}  // namespace

std::unique_ptr<SimWorker> MakeCoreWorker(const WorkerOptions& options, const StepModel* model) {
  if (options.role == router::Role::kPrefill) return std::make_unique<CorePrefill>(options, model);
  return std::make_unique<CoreDecode>(options, model);
}

}  // namespace agentserve::sim
