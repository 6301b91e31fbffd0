#include "decode_worker/core/core.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/strings.h"
#include "engine/block_hash.h"

namespace agentserve::decode_worker {
namespace {

engine::KvTiers::Options TierOptions(const Options& options) {
  engine::KvTiers::Options tiers = options.tiers;
  tiers.block_tokens = options.planner.block_tokens;
  return tiers;
}

}  // namespace

using engine::Failure;
using engine::SeqId;
using engine::Sequence;

Core::Core(const Options& options)
    : options_(options),
      pool_(options.pool),
      planner_(options.planner, &pool_),
      tiers_(TierOptions(options), &pool_, &planner_) {}

Core::~Core() = default;

void Core::Step(const Event& event, base::TimeNs now) {
  std::visit([&](const auto& e) { On(e, now); }, event);
  ExpireDeadlines(now);
  pool_.ExpirePins(now);
  AbortVictims();
  AdmitWaiting();
  tiers_.Pump();
  for (HostCopy& copy : tiers_.TakeCopies()) effects_.push_back(std::move(copy));
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
  pulls_.insert(id);
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

void Core::On(const Cancel& e, base::TimeNs now) {
  const Entry* entry = Find(e.seq);
  if (entry == nullptr) return;
  // The router may have found a stop string in it, so it can be retained like one that ended by itself.
  FinishedChain chain = planner_.Find(e.seq)->chain;
  const std::optional<engine::KvTiers::Keep> keep = entry->keep;
  Close(e.seq);
  if (keep) tiers_.Retain(chain, *keep, now);
  Remember(e.seq, std::move(chain));
}

void Core::On(const Retain& e, base::TimeNs now) {
  if (Entry* entry = Find(e.seq)) {
    entry->keep = e.keep;
    return;
  }
  if (const auto it = finished_.find(e.seq); it != finished_.end()) tiers_.Retain(it->second, e.keep, now);
}

void Core::On(const Prefetch& e, base::TimeNs now) {
  if (const auto it = finished_.find(e.seq); it != finished_.end()) tiers_.Prefetch(it->second, e.ttl_ns, now);
}

void Core::On(const CopyEnded& e, base::TimeNs now) {
  const std::optional<engine::SequenceLoaded> loaded = tiers_.OnCopyEnded(e, now);
  if (!loaded) return;
  const SeqId id = loaded->seq;
  planner_.EndIo(id);  // may take the blocks away, or forget the sequence
  Entry* entry = Find(id);
  if (entry == nullptr) return;
  entry->loading = false;
  Sequence& seq = *planner_.Find(id);
  if (seq.phase != Sequence::Phase::kActive) {  // it lost its blocks meanwhile
    if (entry->state == State::kQueued) planner_.Requeue(id);
    return;
  }
  const uint32_t first = seq.sealed;
  planner_.SealCached(&seq, loaded->digests);
  tiers_.NoteLoaded(std::span(seq.chain).subspan(first, loaded->digests.size()));
  entry->host_tokens = static_cast<uint32_t>(loaded->digests.size()) * planner_.options().block_tokens;
  AnswerReserve(id, entry);
}

void Core::AnswerReserve(SeqId id, Entry* entry) {
  if (std::exchange(entry->answered, true)) return;
  if (entry->state == State::kQueued) entry->state = State::kReserved;
  effects_.push_back(Reserved{id, planner_.Find(id)->computed, entry->host_tokens});
}

void Core::On(const PullEnded& e, base::TimeNs now) {
  if (pulls_.erase(e.seq) == 0) return;  // a repeat
  const Sequence* seq = planner_.Find(e.seq);
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
  finished.host_tokens = std::min(entry.host_tokens, seq.cached_tokens);
  if (!entry.admitted) {
    finished.prefill_wait_ns = span(entry.arrived, entry.first_chunk);
    finished.prefill_ns = span(entry.first_chunk, entry.kv_ready);
  }
  finished.decode_wait_ns = span(entry.kv_ready, entry.first_decode);
  finished.decode_ns = span(entry.first_decode, entry.last_token);
  finished.preemptions = seq.preemptions;
  effects_.push_back(std::move(finished));
  FinishedChain chain = seq.chain;
  const std::optional<engine::KvTiers::Keep> keep = entry.keep;
  Close(id);
  if (keep) tiers_.Retain(chain, *keep, now);
  Remember(id, std::move(chain));
}

void Core::Remember(SeqId id, FinishedChain chain) {
  finished_names_ += chain.size();
  finished_.emplace(id, std::move(chain));
  finished_order_.push_back(id);
  while (finished_order_.size() > options_.max_finished || finished_names_ > options_.max_finished_names) {
    const auto oldest = finished_.find(finished_order_.front());
    finished_names_ -= oldest->second.size();
    finished_.erase(oldest);
    finished_order_.pop_front();
  }
}

void Core::AbortVictims() {
  for (SeqId seq : planner_.TakeIoVictims()) {
    const Entry* entry = Find(seq);  // Close has already told the others
    if (entry != nullptr && entry->pull == Pull::kRunning) effects_.push_back(AbortPull{seq});
  }
}

void Core::AdmitWaiting() {
  for (SeqId id : planner_.AdmitWaiting(planner_.options().max_batch)) {
    Entry& entry = entries_.at(id);
    entry.loading = tiers_.BeginLoad(id);
    if (!entry.loading) AnswerReserve(id, &entry);
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
  tiers_.FillLoad(&load);
  return load;
}

void Core::CheckInvariants() const {
  planner_.CheckInvariants();
  size_t io = 0;
  for (const auto& [id, entry] : entries_) {
    const Sequence* seq = planner_.Find(id);
    AS_CHECK(seq != nullptr) << "sequence " << id;
    AS_CHECK_EQ(seq->runnable, entry.state == State::kRunning) << "sequence " << id;
    AS_CHECK_EQ(seq->io, entry.pull == Pull::kRunning || entry.loading) << "sequence " << id;
    AS_CHECK(entry.pull != Pull::kRunning || !entry.loading) << "sequence " << id;
    AS_CHECK(seq->fate != Sequence::Fate::kRemove) << "sequence " << id;
    AS_CHECK(entry.state != State::kQueued || entry.loading || seq->phase == Sequence::Phase::kWaiting)
        << "sequence " << id;
    io += entry.pull == Pull::kRunning;
  }
  tiers_.CheckInvariants();
  AS_CHECK_LE(io, pulls_.size());  // the rest belongs to sequences that are over and wait for their PullEnded
}

}  // namespace agentserve::decode_worker
