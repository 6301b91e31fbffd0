// The prefill worker as a stepped machine: prompts in, first tokens and held KV out.
//
//   Start -> waiting -> admitted (blocks, progress slot) -> chunk .. chunk -> first token -> held -> closed
//
// The shell calls Step for each event, then TakeEffects; PlanStep when no step runs, then runs it and steps StepDone.
// It may also plan the next step while one runs (engine/planner.h), at most two at a time; StepDone is the oldest
// one's. Copies to and from host memory (HostCopy, engine/kv_tiers.h) are carried out beside the steps and answered by
// CopyEnded; a prompt that is partly there loads that part before it is admitted. No thread, clock, lock, memory or
// wire format. Single-threaded.
//
// Every accepted sequence ends in exactly one Closed effect, the last one that names it; Failed, if any, comes right
// before. Invariants, see CheckInvariants(): block conservation; one entry per sequence, which is either in the planner
// or holds its finished blocks; entries with blocks never exceed `max_offers`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "engine/batch.h"
#include "engine/kv_tiers.h"
#include "engine/planner.h"
#include "engine/worker_limits.h"

namespace agentserve::prefill_worker {

struct Options {
  engine::BlockPool::Options pool;
  engine::Planner::Options planner;  // seal_prompt_tail and plan_past_samples are set by the core
  engine::QueueLimits queue;
  engine::KvTiers::Options tiers;
  // Token ids at or above are refused.
  uint32_t vocab_size = 0;
  // Sequences with blocks at once, running or held: one progress slot each.
  uint32_t max_offers = 1024;
  // How long finished KV waits for ReleaseKv. A decode worker pulls within milliseconds; 30 s outlives any router
  // hiccup that is not a failure.
  base::TimeNs hold_ns = 30 * base::kNsPerSecond;
};

// Events.
struct Start {
  engine::SequenceSpec spec;
  base::TimeNs budget_ns = 0;  // from now; at most 0 = already over
};
struct Reorder {
  engine::SeqId seq;
  int64_t rank = 0;
};
struct Cancel {
  engine::SeqId seq;
};
struct ReleaseKv {
  engine::SeqId seq;
};
// The planned step ran. `status` not OK: its sequences fail; `output` and `digests` are ignored.
struct StepDone {
  absl::Status status;
  engine::StepOutput output;
  std::vector<uint64_t> digests;  // one per PlannedStep::seals
};
// Only time passed.
struct Tick {};
using engine::CopyEnded;
using Event = std::variant<Start, Reorder, Cancel, ReleaseKv, CopyEnded, StepDone, Tick>;

// A block a peer may read. `digest` 0: still being written.
struct OfferedBlock {
  engine::BlockId block;
  engine::Epoch epoch;
  uint32_t tokens = 0;
  uint64_t digest = 0;
  bool operator==(const OfferedBlock&) const = default;
};

// Effects, in order.
// Blocks exist; the shell gives it a progress slot that starts at `cached_tokens` complete.
struct Admitted {
  engine::SeqId seq;
  std::vector<OfferedBlock> blocks;
  uint32_t cached_tokens = 0;
};
struct ChunkDone {
  engine::SeqId seq;
  uint32_t computed = 0;
};
struct FirstToken {
  engine::SeqId seq;
  engine::SampledToken token;
  std::vector<OfferedBlock> blocks;
  base::TimeNs wait_ns = 0;     // Start to first chunk
  base::TimeNs prefill_ns = 0;  // first chunk to first token
};
struct Failed {
  engine::SeqId seq;
  engine::Failure failure;
};
// The sequence is over and its blocks are given back (or will be, when the running step ends).
struct Closed {
  engine::SeqId seq;
};
using engine::HostCopy;
using Effect = std::variant<Admitted, HostCopy, ChunkDone, FirstToken, Failed, Closed>;

class Core {
 public:
  explicit Core(const Options& options);
  ~Core();

  void Step(const Event& event, base::TimeNs now);
  std::vector<Effect> TakeEffects() { return std::exchange(effects_, {}); }
  // The step to run next, or null. Valid until its StepDone.
  const engine::PlannedStep* PlanStep(base::TimeNs now);
  // Apply before the planned step runs.
  std::vector<engine::BlockChange> TakeBlockChanges() { return pool_.TakeChanges(); }
  // When a Tick is due at the latest; max() = never.
  base::TimeNs NextDeadline() const;

  engine::Load load() const;
  // Sequences that have not ended, held KV included.
  uint32_t size() const { return static_cast<uint32_t>(entries_.size()); }
  uint32_t held() const { return held_; }
  // Copies to or from host memory that run.
  uint32_t copying() const { return static_cast<uint32_t>(tiers_.jobs()); }
  const engine::KvTiers& tiers() const { return tiers_; }
  std::vector<engine::HostTier::Change> TakeHostChanges() { return tiers_.TakeHostChanges(); }
  // Prompt tokens per second, as measured by whoever runs the steps; 0 = not known.
  void set_prefill_rate(double tokens_per_s) { tiers_.set_prefill_rate(tokens_per_s); }
  const engine::PlannerStats& stats() const { return planner_.stats(); }
  const engine::BlockPool& pool() const { return pool_; }
  void CheckInvariants() const;

 private:
  struct Entry {
    base::TimeNs deadline = 0;
    base::TimeNs arrived = 0;
    base::TimeNs first_chunk = 0;  // 0 = none yet
    bool held = false;
    engine::BlockTable blocks;  // only when held
    base::TimeNs hold_until = 0;
  };

  void On(const Start& e, base::TimeNs now);
  void On(const Reorder& e, base::TimeNs now);
  void On(const Cancel& e, base::TimeNs now);
  void On(const ReleaseKv& e, base::TimeNs now);
  void On(const CopyEnded& e, base::TimeNs now);
  void On(const StepDone& e, base::TimeNs now);
  void On(const Tick&, base::TimeNs) {}
  void Refuse(engine::SeqId seq, engine::Failure failure);
  void Fail(engine::SeqId seq, engine::Failure failure);
  void Close(engine::SeqId seq);
  void Finish(const engine::Advance& advance, base::TimeNs now);
  void ExpireDeadlines(base::TimeNs now);
  void AdmitWaiting();
  void TellAdmitted(engine::SeqId seq);
  std::vector<OfferedBlock> Offer(const engine::BlockTable& blocks, uint32_t tokens) const;

  const Options options_;
  engine::BlockPool pool_;
  engine::Planner planner_;
  engine::KvTiers tiers_;
  std::map<engine::SeqId, Entry> entries_;
  uint32_t held_ = 0;
  std::vector<Effect> effects_;
};

}  // namespace agentserve::prefill_worker
