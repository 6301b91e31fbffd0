#include "decode_worker/core/core.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/strings.h"
#include "engine/block_hash.h"

namespace agentserve::decode_worker {

using engine::Failure;
using engine::SeqId;
using engine::Sequence;

Core::Core(const Options& options) : options_(options), pool_(options.pool), planner_(options.planner, &pool_) {}

Core::~Core() = default;

void Core::Step(const Event& event, base::TimeNs now) {
  std::visit([&](const auto& e) { On(e, now); }, event);
  ExpireDeadlines(now);
  pool_.ExpirePins(now);
  AbortVictims();
  AdmitWaiting();
  pool_.CheckConservation();
}

Core::Entry* Core::Find(SeqId seq) {
  const auto it = entries_.find(seq);
  return it == entries_.end() ? nullptr : &it->second;
}

void Core::On(const Reserve& e, base::TimeNs now) {
  const SeqId id = e.spec.id;
  AS_CHECK(!entries_.contains(id) && planner_.Find(id) == nullptr) << "sequence " << id << " reserved twice";
  const engine::AdmissionLimits limits{options_.queue, options_.vocab_size};
  if (auto refusal = engine::RefusalOf(e.spec, e.budget_ns, limits, planner_)) {
    effects_.push_back(Failed{id, *std::move(refusal)});
    effects_.push_back(Closed{id});
    return;
  }
  Entry entry;
  entry.arrived = now;
  entry.deadline = engine::DeadlineOf(now, e.budget_ns);
  entries_.emplace(id, std::move(entry));
  planner_.Add(e.spec, /*runnable=*/false);
}

// False: the blocks over there and here do not fit together, or there are none here.
bool Core::BeginPull(SeqId id, Entry* entry, const RemoteKv& kv) {
  Sequence& seq = *planner_.Find(id);
  if (seq.phase != Sequence::Phase::kActive || seq.fate != Sequence::Fate::kKeep) return false;
  if (kv.blocks.size() != seq.blocks.size()) return false;
  seq.io = true;
  entry->pull = Pull::kRunning;
  ++pulling_;
  StartPull pull;
  pull.seq = id;
  pull.kv = kv;
  pull.blocks.assign(seq.blocks.ids().begin(), seq.blocks.ids().end());
  pull.first = seq.sealed;
  pull.cached_tokens = seq.computed;
  effects_.push_back(std::move(pull));
  return true;
}

void Core::On(const Attach& e, base::TimeNs) {
  Entry* entry = Find(e.seq);
  if (entry == nullptr || entry->state != State::kReserved || entry->pull != Pull::kNone || entry->admitted) return;
  if (!BeginPull(e.seq, entry, e.kv)) entry->pull = Pull::kDone;  // Admit will recompute
}

void Core::On(const Admit& e, base::TimeNs now) {
  Entry* entry = Find(e.seq);
  if (entry == nullptr || entry->admitted || entry->state == State::kRunning || entry->want_local) return;
  if (e.first_token >= options_.vocab_size) {
    Fail(e.seq, {absl::StatusCode::kInvalidArgument, "INVALID",
                 base::StrCat("Admit.first_token is ", e.first_token, " but the vocabulary has ", options_.vocab_size,
                              " tokens")});
    return;
  }
  entry->admitted = true;
  entry->first_token = e.first_token;
  entry->admitted_at = now;
  entry->final_kv = e.kv;
  if (entry->pull == Pull::kNone && entry->state == State::kReserved) BeginPull(e.seq, entry, e.kv);
  if (entry->pull == Pull::kRunning) {
    const Sequence& seq = *planner_.Find(e.seq);
    // The puller answers an abort too, and then the sequence is recomputed.
    const bool usable = seq.fate == Sequence::Fate::kKeep && e.kv.blocks.size() == seq.blocks.size();
    if (usable) {
      effects_.push_back(FinishPull{e.seq, e.kv});
    } else {
      effects_.push_back(AbortPull{e.seq});
    }
    return;
  }
  ++core_stats_.pulls_failed;
  Recompute(e.seq, entry, /*invalid=*/false, now);
}

void Core::On(const PrefillLocal& e, base::TimeNs) {
  Entry* entry = Find(e.seq);
  if (entry == nullptr || entry->admitted || entry->state == State::kRunning) return;
  if (entry->pull == Pull::kRunning) {
    if (!entry->want_local) effects_.push_back(AbortPull{e.seq});
    entry->want_local = true;
    return;
  }
  entry->state = State::kRunning;
  planner_.MakeRunnable(e.seq);
}

void Core::On(const Preempt& e, base::TimeNs) {
  if (Find(e.seq) != nullptr) planner_.Preempt(e.seq);
}

void Core::On(const Cancel& e, base::TimeNs) {
  if (Find(e.seq) != nullptr) Close(e.seq);
}

void Core::On(const Park& e, base::TimeNs now) {
  const base::TimeNs ttl = std::clamp<base::TimeNs>(e.ttl_ns, 0, options_.max_park_ns);
  if (ttl == 0) return;
  if (Entry* entry = Find(e.seq)) {
    entry->park_ns = ttl;
    return;
  }
  for (const auto& [id, chain] : finished_) {
    if (id == e.seq) pool_.PinPrefix(chain, now + ttl);
  }
}

void Core::On(const PullEnded& e, base::TimeNs now) {
  Sequence* seq = planner_.Find(e.seq);
  if (seq == nullptr || !seq->io) return;  // a repeat
  --pulling_;
  planner_.EndIo(e.seq);  // may take the blocks away, or forget the sequence
  Entry* entry = Find(e.seq);
  if (entry == nullptr) return;
  entry->pull = Pull::kDone;
  if (entry->admitted) {
    const bool blocks_kept = seq->phase == Sequence::Phase::kActive;
    if (e.outcome == PullOutcome::kOk && blocks_kept) return UsePulled(e.seq, entry, e, now);
    const bool invalid = e.outcome == PullOutcome::kInvalid;
    ++(invalid ? core_stats_.pulls_invalid : core_stats_.pulls_failed);
    Recompute(e.seq, entry, invalid, now);
  } else if (entry->want_local) {
    entry->state = State::kRunning;
    planner_.MakeRunnable(e.seq);
  }
}

void Core::UsePulled(SeqId id, Entry* entry, const PullEnded& e, base::TimeNs now) {
  Sequence& seq = *planner_.Find(id);
  std::vector<uint64_t> digests;
  digests.reserve(entry->final_kv.blocks.size());
  for (const RemoteBlock& block : entry->final_kv.blocks) digests.push_back(block.digest);
  planner_.SealWritten(&seq, static_cast<uint32_t>(seq.tokens.size()), digests);
  ++core_stats_.pulls_ok;
  JoinBatch(id, entry, {id, e.bytes, e.transport, e.copy_ns, now - entry->admitted_at, false}, now);
}

void Core::Recompute(SeqId id, Entry* entry, bool invalid, base::TimeNs now) {
  ++core_stats_.recomputes;
  JoinBatch(id, entry, {id, 0, "recompute", 0, now - entry->admitted_at, invalid}, now);
}

void Core::JoinBatch(SeqId id, Entry* entry, KvReady ready, base::TimeNs now) {
  Sequence& seq = *planner_.Find(id);
  entry->final_kv = {};
  entry->kv_ready = now;
  entry->state = State::kRunning;
  effects_.push_back(std::move(ready));
  seq.tokens.push_back(entry->first_token);
  const engine::FinishReason finish =
      engine::StopAfter({entry->first_token, static_cast<uint32_t>(seq.tokens.size()), seq.generated()}, seq.sampling,
                        planner_.options().end_tokens, planner_.options().context_length);
  planner_.MakeRunnable(id);
  if (finish != engine::FinishReason::kNone) FinishSequence(id, now);
}

void Core::On(const StepDone& e, base::TimeNs now) {
  if (!e.status.ok()) {
    for (SeqId seq : planner_.Fail()) {
      Fail(seq, {e.status.code(), "EXECUTOR", base::StrCat("the step failed: ", base::MessageOf(e.status))});
    }
    return;
  }
  StepTokens step;
  step.step = planner_.oldest_step();
  std::vector<SeqId> finished;
  for (engine::Advance& advance : planner_.Complete(e.output, e.digests)) {
    if (!advance.sampled) continue;
    Entry& entry = entries_.at(advance.seq);
    if (entry.kv_ready < 0) entry.kv_ready = now;
    entry.last_token = now;
    if (advance.finish != engine::FinishReason::kNone) finished.push_back(advance.seq);
    step.tokens.push_back({std::move(advance.token), advance.finish});
  }
  if (!step.tokens.empty()) effects_.push_back(std::move(step));
  for (SeqId seq : finished) FinishSequence(seq, now);
}

void Core::FinishSequence(SeqId id, base::TimeNs now) {
  Entry& entry = entries_.at(id);
  Sequence& seq = *planner_.Find(id);
  const auto span = [](base::TimeNs from, base::TimeNs to) { return from < 0 || to < from ? 0 : to - from; };
  Finished finished;
  finished.seq = id;
  finished.steps = entry.steps;
  finished.cached_tokens = seq.cached_tokens;
  if (!entry.admitted) {
    finished.prefill_wait_ns = span(entry.arrived, entry.first_chunk);
    finished.prefill_ns = span(entry.first_chunk, entry.kv_ready);
  }
  finished.decode_wait_ns = span(entry.kv_ready, entry.first_decode);
  finished.decode_ns = span(entry.first_decode, entry.last_token);
  finished.preemptions = seq.preemptions;
  effects_.push_back(std::move(finished));
  std::vector<base::Hash128> chain = seq.chain;
  const base::TimeNs park_ns = entry.park_ns;
  Close(id);
  if (park_ns > 0) pool_.PinPrefix(chain, now + park_ns);
  finished_.emplace_back(id, std::move(chain));
  if (finished_.size() > options_.max_finished) finished_.pop_front();
}

void Core::AbortVictims() {
  for (SeqId seq : planner_.TakeIoVictims()) {
    if (entries_.contains(seq)) effects_.push_back(AbortPull{seq});  // Close has already told the others
  }
}

void Core::AdmitWaiting() {
  for (SeqId id : planner_.AdmitWaiting(planner_.options().max_batch)) {
    Entry& entry = entries_.at(id);
    if (entry.state != State::kQueued) continue;  // back after a preemption
    entry.state = State::kReserved;
    effects_.push_back(Reserved{id, planner_.Find(id)->computed});
  }
}

const engine::PlannedStep* Core::PlanStep(base::TimeNs now) {
  const engine::PlannedStep* step = planner_.Plan();
  AbortVictims();
  if (step == nullptr) return nullptr;
  for (const engine::SeqSlice& slice : step->plan.slices) {
    Entry& entry = entries_.at(slice.seq);
    if (entry.kv_ready < 0 && !slice.input_pending) {
      if (entry.first_chunk < 0) entry.first_chunk = now;
    } else {
      if (entry.first_decode < 0) entry.first_decode = now;
      ++entry.steps;
    }
  }
  return step;
}

void Core::ExpireDeadlines(base::TimeNs now) {
  std::vector<SeqId> over;
  for (const auto& [id, entry] : entries_) {
    if (entry.deadline <= now) over.push_back(id);
  }
  for (SeqId id : over) {
    Fail(id, {absl::StatusCode::kDeadlineExceeded, "DEADLINE", "the time budget ran out on the decode worker"});
  }
}

base::TimeNs Core::NextDeadline() const {
  base::TimeNs next = std::numeric_limits<base::TimeNs>::max();
  for (const auto& [id, entry] : entries_) next = std::min(next, entry.deadline);
  return next;
}

void Core::Fail(SeqId seq, Failure failure) {
  effects_.push_back(Failed{seq, std::move(failure)});
  Close(seq);
}

void Core::Close(SeqId id) {
  const auto it = entries_.find(id);
  AS_CHECK(it != entries_.end());
  if (it->second.pull == Pull::kRunning) effects_.push_back(AbortPull{id});
  entries_.erase(it);
  planner_.Remove(id);
  effects_.push_back(Closed{id});
}

engine::Load Core::load() const {
  engine::Load load;
  load.running = planner_.decoding();
  load.waiting = planner_.size() - std::min(planner_.size(), load.running);
  load.waiting_tokens = planner_.pending_tokens();
  load.available_blocks = pool_.available();
  load.total_blocks = pool_.total();
  load.cached_blocks = pool_.cached();
  load.preemptions = planner_.stats().preemptions;
  load.steps = planner_.stats().steps;
  return load;
}

void Core::CheckInvariants() const {
  planner_.CheckInvariants();
  uint32_t io = 0;
  for (const auto& [id, entry] : entries_) {
    const Sequence* seq = planner_.Find(id);
    AS_CHECK(seq != nullptr) << "sequence " << id;
    AS_CHECK_EQ(seq->runnable, entry.state == State::kRunning) << "sequence " << id;
    AS_CHECK_EQ(seq->io, entry.pull == Pull::kRunning) << "sequence " << id;
    AS_CHECK(seq->fate != Sequence::Fate::kRemove) << "sequence " << id;
    AS_CHECK(entry.state != State::kQueued || seq->phase == Sequence::Phase::kWaiting) << "sequence " << id;
    io += seq->io;
  }
  AS_CHECK_LE(io, pulling_);  // the rest belongs to sequences that are over and wait for their PullEnded
}

}  // namespace agentserve::decode_worker
