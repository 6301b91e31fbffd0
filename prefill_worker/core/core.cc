#include "prefill_worker/core/core.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/strings.h"

namespace agentserve::prefill_worker {

using engine::Failure;
using engine::SeqId;

namespace {

engine::Planner::Options PlannerOptions(const Options& options) {
  engine::Planner::Options planner = options.planner;
  planner.seal_prompt_tail = true;    // peers read the partly filled last block
  planner.plan_past_samples = false;  // the first token is the end here
  return planner;
}

engine::KvTiers::Options TierOptions(const Options& options) {
  engine::KvTiers::Options tiers = options.tiers;
  tiers.block_tokens = options.planner.block_tokens;
  return tiers;
}

}  // namespace

Core::Core(const Options& options)
    : options_(options),
      pool_(options.pool),
      planner_(PlannerOptions(options), &pool_),
      tiers_(TierOptions(options), &pool_, &planner_) {}

Core::~Core() { entries_.clear(); }

void Core::Step(const Event& event, base::TimeNs now) {
  std::visit([&](const auto& e) { On(e, now); }, event);
  ExpireDeadlines(now);
  AdmitWaiting();
  tiers_.Pump();
  for (HostCopy& copy : tiers_.TakeCopies()) effects_.push_back(std::move(copy));
  pool_.CheckConservation();
}

void Core::On(const Start& e, base::TimeNs now) {
  const SeqId id = e.spec.id;
  AS_CHECK(!entries_.contains(id) && planner_.Find(id) == nullptr) << "sequence " << id << " started twice";
  const engine::AdmissionLimits limits{options_.queue, options_.vocab_size};
  if (auto refusal = engine::RefusalOf(e.spec, e.budget_ns, limits, planner_)) return Refuse(id, *std::move(refusal));
  Entry entry;
  entry.arrived = now;
  entry.deadline = engine::DeadlineOf(now, e.budget_ns);
  entries_.emplace(id, std::move(entry));
  planner_.Add(e.spec, /*runnable=*/true);
}

void Core::On(const Reorder& e, base::TimeNs) {
  const auto it = entries_.find(e.seq);
  if (it != entries_.end() && !it->second.held) planner_.Reorder(e.seq, e.rank);
}

void Core::On(const Cancel& e, base::TimeNs) {
  if (entries_.contains(e.seq)) Close(e.seq);
}

void Core::On(const ReleaseKv& e, base::TimeNs) {
  // Before the first token it means "not needed any more", which is a cancel.
  if (entries_.contains(e.seq)) Close(e.seq);
}

void Core::On(const CopyEnded& e, base::TimeNs now) {
  const std::optional<engine::SequenceLoaded> loaded = tiers_.OnCopyEnded(e, now);
  if (!loaded) return;
  planner_.EndIo(loaded->seq);  // may forget the sequence
  if (!entries_.contains(loaded->seq)) return;
  engine::Sequence& seq = *planner_.Find(loaded->seq);
  AS_CHECK(seq.phase == engine::Sequence::Phase::kActive) << "prompts are never preempted";
  const uint32_t first = seq.sealed;
  planner_.SealCached(&seq, loaded->digests);
  tiers_.NoteLoaded(std::span(seq.chain).subspan(first, loaded->digests.size()));
  TellAdmitted(loaded->seq);
}

void Core::On(const StepDone& e, base::TimeNs now) {
  if (!e.status.ok()) {
    for (SeqId seq : planner_.Fail()) {
      Fail(seq, {e.status.code(), "EXECUTOR", base::StrCat("the prefill step failed: ", base::MessageOf(e.status))});
    }
    return;
  }
  for (const engine::Advance& advance : planner_.Complete(e.output, e.digests)) {
    AS_CHECK(entries_.contains(advance.seq));
    effects_.push_back(ChunkDone{advance.seq, advance.computed});
    if (advance.sampled) Finish(advance, now);
  }
}

void Core::Finish(const engine::Advance& advance, base::TimeNs now) {
  Entry& entry = entries_.at(advance.seq);
  const uint32_t tokens = advance.computed;
  entry.blocks = planner_.TakeBlocks(advance.seq);
  entry.held = true;
  entry.hold_until = now + options_.hold_ns;
  ++held_;
  FirstToken first;
  first.seq = advance.seq;
  first.token = advance.token;
  first.blocks = Offer(entry.blocks, tokens);
  first.wait_ns = entry.first_chunk - entry.arrived;
  first.prefill_ns = now - entry.first_chunk;
  effects_.push_back(std::move(first));
}

std::vector<OfferedBlock> Core::Offer(const engine::BlockTable& blocks, uint32_t tokens) const {
  std::vector<OfferedBlock> offer;
  offer.reserve(blocks.size());
  const uint32_t per_block = planner_.options().block_tokens;
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    const engine::BlockId b = blocks[i];
    const bool sealed = pool_.state(b) == engine::BlockPool::State::kSealed;
    offer.push_back({b, pool_.epoch(b), std::min(per_block, tokens - i * per_block), sealed ? pool_.digest(b) : 0});
  }
  return offer;
}

