#include "tools/sim/fast_worker.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::sim {

using router::CommandKind;
using router::FinishReason;
using Kind = UpMessage::Kind;

namespace {

TimeNs FromMs(double ms) { return static_cast<TimeNs>(ms * 1e6 + 0.5); }

}  // namespace

FastWorker::FastWorker(const WorkerOptions& options, const StepModel* model)
    : o_(options), model_(*model), rng_(options.seed), host_(options.host_blocks), residues_(options.block_tokens, 0) {}

FastWorker::Seq* FastWorker::Find(router::SeqId id) {
  const auto it = seqs_.find(id.value);
  return it == seqs_.end() || it->second.gone ? nullptr : &it->second;
}

// ---- orders ----

void FastWorker::Obey(const Order& order, TimeNs now) {
  const router::Command& c = order.command;
  tree_.ExpirePins(now);
  if (c.kind == CommandKind::kReserve || c.kind == CommandKind::kStart) {
    Reserve(order, now);
  } else if (c.kind == CommandKind::kRetain) {
    Retain(c, now);
  } else if (c.kind == CommandKind::kPrefetch) {
    Prefetch(c, now);
  } else if (Seq* s = Find(c.seq); s != nullptr && s->attempt == c.attempt) {
    switch (c.kind) {
      case CommandKind::kPrefillLocal:
        s->runnable = true;
        if (s->pulling) EndPull(s, now);
        if (s->state == State::kReserved && s->loading == 0) s->state = State::kPrefill, prefilling_.insert(KeyOf(*s));
        CutShort(now);
        break;
      case CommandKind::kAttach:
      case CommandKind::kAdmit:
        BeginPull(s, c, now);
        break;
      case CommandKind::kCancel:
      case CommandKind::kReleaseKv:
        Cancel(s, now);
        break;
      default:
        break;
    }
  }
  AdmitWaiting(now);
  if (mode_ == Mode::kIdle) {
    boundary_ = now;
    Plan(now);
  }
  if (load_wanted_) SayLoad();
}

void FastWorker::Reserve(const Order& order, TimeNs now) {
  const router::Command& c = order.command;
  AS_CHECK(!seqs_.contains(c.seq.value)) << "sequence " << c.seq << " comes twice";
  Seq& s = seqs_[c.seq.value];
  s.id = c.seq.value;
  s.attempt = c.attempt;
  s.spans = order.spans;
  s.length = order.tokens;
  s.left = order.max_tokens - std::min(order.max_tokens, order.generated);
  s.end = order.stops ? FinishReason::kStop : FinishReason::kLength;
  s.rank = c.rank;
  s.arrival = next_arrival_++;
  s.arrived = now;
  s.runnable = o_.role == router::Role::kPrefill;
  if (order.tokens >= o_.context_length || Blocks(order.tokens + 1) > o_.num_blocks) {
    Say(Kind::kFailed, c.seq, c.attempt).failure = {router::FailKind::kTooLong, "it does not fit"};
    seqs_.erase(c.seq.value);
    return;
  }
  waiting_.insert(KeyOf(s));
}

void FastWorker::BeginPull(Seq* s, const router::Command& c, TimeNs now) {
  const auto* kv = dynamic_cast<const SimKv*>(c.kv.get());
  AS_CHECK(kv != nullptr);
  const double bytes = model_.calibration().bytes_per_token;
  if (s->state == State::kWaiting) {  // its blocks were taken meanwhile
    if (c.kind == CommandKind::kAdmit) Recompute(s, now);
    return;
  }
  if (!s->pulling) {
    s->pulling = true;
    ++pulling_;
    s->peer = kv->worker;
    s->pull_from = now;
  }
  if (c.kind == CommandKind::kAttach) return;
  s->admitted = true;
  s->admitted_at = now;
  const double fresh = s->length - std::min(s->length, s->computed);
  const TimeNs whole = s->pull_from + FromMs(model_.TransferMs(fresh * bytes, pulling_));
  const TimeNs tail = now + FromMs(model_.TransferMs(std::min<double>(kv->tail_tokens, fresh) * bytes, pulling_));
  s->pull_done = std::max(whole, tail);
  pulls_.insert({s->pull_done, s->id});
}

// Stops a pull, if any.
void FastWorker::EndPull(Seq* s, TimeNs) {
  if (!s->pulling) return;
  s->pulling = false;
  --pulling_;
  pulls_.erase({s->pull_done, s->id});
}

void FastWorker::PeerLost(uint32_t worker, TimeNs now) {
  std::vector<uint64_t> lost;
  for (const auto& [id, s] : seqs_) {
    if (s.pulling && s.peer == worker && s.admitted) lost.push_back(id);
  }
  std::sort(lost.begin(), lost.end());
  for (uint64_t id : lost) {
    EndPull(&seqs_.at(id), now);
    Recompute(&seqs_.at(id), now);
  }
}

// Its copy is lost: the prompt is computed here, the first token included.
void FastWorker::Recompute(Seq* s, TimeNs now) {
  s->admitted = true;
  s->length += 1;
  s->left -= 1;
  s->ready = now;
  s->runnable = true;
  Say(Kind::kKvReady, router::SeqId(s->id), s->attempt).ready.transport = "recompute";
  if (s->state == State::kReserved) s->state = State::kPrefill, prefilling_.insert(KeyOf(*s));
  CutShort(now);
}

