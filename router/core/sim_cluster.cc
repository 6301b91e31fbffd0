#include "router/core/sim_cluster.h"

#include <algorithm>

#include "base/check.h"
#include "engine/block_hash.h"

namespace agentserve::router::sim {
namespace {

constexpr uint32_t kBlockTokens = 4;

struct ToyKv final : Opaque {
  std::vector<TokenId> tokens;
};

uint32_t BlocksFor(size_t tokens) { return static_cast<uint32_t>((tokens + kBlockTokens - 1) / kBlockTokens); }

bool IsLast(const SequenceSpec& spec, const std::vector<TokenId>& tokens, FinishReason* why) {
  *why = FinishReason::kNone;
  if (tokens.back() == kEndToken)
    *why = FinishReason::kStop;
  else if (tokens.size() - spec.prompt_tokens >= spec.sampling.max_tokens)
    *why = FinishReason::kLength;
  return *why != FinishReason::kNone;
}

}  // namespace

TokenId NextToken(const std::vector<TokenId>& tokens, uint64_t seed) {
  uint64_t h = seed * 0x9e3779b97f4a7c15ull + tokens.size();
  for (TokenId t : tokens) h = (h ^ t) * 0x100000001b3ull;
  return static_cast<TokenId>(base::SplitMix64(h).Next() % kVocab) + 1;
}

std::vector<TokenId> Reference(const Submission& sub, uint32_t index) {
  std::vector<TokenId> tokens = *sub.prompt;
  std::vector<TokenId> out;
  while (out.size() < sub.sampling.max_tokens && (out.empty() || out.back() != kEndToken)) {
    out.push_back(NextToken(tokens, sub.sampling.seed + index));
    tokens.push_back(out.back());
  }
  return out;
}

SimCluster::SimCluster(SimOptions options) : options_(std::move(options)), rng_(options_.seed) {
  CoreConfig config = options_.core;
  config.end_tokens = {kEndToken};
  core_ = std::make_unique<RouterCore>(config, now_);
  for (uint32_t i = 0; i < options_.prefill_workers + options_.decode_workers; ++i) {
    FakeWorker w;
    w.role = i < options_.prefill_workers ? Role::kPrefill : Role::kDecode;
    w.name = (w.role == Role::kPrefill ? "prefill-" : "decode-") + std::to_string(i);
    workers_.push_back(std::move(w));
    At(now_ + Jitter(50 * base::kNsPerMs), [this, i] { Up(i); });
  }
  clients_.resize(options_.requests);
  for (uint32_t i = 0; i < options_.requests; ++i) {
    At(now_ + Jitter(options_.arrivals_over), [this, i] { AddClient(i); });
  }
  if (options_.kill_every_s > 0) ScheduleKill();
}

void SimCluster::AddClient(uint32_t i) {
  Client& c = clients_[i];
  auto prompt = std::make_shared<std::vector<TokenId>>();
  const uint64_t shared = rng_.Below(3);  // some prompts share a beginning
  for (uint32_t k = 0; k < 20; ++k) prompt->push_back(static_cast<TokenId>(2 + shared * 7 + k));
  const uint64_t length = 1 + rng_.Below(60);
  for (uint64_t k = 0; k < length; ++k) prompt->push_back(static_cast<TokenId>(2 + rng_.Below(kVocab - 2)));
  c.sub.request_id = "r" + std::to_string(i);
  c.sub.prompt = prompt;
  c.sub.block_tokens = kBlockTokens;
  c.sub.chain_root = engine::ChainRoot("", 7);
  engine::ExtendChain(c.sub.chain_root, *prompt, kBlockTokens, &c.sub.chain);
  c.sub.digest = base::Hash128{i + 1, rng_.Next()};
  c.sub.sampling.seed = rng_.Next();
  c.sub.sampling.max_tokens = static_cast<uint32_t>(1 + rng_.Below(40));
  c.sub.n = rng_.Below(5) == 0 ? 3 : 1;
  c.sub.arrival = now_;
  const bool hurried = rng_.Uniform() < options_.deadline_share;
  c.sub.deadline = now_ + (hurried ? Jitter(300 * base::kNsPerMs) : 600 * base::kNsPerSecond);
  c.sub.bytes = 1000;
  if (rng_.Below(2) == 0) {
    c.sub.agent.program_id = "p" + std::to_string(rng_.Below(8));
    c.sub.agent.priority = static_cast<int32_t>(rng_.Below(5));
  }
  if (rng_.Uniform() < options_.stop_share) c.stop_after = static_cast<uint32_t>(1 + rng_.Below(5));
  c.tokens.resize(c.sub.n);
  c.seq_ended.resize(c.sub.n);
  c.seq_reason.resize(c.sub.n);
  const SubmitResult result = core_->Submit(c.sub, now_);
  if (!result.ok()) {
    c.refused = true;
    c.reason = result.refused;
    c.message = result.message;
    ++ended_;
    return;
  }
  c.key = result.key;
  by_key_[c.key] = i;
  if (rng_.Uniform() < options_.cancel_share) {
    At(now_ + Jitter(400 * base::kNsPerMs),
       [this, key = c.key] { core_->EndRequest(key, EndReason::kCancelled, "gone", now_); });
  }
}

// ---- life and death of workers ----

void SimCluster::Up(size_t i) {
  FakeWorker& w = workers_[i];
  w.alive = true;
  w.incarnation = rng_.Next() | 1;
  w.step = 0;
  w.stepping = false;
  w.seqs.clear();
  Heartbeat(i, w.incarnation);
}

void SimCluster::Heartbeat(size_t i, uint64_t incarnation) {
  FakeWorker& w = workers_[i];
  if (!w.alive || w.incarnation != incarnation) return;
  WorkerInfo info;
  info.name = w.name;
  info.incarnation = incarnation;
  info.role = w.role;
  info.address = "sim";
  info.model_id = "toy";
  info.model_fingerprint = "f";
  info.layout_fingerprint = 7;
  info.block_tokens = kBlockTokens;
  info.num_blocks = options_.blocks;
  info.context_length = 4096;
  info.max_batch = options_.max_batch;
  absl::StatusOr<WorkerId> id = core_->RegisterWorker(info, now_);
  AS_CHECK(id.ok()) << std::string(id.status().message());
  w.id = *id;
  At(now_ + base::kNsPerSecond, [this, i, incarnation] { Heartbeat(i, incarnation); });
}

void SimCluster::BreakLink(size_t i) {
  FakeWorker& w = workers_[i];
  if (!w.linked) return;
  w.linked = false;
  ++w.link;
  w.seqs.clear();  // as the contract says
  const WorkerId id = w.id;
  At(now_ + Jitter(5 * base::kNsPerMs), [this, id] { core_->OnLinkDown(id, now_); });
}

void SimCluster::Kill(size_t i) {
  FakeWorker& w = workers_[i];
  if (!w.alive) return;
  ++kills_;
  w.alive = false;
  // A silent death is noticed by its lease only.
  if (rng_.Below(4) == 0) {
    w.linked = false;
    ++w.link;
    w.seqs.clear();
  } else {
    BreakLink(i);
  }
  At(now_ + Jitter(2 * base::kNsPerSecond), [this, i] { Up(i); });
}

void SimCluster::ScheduleKill() {
  const auto wait = static_cast<TimeNs>(options_.kill_every_s * 2e9 * rng_.Uniform());
  At(now_ + wait, [this] {
    if (now_ >= options_.faults_until) return;
    const size_t i = rng_.Below(workers_.size());
    if (rng_.Below(3) == 0) {
      BreakLink(i);
    } else {
      Kill(i);
    }
    ScheduleKill();
  });
}

// ---- messages up ----

void SimCluster::Say(size_t i, std::function<void(WorkerId)> event) {
  FakeWorker& w = workers_[i];
  if (!w.linked) return;
  const WorkerId id = w.id;
  const uint64_t link = w.link;
  w.last_up = std::max(w.last_up, now_ + Jitter(2 * base::kNsPerMs));
  // A message may also arrive after its link broke: the core must not mind.
  auto deliver = [this, i, id, link, event] {
    if (workers_[i].link == link || rng_.Below(2) == 0) event(id);
  };
  At(w.last_up, deliver);
  if (rng_.Uniform() < options_.repeat_share) At(w.last_up + Jitter(20 * base::kNsPerMs), deliver);
}

uint32_t SimCluster::UsedBlocks(const FakeWorker& w) const {
  uint32_t used = 0;
  for (const auto& [id, s] : w.seqs) used += std::max(s.blocks, BlocksFor(s.tokens.size()));
  return used;
}

void SimCluster::SayLoad(size_t i) {
  const FakeWorker& w = workers_[i];
  WorkerLoad load;
  load.total_blocks = options_.blocks;
  load.available_blocks = options_.blocks - std::min(options_.blocks, UsedBlocks(w));
  load.running = static_cast<uint32_t>(w.seqs.size());
  Say(i, [this, load](WorkerId id) { core_->OnLoad(id, load, now_); });
}

void SimCluster::Step(size_t i, uint64_t incarnation) {
  FakeWorker& w = workers_[i];
  if (!w.alive || w.incarnation != incarnation) return;
  w.stepping = false;
  if (!w.linked) return;
  std::vector<StepToken> tokens;
  std::vector<std::pair<uint64_t, FakeSeq>> finished;
  for (auto it = w.seqs.begin(); it != w.seqs.end();) {
    FakeSeq& s = it->second;
    if (!s.running) {
      ++it;
      continue;
    }
    StepToken t;
    t.seq = SeqId(it->first);
    t.attempt = s.attempt;
    t.token = NextToken(s.tokens, s.spec->sampling.seed);
    s.tokens.push_back(t.token);
    ++s.steps;
    const bool last = IsLast(*s.spec, s.tokens, &t.finish);
    tokens.push_back(t);
    if (last) {
      finished.emplace_back(it->first, s);
      it = w.seqs.erase(it);
    } else {
      ++it;
    }
  }
  if (tokens.empty()) return;
  const uint64_t step = ++w.step;
  Say(i, [this, step, tokens](WorkerId id) { core_->OnStep(id, step, tokens, now_); });
  for (const auto& [seq, s] : finished) {
    SequenceTotals totals;
    totals.steps = s.steps;
    Say(i, [this, seq = seq, attempt = s.attempt, totals](WorkerId id) {
      core_->OnFinished(id, SeqId(seq), attempt, totals, now_);
    });
  }
  SayLoad(i);
  w.stepping = true;
  At(now_ + 2 * base::kNsPerMs, [this, i, incarnation] { Step(i, incarnation); });
}

// ---- commands down ----

void SimCluster::Carry(const Command& c) {
  for (size_t i = 0; i < workers_.size(); ++i) {
    FakeWorker& w = workers_[i];
    if (w.id != c.worker) continue;
    if (!w.linked) return;
    w.last_down = std::max(w.last_down, now_ + Jitter(2 * base::kNsPerMs));
    At(w.last_down, [this, i, c, link = w.link] {
      if (workers_[i].linked && workers_[i].link == link) Obey(&workers_[i], i, c);
    });
    return;
  }
}

void SimCluster::Obey(FakeWorker* w, size_t i, const Command& c) {
  if (c.kind == CommandKind::kCancel) {
    w->seqs.erase(c.seq.value);
    SayLoad(i);
  } else if (c.kind == CommandKind::kConnectPeer) {
    for (const FakeWorker& p : workers_) {
      if (p.id != c.peer) continue;
      Say(i, [this, name = p.name, inc = p.incarnation](WorkerId id) {
        core_->OnPeerConnected(id, name, inc, true, now_);
      });
    }
  } else if (w->role == Role::kDecode) {
    ObeyDecode(w, i, c);
  } else {
    ObeyPrefill(w, i, c);
  }
}

void SimCluster::ObeyDecode(FakeWorker* w, size_t i, const Command& c) {
  const uint64_t seq = c.seq.value;
  if (c.kind == CommandKind::kReserve) {
    if (FailNow()) {
      Say(i, [this, c](WorkerId id) {
        core_->OnFailed(id, c.seq, c.attempt, {rng_.Below(2) ? FailKind::kExecutor : FailKind::kQueueFull, "sim"},
                        now_);
      });
      SayLoad(i);
      return;
    }
    FakeSeq s;
    s.attempt = c.attempt;
    s.spec = c.spec;
    s.tokens = c.spec->tokens;
    s.blocks = BlocksFor(s.tokens.size() + 1);
    w->seqs[seq] = std::move(s);
    Say(i, [this, c](WorkerId id) { core_->OnReserved(id, c.seq, c.attempt, 0, now_); });
    SayLoad(i);
    return;
  }
  auto it = w->seqs.find(seq);
  if (it == w->seqs.end() || it->second.attempt != c.attempt) return;
  if (c.kind == CommandKind::kPrefillLocal || c.kind == CommandKind::kAdmit) {
    if (c.kind == CommandKind::kAdmit) {
      it->second.tokens.push_back(c.first_token);
      AS_CHECK(dynamic_cast<const ToyKv*>(c.kv.get())->tokens == it->second.spec->tokens) << "KV of another prompt";
    }
    const TimeNs ready = now_ + Jitter(10 * base::kNsPerMs);
    At(ready, [this, i, c, seq, incarnation = w->incarnation, link = w->link] {
      FakeWorker& me = workers_[i];
      auto s = me.seqs.find(seq);
      if (me.incarnation != incarnation || me.link != link || s == me.seqs.end() || s->second.attempt != c.attempt)
        return;
      if (c.kind == CommandKind::kAdmit) {
        Say(i, [this, c](WorkerId id) { core_->OnKvReady(id, c.seq, c.attempt, {100, "mapped", 1, 0}, now_); });
      }
      s->second.running = true;
      if (!me.stepping) {
        me.stepping = true;
        At(now_ + 2 * base::kNsPerMs, [this, i, incarnation] { Step(i, incarnation); });
      }
    });
  }
}

void SimCluster::ObeyPrefill(FakeWorker* w, size_t i, const Command& c) {
  const uint64_t seq = c.seq.value;
  if (c.kind == CommandKind::kReleaseKv) {
    w->seqs.erase(seq);
    SayLoad(i);
    return;
  }
  if (c.kind != CommandKind::kStart) return;
  if (FailNow()) {
    Say(i, [this, c](WorkerId id) { core_->OnFailed(id, c.seq, c.attempt, {FailKind::kExecutor, "sim"}, now_); });
    return;
  }
  FakeSeq s;
  s.attempt = c.attempt;
  s.spec = c.spec;
  s.tokens = c.spec->tokens;
  w->seqs[seq] = std::move(s);
  auto kv = std::make_shared<ToyKv>();
  kv->tokens = c.spec->tokens;
  Say(i, [this, c, kv](WorkerId id) { core_->OnAdmitted(id, c.seq, c.attempt, kv, 0, now_); });
  At(now_ + Jitter(20 * base::kNsPerMs), [this, i, c, kv, seq, incarnation = w->incarnation, link = w->link] {
    FakeWorker& me = workers_[i];
    auto it = me.seqs.find(seq);
    if (me.incarnation != incarnation || me.link != link || it == me.seqs.end()) return;
    FirstToken f;
    f.token = NextToken(c.spec->tokens, c.spec->sampling.seed);
    f.kv = kv;
    Say(i, [this, c, f](WorkerId id) { core_->OnFirstToken(id, c.seq, c.attempt, f, now_); });
  });
}

// ---- effects ----

void SimCluster::Drain() {
  for (;;) {
    Effects e;
    core_->TakeEffects(&e);
    if (e.empty()) return;
    for (const LinkEffect& l : e.links) {
      for (size_t i = 0; i < workers_.size(); ++i) {
        FakeWorker& w = workers_[i];
        // RegisterWorker may have emitted this before it returned the id to Heartbeat: drained only after the event.
        if (w.id != l.worker || !l.open) continue;
        const WorkerId id = l.worker;
        At(now_ + Jitter(3 * base::kNsPerMs), [this, i, id] {
          FakeWorker& me = workers_[i];
          if (me.id != id) return;
          if (!me.alive) {
            core_->OnLinkDown(id, now_);
            return;
          }
          me.linked = true;
          ++me.link;
          me.seqs.clear();
          core_->OnLinkUp(id, now_);
          SayLoad(i);
        });
      }
    }
    for (const Command& c : e.commands) Carry(c);
    for (const TokenOut& t : e.tokens) {
      Client& c = clients_[by_key_.at(t.request)];
      AS_CHECK_EQ(c.ends, 0u) << "token after the end, seed " << options_.seed;
      AS_CHECK(!c.seq_ended[t.index]) << "token after the sequence's end, seed " << options_.seed;
      c.tokens[t.index].push_back(t.token);
      if (t.index == 0 && c.stop_after == c.tokens[0].size()) core_->StopSequence(t.request, 0, c.stop_after, now_);
    }
    for (const SequenceDone& s : e.sequence_ends) {
      Client& c = clients_[by_key_.at(s.request)];
      AS_CHECK(!c.seq_ended[s.index]) << "sequence ended twice, seed " << options_.seed;
      c.seq_ended[s.index] = true;
      c.seq_reason[s.index] = s.reason;
      AS_CHECK_EQ(s.completion_tokens, c.tokens[s.index].size());
    }
    for (const RequestDone& r : e.request_ends) {
      Client& c = clients_[by_key_.at(r.request)];
      AS_CHECK_EQ(c.ends, 0u) << "request ended twice, seed " << options_.seed;
      ++c.ends;
      ++ended_;
      c.reason = r.reason;
      c.message = r.message;
    }
  }
}

void SimCluster::Run() {
  const TimeNs limit = now_ + options_.faults_until + 120 * base::kNsPerSecond;
  TimeNs quiet_until = 0;
  while (ended_ < clients_.size() || now_ < quiet_until) {
    AS_CHECK_LT(now_, limit) << "requests are stuck, seed " << options_.seed;
    const TimeNs wake = core_->NextWake();
    if (events_.empty() || wake < events_.begin()->first) {
      now_ = std::max(now_, wake);
      core_->Tick(now_);
    } else {
      auto e = events_.extract(events_.begin());
      now_ = std::max(now_, e.key());
      e.mapped()();
    }
    core_->CheckInvariants();
    Drain();
    // After the last end, cancels still travel to the workers.
    if (ended_ == clients_.size() && quiet_until == 0) quiet_until = now_ + 200 * base::kNsPerMs;
  }
}

size_t SimCluster::held_by_workers() const {
  size_t held = 0;
  for (const FakeWorker& w : workers_) held += w.seqs.size();
  return held;
}

}  // namespace agentserve::router::sim