void Core::AdmitWaiting() {
  const uint32_t room = options_.max_offers > held_ ? options_.max_offers - held_ : 0;
  for (SeqId id : planner_.AdmitWaiting(room)) {
    if (!tiers_.BeginLoad(id)) TellAdmitted(id);
  }
}

void Core::TellAdmitted(SeqId id) {
  const engine::Sequence& seq = *planner_.Find(id);
  Admitted admitted;
  admitted.seq = id;
  admitted.blocks = Offer(seq.blocks, static_cast<uint32_t>(seq.tokens.size()));
  admitted.cached_tokens = seq.computed;
  effects_.push_back(std::move(admitted));
}

const engine::PlannedStep* Core::PlanStep(base::TimeNs now) {
  const engine::PlannedStep* step = planner_.Plan();
  AS_CHECK(planner_.TakeIoVictims().empty());
  if (step == nullptr) return nullptr;
  for (const engine::SeqSlice& slice : step->plan.slices) {
    Entry& entry = entries_.at(slice.seq);
    if (entry.first_chunk == 0) entry.first_chunk = now;
  }
  return step;
}

void Core::ExpireDeadlines(base::TimeNs now) {
  std::vector<std::pair<SeqId, bool>> over;  // id, by hold
  for (const auto& [id, entry] : entries_) {
    if (entry.held && entry.hold_until <= now) {
      over.emplace_back(id, true);
    } else if (entry.deadline <= now) {
      over.emplace_back(id, false);
    }
  }
  for (const auto& [id, by_hold] : over) {
    if (by_hold) {
      Fail(id, {absl::StatusCode::kDeadlineExceeded, "HOLD_EXPIRED",
                base::StrCat("nobody released the KV within ", options_.hold_ns / base::kNsPerMs, " ms")});
    } else {
      Fail(id, {absl::StatusCode::kDeadlineExceeded, "DEADLINE", "the time budget ran out on the prefill worker"});
    }
  }
}

base::TimeNs Core::NextDeadline() const {
  base::TimeNs next = std::numeric_limits<base::TimeNs>::max();
  for (const auto& [id, entry] : entries_) {
    next = std::min(next, entry.deadline);
    if (entry.held) next = std::min(next, entry.hold_until);
  }
  return next;
}

void Core::Refuse(SeqId seq, Failure failure) {
  effects_.push_back(Failed{seq, std::move(failure)});
  effects_.push_back(Closed{seq});
}

void Core::Fail(SeqId seq, Failure failure) {
  effects_.push_back(Failed{seq, std::move(failure)});
  Close(seq);
}

void Core::Close(SeqId seq) {
  const auto it = entries_.find(seq);
  AS_CHECK(it != entries_.end());
  if (it->second.held) {
    --held_;
  } else {
    planner_.Remove(seq);
  }
  entries_.erase(it);
  effects_.push_back(Closed{seq});
}

engine::Load Core::load() const {
  engine::Load load;
  load.running = planner_.active() + held_;
  load.waiting = planner_.waiting();
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
  uint32_t held = 0;
  for (const auto& [id, entry] : entries_) {
    held += entry.held;
    AS_CHECK_EQ(entry.held, !entry.blocks.empty()) << "sequence " << id;
  }
  AS_CHECK_EQ(held, held_);
  tiers_.CheckInvariants();
  AS_CHECK_LE(held + planner_.active(), options_.max_offers + planner_.options().max_batch);
}

}  // namespace agentserve::prefill_worker