void FastWorker::Cancel(Seq* s, TimeNs now) {
  if (s->state == State::kDecode || (s->state == State::kPrefill && mode_ == Mode::kMixed)) {
    s->gone = true;  // in the step that runs
    gone_.push_back(s->id);
    CutShort(now);
    return;
  }
  Release(s);
  Erase(s);
  load_wanted_ = true;
}

// ---- blocks ----

void FastWorker::AdmitWaiting(TimeNs now) {
  while (!waiting_.empty() && active_.size() < o_.max_batch) {
    Seq& s = seqs_.at(waiting_.begin()->id);
    if (!Admit(&s, now)) break;
  }
}

bool FastWorker::Admit(Seq* s, TimeNs now) {
  PrefixTree::Node node = 0;
  const uint32_t most = (s->length - 1) / o_.block_tokens;
  const uint32_t prefix = tree_.Match(*s->spans, o_.block_tokens, most, &node);
  const uint32_t fresh = Blocks(s->length) - prefix;
  const int64_t headroom = std::min<int64_t>(active_.size(), std::max(1u, o_.num_blocks / 16));
  if (fresh + tree_.UnlockedOnPath(node) + headroom > Available()) return false;
  tree_.Lock(node);
  s->node = node;
  s->shared = prefix;
  s->own = fresh;
  own_ += fresh;
  MakeFree();
  s->computed = prefix * o_.block_tokens;
  if (o_.infinite_cache) {
    s->computed = std::max(s->computed, tree_.EverSeen(*s->spans, o_.block_tokens, most) * o_.block_tokens);
  }
  if (!s->counted) s->cached = s->computed, s->host = 0;
  waiting_.erase(KeyOf(*s));
  active_.insert(KeyOf(*s));
  s->state = State::kReserved;
  if (BeginLoad(s, now)) return true;
  if (s->runnable) s->state = State::kPrefill, prefilling_.insert(KeyOf(*s));
  AnswerReserve(s);
  return true;
}

void FastWorker::AnswerReserve(Seq* s) {
  if (s->told_reserved) return;
  s->told_reserved = true;
  load_wanted_ = true;
  if (o_.role == router::Role::kDecode) {
    Say(Kind::kReserved, router::SeqId(s->id), s->attempt).cached_tokens = s->computed;
    return;
  }
  auto kv = std::make_shared<SimKv>();
  kv->worker = o_.index;
  kv->tokens = s->length;
  UpMessage& m = Say(Kind::kAdmitted, router::SeqId(s->id), s->attempt);
  m.cached_tokens = s->computed;
  m.kv = std::move(kv);
}

// Evicts cached blocks until everything counted has room.
void FastWorker::MakeFree() {
  const int64_t used = int64_t{tree_.total()} + own_;
  if (used <= o_.num_blocks) return;
  tree_.Evict(static_cast<uint32_t>(used - o_.num_blocks));
  // Blocks of use are copied before they are the next to go (engine::KvTiers); that the copies keep up is assumed.
  for (const PrefixTree::Lost& l : tree_.TakeLost()) {
    if (host_.enabled()) host_.Put(l.origin, l.from, l.to, l.worth);
  }
}

// Full blocks of the first `tokens` tokens get their names.
void FastWorker::Seal(Seq* s, uint32_t tokens) {
  const uint32_t want = tokens / o_.block_tokens;
  if (want <= s->shared) return;
  PrefixTree::Node node = 0;
  const uint32_t there = tree_.Match(*s->spans, o_.block_tokens, want, &node);
  AS_CHECK_GE(there, s->shared);
  const PrefixTree::Node end = tree_.Insert(*s->spans, o_.block_tokens, there, want, node);
  tree_.Lock(end);
  tree_.Unlock(s->node);
  s->node = end;
  // Blocks that somebody else had named first stay duplicates of our own.
  s->own -= want - there;
  own_ -= want - there;
  s->shared = want;
}

void FastWorker::Release(Seq* s) {
  EndPull(s, 0);
  if (s->loading > 0) {
    std::erase_if(loads_, [&](const auto& l) { return l.second == s->id; });
    s->loading = 0;
  }
  if (s->state == State::kWaiting) {
    waiting_.erase(KeyOf(*s));
    return;
  }
  if (s->state == State::kDecode) LeaveDecode(s);
  if (s->state == State::kPrefill) prefilling_.erase(KeyOf(*s));
  own_ -= s->own;
  s->own = 0;
  tree_.Unlock(s->node);
  s->node = 0;
  s->shared = 0;
  s->computed = 0;
  active_.erase(KeyOf(*s));
  s->state = State::kWaiting;
}

void FastWorker::Erase(Seq* s) { seqs_.erase(s->id); }

// The lowest sequence gives its blocks back and starts over, with all its tokens.
void FastWorker::Preempt(Seq* s) {
  ++s->preemptions;
  ++stats_.preemptions;
  if (s->state == State::kDecode) {
    Flush(boundary_);
    LeaveDecode(s);
    s->state = State::kReserved;
    Seal(s, s->length - 1);
    s->runnable = true;
  }
  const bool copy_lost = s->pulling && s->admitted;
  Release(s);
  waiting_.insert(KeyOf(*s));
  if (copy_lost) Recompute(s, boundary_);
}

}  // namespace agentserve::sim
