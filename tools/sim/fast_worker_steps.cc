// Steps of a fast worker: who decodes, how long a stretch lasts, what is told when.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "tools/sim/content.h"
#include "tools/sim/fast_worker.h"

namespace agentserve::sim {

using router::FinishReason;
using Kind = UpMessage::Kind;

namespace {

constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();
// Finished sequences remembered for a late Retain or Prefetch, like decode_worker::Options::max_finished.
constexpr size_t kMaxFinished = 4096;

TimeNs FromMs(double ms) { return static_cast<TimeNs>(ms * 1e6 + 0.5); }

}  // namespace

// ---- decoding ----

void FastWorker::JoinDecode(Seq* s) {
  s->state = State::kDecode;
  s->joined = counter_;
  s->finish = counter_ + s->left;
  s->told = 0;
  ++decoding_;
  context_ += s->length;
  finishing_.insert({s->finish, s->id});
  ++residues_[(s->length + o_.block_tokens - counter_ % o_.block_tokens) % o_.block_tokens];
}

// Back to plain numbers: length, left, own as of now.
void FastWorker::LeaveDecode(Seq* s) {
  const uint32_t length = Length(*s);
  --residues_[(s->length + o_.block_tokens - s->joined % o_.block_tokens) % o_.block_tokens];
  finishing_.erase({s->finish, s->id});
  s->own = Own(*s);
  s->left -= std::min<uint32_t>(s->left, length - s->length);
  s->length = length;
  s->state = State::kReserved;
  --decoding_;
  context_ -= length;
}

void FastWorker::Tell(Seq* s, uint32_t count, FinishReason finish, UpMessage* m) {
  for (uint32_t i = 0; i < count; ++i) {
    router::StepToken& t = m->tokens.emplace_back();
    t.seq = router::SeqId(s->id);
    t.attempt = s->attempt;
    t.token = 1;
    if (i + 1 == count) t.finish = finish;
  }
  s->told += count;
}

void FastWorker::Flush(TimeNs now) {
  next_flush_ = now + o_.flush_ns;
  if (decoding_ == 0) return;
  UpMessage& m = Say(Kind::kStep, {}, 0);
  m.step = ++step_message_;
  for (const auto& [finish, id] : finishing_) {
    Seq& s = seqs_.at(id);
    if (s.gone) continue;
    const auto made = static_cast<uint32_t>(counter_ - s.joined);
    if (made > s.told) Tell(&s, made - s.told, FinishReason::kNone, &m);
  }
  if (m.tokens.empty()) outbox_.pop_back();
  load_wanted_ = true;
}

// The prompt is computed (or copied): its first token, or the next one after a preemption, is out.
void FastWorker::FirstOut(Seq* s, TimeNs now) {
  s->counted = true;
  if (s->ready < 0) s->ready = now;
  Seal(s, s->length);
  if (o_.role == router::Role::kPrefill) {
    s->state = State::kHeld;
    active_.erase(KeyOf(*s));
    auto kv = std::make_shared<SimKv>();
    kv->worker = o_.index;
    kv->tokens = s->length;
    kv->tail_tokens = std::min(s->length - s->cached, o_.step_tokens);
    UpMessage& m = Say(Kind::kFirstToken, router::SeqId(s->id), s->attempt);
    m.first.token = s->left == 1 && s->end == FinishReason::kStop ? kStopToken : 1;
    m.first.kv = std::move(kv);
    m.first.wait_ms = base::ToMs(std::max<TimeNs>(0, s->first_chunk - s->arrived));
    m.first.prefill_ms = base::ToMs(now - s->first_chunk);
    return;
  }
  s->length += 1;
  s->left -= 1;
  s->own += Blocks(s->length) - Blocks(s->length - 1);
  own_ += Blocks(s->length) - Blocks(s->length - 1);
  UpMessage& m = Say(Kind::kStep, {}, 0);
  m.step = ++step_message_;
  Tell(s, 1, s->left == 0 ? s->end : FinishReason::kNone, &m);
  if (s->left == 0) {
    s->state = State::kReserved;
    Finish(s, now);
  } else {
    JoinDecode(s);
  }
}

void FastWorker::Finish(Seq* s, TimeNs now) {
  if (s->state == State::kDecode) {
    UpMessage& m = Say(Kind::kStep, {}, 0);
    m.step = ++step_message_;
    Tell(s, static_cast<uint32_t>(counter_ - s->joined) - s->told, s->end, &m);
    LeaveDecode(s);
  }
  UpMessage& m = Say(Kind::kFinished, router::SeqId(s->id), s->attempt);
  m.totals.cached_tokens = s->cached;
  m.totals.host_tokens = s->host;
  m.totals.preemptions = s->preemptions;
  if (!s->admitted) {
    m.totals.prefill_wait_ms = base::ToMs(std::max<TimeNs>(0, s->first_chunk - s->arrived));
    m.totals.prefill_ms = base::ToMs(std::max<TimeNs>(0, s->ready - s->first_chunk));
  }
  m.totals.decode_ms = base::ToMs(now - s->ready);
  Seal(s, s->length - 1);
  const router::Command keep = s->keep;
  const bool has_keep = s->has_keep;
  const SpansPtr spans = s->spans;
  finished_[s->id] = s->spans;
  if (finished_.size() > kMaxFinished) finished_.erase(finished_.begin());
  Release(s);
  if (has_keep) KeepAs(keep, spans, now);
  Erase(s);
  load_wanted_ = true;
}

// ---- time ----

// Blocks that the decoding sequences take over the next `steps` steps.
uint64_t FastWorker::Crossings(uint64_t steps) const {
  const uint64_t bt = o_.block_tokens;
  uint64_t sum = 0;
  for (uint64_t r = 0; r < bt; ++r) {
    if (residues_[r] == 0) continue;
    const uint64_t l = r + counter_ % bt + bt;  // any length of this class
    sum += residues_[r] * ((l + steps + bt - 1) / bt - (l + bt - 1) / bt);
  }
  return sum;
}

// Of the steady stretch, from its start.
double FastWorker::SpanMs(double k) const {
  return k * (base_ms_ + slope_ms_ * static_cast<double>(context_)) + slope_ms_ * decoding_ * k * (k - 1) / 2;
}

double FastWorker::Noise(double steps) {
  const double sigma = model_.calibration().residual_sigma;
  if (sigma == 0) return 1;
  const double u = 1 - rng_.Uniform(), v = rng_.Uniform();
  const double z = std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
  return std::max(0.5, 1 + sigma * z / std::sqrt(std::max(1.0, steps)));
}

// Something wants to join or leave: the steady stretch ends with the step that runs at `now`.
void FastWorker::CutShort(TimeNs now) {
  if (mode_ != Mode::kSteady || planned_steps_ <= 1) return;
  const double elapsed = base::ToMs(now - boundary_);
  uint64_t low = 1, high = planned_steps_;
  while (low < high) {
    const uint64_t mid = (low + high) / 2;
    if (SpanMs(static_cast<double>(mid)) >= elapsed) {
      high = mid;
    } else {
      low = mid + 1;
    }
  }
  planned_steps_ = low;
  wake_ = boundary_ + FromMs(SpanMs(static_cast<double>(low)));
}

TimeNs FastWorker::NextEvent() const {
  TimeNs next = mode_ == Mode::kIdle ? kNever : wake_;
  if (!pulls_.empty()) next = std::min(next, pulls_.begin()->first);
  if (!loads_.empty()) next = std::min(next, loads_.begin()->first);
  if (!copies_.empty()) next = std::min(next, copies_.begin()->first);
  return next;
}

void FastWorker::Advance(TimeNs now) {
  tree_.ExpirePins(now);
  while (!pulls_.empty() && pulls_.begin()->first <= now) {
    Seq* s = &seqs_.at(pulls_.begin()->second);
    EndPull(s, now);
    UpMessage& m = Say(Kind::kKvReady, router::SeqId(s->id), s->attempt);
    m.ready.transport = "simulated";
    m.ready.bytes = static_cast<uint64_t>((s->length - s->computed) * model_.calibration().bytes_per_token);
    m.ready.exposed_ms = base::ToMs(now - s->admitted_at);
    s->computed = s->length;
    s->ready = now;
    s->state = State::kPrefill;  // joins at the next boundary with nothing left to compute
    s->length += 1;
    s->left -= 1;
    s->runnable = true;
    prefilling_.insert(KeyOf(*s));
    CutShort(now);
  }
  while (!loads_.empty() && loads_.begin()->first <= now) {
    Seq* s = &seqs_.at(loads_.begin()->second);
    loads_.erase(loads_.begin());
    EndLoad(s);
    CutShort(now);
  }
  while (!copies_.empty() && copies_.begin()->first <= now) {
    const Copy c = std::move(copies_.begin()->second);
    copies_.erase(copies_.begin());
    if (c.to_host) {
      StoreOnHost(c.spans, c.worth);
    } else {
      EndPrefetch(c.spans, c.until);
    }
  }
  if (mode_ != Mode::kIdle && wake_ <= now) Commit(now);
  if (mode_ == Mode::kIdle) {
    boundary_ = now;
    AdmitWaiting(now);
    Plan(now);
  }
  if (load_wanted_) SayLoad();
}

void FastWorker::Commit(TimeNs now) {
  stats_.busy_ns += static_cast<double>(wake_ - boundary_);
  boundary_ = wake_;
  if (mode_ == Mode::kSteady) {
    CommitSteady();
  } else {
    CommitMixed(now);
  }
  mode_ = Mode::kIdle;
  EndFinished(now);
  for (uint64_t id : gone_) {
    const auto it = seqs_.find(id);
    if (it == seqs_.end()) continue;
    Release(&it->second);
    Erase(&it->second);
    load_wanted_ = true;
  }
  gone_.clear();
  if (boundary_ >= next_flush_) Flush(now);
}

void FastWorker::CommitSteady() {
  own_ += static_cast<int64_t>(Crossings(planned_steps_));
  counter_ += planned_steps_;
  context_ += planned_steps_ * decoding_;
  stats_.steps += planned_steps_;
  stats_.computed_tokens += planned_steps_ * decoding_;
  MakeFree();
}

void FastWorker::CommitMixed(TimeNs now) {
  planned_steps_ = 1;
  CommitSteady();
  for (const Chunk& c : chunks_) {
    const auto it = seqs_.find(c.id);
    if (it == seqs_.end() || it->second.state != State::kPrefill) continue;  // preempted meanwhile
    Seq& s = it->second;
    s.computed += c.tokens;
    stats_.computed_tokens += c.tokens;
    if (s.gone || s.computed < s.length) continue;
    prefilling_.erase(KeyOf(s));
    FirstOut(&s, now);
  }
  MakeFree();
}

void FastWorker::EndFinished(TimeNs now) {
  while (!finishing_.empty() && finishing_.begin()->first <= counter_) {
    Seq& s = seqs_.at(finishing_.begin()->second);
    if (s.gone) {
      LeaveDecode(&s);
      continue;
    }
    Finish(&s, now);
  }
}

// Sequences whose copy is complete decode at once.
void FastWorker::JoinPulled(TimeNs now) {
  const std::vector<Key> order(prefilling_.begin(), prefilling_.end());
  for (const Key& k : order) {
    Seq& s = seqs_.at(k.id);
    if (!s.admitted || s.computed + 1 < s.length) continue;
    prefilling_.erase(k);
    const uint32_t grown = Blocks(s.length) - Blocks(s.length - 1);
    s.own += grown;
    own_ += grown;
    Seal(&s, s.length - 1);
    if (s.left == 0) {
      s.state = State::kReserved;
      Finish(&s, now);
    } else {
      JoinDecode(&s);
    }
  }
}

void FastWorker::Plan(TimeNs now) {
  if (!prefilling_.empty()) JoinPulled(now);
  // Room for the next step, or the lowest sequence goes.
  while (Available() < static_cast<int64_t>(Crossings(1))) {
    AS_CHECK_GT(active_.size(), 1u) << "a single sequence does not fit the pool";
    Preempt(&seqs_.at(active_.rbegin()->id));
  }
  AdmitWaiting(now);
  MakeFree();
  if (prefilling_.empty() || !PlanMixed(now)) PlanSteady(now);
}

bool FastWorker::PlanMixed(TimeNs now) {
  chunks_.clear();
  StepWork work;
  work.decodes = decoding_;
  work.context = context_;
  uint32_t budget = o_.step_tokens > decoding_ ? o_.step_tokens - decoding_ : 0;
  for (const Key& k : prefilling_) {
    if (budget == 0) break;
    Seq& s = seqs_.at(k.id);
    const uint32_t chunk = std::min(budget, s.length - s.computed);
    if (s.first_chunk < 0) s.first_chunk = now;
    chunks_.push_back({s.id, chunk});
    work.chunk_tokens += chunk;
    work.attention += chunk * (s.computed + chunk / 2.0);
    budget -= chunk;
  }
  if (chunks_.empty()) return false;
  mode_ = Mode::kMixed;
  wake_ = boundary_ + std::max<TimeNs>(1, FromMs(model_.StepMs(work) * Noise(1)));
  return true;
}

void FastWorker::PlanSteady(TimeNs now) {
  if (decoding_ == 0) return;
  base_ms_ = model_.DecodeBaseMs(decoding_);
  slope_ms_ = model_.ContextMs(decoding_);
  uint64_t steps = std::max<uint64_t>(1, finishing_.begin()->first - counter_);
  const int64_t rounds = Available() / decoding_;
  if (rounds * o_.block_tokens < static_cast<int64_t>(steps)) {
    steps = std::max<uint64_t>(1, static_cast<uint64_t>(std::max<int64_t>(0, rounds)) * o_.block_tokens);
  }
  const double flush_ms = base::ToMs(std::max<TimeNs>(next_flush_, now + base::kNsPerMs) - now);
  const double one = base_ms_ + slope_ms_ * static_cast<double>(context_);
  steps = std::min(steps, static_cast<uint64_t>(flush_ms / one) + 1);
  const double noise = Noise(static_cast<double>(steps));
  base_ms_ *= noise;
  slope_ms_ *= noise;
  planned_steps_ = steps;
  mode_ = Mode::kSteady;
  wake_ = boundary_ + std::max<TimeNs>(1, FromMs(SpanMs(static_cast<double>(steps))));
}

void FastWorker::SayLoad() {
  load_wanted_ = false;
  router::WorkerLoad& l = Say(Kind::kLoad, {}, 0).load;
  l.running = decoding_;
  l.waiting = static_cast<uint32_t>(seqs_.size()) - std::min(static_cast<uint32_t>(seqs_.size()), decoding_);
  l.available_blocks = static_cast<uint32_t>(std::max<int64_t>(0, Available()));
  l.total_blocks = o_.num_blocks;
  l.cached_blocks = tree_.cached();
  l.preemptions = stats_.preemptions;
  l.steps = stats_.steps;
  l.parked_blocks = tree_.pinned();
  l.host_blocks = host_.stored();
  l.host_total_blocks = host_.capacity();
}

void FastWorker::CheckInvariants() const {
  tree_.CheckInvariants();
  int64_t own = 0;
  uint32_t decoding = 0;
  uint64_t context = 0;
  for (const auto& [id, s] : seqs_) {
    own += Own(s);
    if (s.state != State::kDecode) continue;
    ++decoding;
    context += Length(s);
  }
  AS_CHECK_EQ(own, own_);
  AS_CHECK_EQ(decoding, decoding_);
  AS_CHECK_EQ(context, context_);
  AS_CHECK_LE(int64_t{tree_.total()} + own_, int64_t{o_.num_blocks});
  AS_CHECK_LE(active_.size(), o_.max_batch);
}

std::unique_ptr<SimWorker> MakeFastWorker(const WorkerOptions& options, const StepModel* model) {
  return std::make_unique<FastWorker>(options, model);
}

}  // namespace agentserve::sim
