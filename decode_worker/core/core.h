// The decode worker as a stepped machine: one continuous batch of decodes and local prefills, and sequences whose KV
// is pulled from prefill workers.
//
//   Reserve -> queued -> reserved -+- Attach -> pulling - Admit -> finishing -+-> running -> finished
//                                  +- PrefillLocal ---------------------------+
//              a pull that fails, or that is not found valid, becomes a local prefill (recompute)
//
// The shell calls Step for each event, then TakeEffects; PlanStep when no step runs, then runs it and steps StepDone.
// It may also plan the next step while one runs (engine/planner.h), at most two at a time; StepDone is the oldest
// one's. A pull is done by the shell beside the steps: StartPull, then FinishPull or AbortPull, and always exactly one
// PullEnded back; until then its blocks are not given to anybody else. Copies to and from host memory (HostCopy,
// engine/kv_tiers.h) follow the same rule and are answered by CopyEnded. A sequence whose prompt is partly in host
// memory loads that part before it is reserved. No thread, clock, lock, memory or wire format. Single-threaded.
//
// Every accepted sequence ends in exactly one Closed effect, the last one that names it; Finished or Failed, if any,
// comes right before. Invariants, see CheckInvariants(): block conservation; an entry in state kRunning is runnable in
// the planner and no other is; blocks under a pull belong to a sequence marked `io`.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "engine/batch.h"
#include "engine/kv_tiers.h"
#include "engine/planner.h"
#include "engine/worker_limits.h"

namespace agentserve::decode_worker {

struct Options {
  engine::BlockPool::Options pool;
  engine::Planner::Options planner;
  engine::QueueLimits queue;
  uint32_t vocab_size = 0;
  engine::KvTiers::Options tiers;
  // Finished sequences whose block names are remembered for a later Retain or Prefetch, and their names in all: 1 Mi
  // names are 16 MiB and 16 M tokens of 16-token blocks, several times what any pool holds.
  uint32_t max_finished = 4096;
  uint64_t max_finished_names = 1 << 20;
};

// A block in the pool of a prefill worker. `digest` 0: still being written.
struct RemoteBlock {
  uint32_t index = 0;
  uint32_t epoch = 0;
  uint32_t tokens = 0;
  uint64_t digest = 0;
  bool operator==(const RemoteBlock&) const = default;
};
// KV of one prompt over there.
struct RemoteKv {
  std::string worker_id;
  uint64_t incarnation = 0;
  uint32_t progress_slot = 0;
  uint64_t progress_tag = 0;
  std::vector<RemoteBlock> blocks;
};

// Events.
struct Reserve {
  engine::SequenceSpec spec;
  base::TimeNs budget_ns = 0;  // from now
};
struct Attach {
  engine::SeqId seq;
  RemoteKv kv;
};
struct Admit {
  engine::SeqId seq;
  engine::TokenId first_token = 0;
  RemoteKv kv;
};
struct PrefillLocal {
  engine::SeqId seq;
};
struct Preempt {
  engine::SeqId seq;
};
struct Cancel {
  engine::SeqId seq;
};
// Where to keep the KV of a sequence that has ended, or will. The latest word counts.
struct Retain {
  engine::SeqId seq;
  engine::KvTiers::Keep keep;
};
// The KV of an ended sequence will be wanted soon: bring it from host memory to the device.
struct Prefetch {
  engine::SeqId seq;
  base::TimeNs ttl_ns = 0;
};
enum class PullOutcome : uint8_t { kOk, kInvalid, kFailed, kAborted };
// Answers StartPull once nothing writes the blocks any more. kOk only after FinishPull: all blocks are here and valid.
struct PullEnded {
  engine::SeqId seq;
  PullOutcome outcome = PullOutcome::kFailed;
  std::string transport;
  uint64_t bytes = 0;
  base::TimeNs copy_ns = 0;
};
struct StepDone {
  absl::Status status;  // not OK: the sequences of the step fail
  engine::StepOutput output;
  std::vector<uint64_t> digests;  // one per PlannedStep::seals
};
struct Tick {};
using engine::CopyEnded;
using Event = std::variant<Reserve, Attach, Admit, PrefillLocal, Preempt, Cancel, Retain, Prefetch, PullEnded,
                           CopyEnded, StepDone, Tick>;

// Effects, in order.
struct Reserved {
  engine::SeqId seq;
  uint32_t cached_tokens = 0;
  uint32_t host_tokens = 0;  // of these, from host memory
};
// Copy kv.blocks[i] to blocks[i] for i >= first, as they fill up.
struct StartPull {
  engine::SeqId seq;
  RemoteKv kv;
  std::vector<engine::BlockId> blocks;
  uint32_t first = 0;
  uint32_t cached_tokens = 0;
};
// `kv` is complete, with digests: copy the rest, validate, answer.
struct FinishPull {
  engine::SeqId seq;
  RemoteKv kv;
};
// Stop writing and answer.
struct AbortPull {
  engine::SeqId seq;
};
// The sequence joins the next step.
struct KvReady {
  engine::SeqId seq;
  uint64_t bytes = 0;
  std::string transport;  // of the pull, or "recompute"
  base::TimeNs copy_ns = 0;
  base::TimeNs exposed_ns = 0;  // Admit to now
  bool invalid = false;         // recompute because the copy was not valid
};
struct TokenOut {
  engine::SampledToken token;
  engine::FinishReason finish = engine::FinishReason::kNone;
};
// All tokens of one step.
struct StepTokens {
  uint64_t step = 0;
  std::vector<TokenOut> tokens;
};
struct Finished {
  engine::SeqId seq;
  uint32_t steps = 0;
  uint32_t cached_tokens = 0;
  uint32_t host_tokens = 0;  // of these, from host memory
  base::TimeNs prefill_wait_ns = 0, prefill_ns = 0, decode_wait_ns = 0, decode_ns = 0;
  uint32_t preemptions = 0;
};
struct Failed {
  engine::SeqId seq;
  engine::Failure failure;
};
struct Closed {
  engine::SeqId seq;
};
using engine::HostCopy;
using Effect =
    std::variant<Reserved, StartPull, FinishPull, AbortPull, HostCopy, KvReady, StepTokens, Finished, Failed, Closed>;

struct CoreStats {
  uint64_t pulls_ok = 0;
  uint64_t pulls_invalid = 0;  // the copy was not what the owner had sealed
  uint64_t pulls_failed = 0;   // peer gone, slot reused, no connection, or blocks lost to preemption
  uint64_t recomputes = 0;     // sequences prefilled here although a prefill worker had done it
};

class Core {
 public:
  explicit Core(const Options& options);
  ~Core();

  void Step(const Event& event, base::TimeNs now);
  std::vector<Effect> TakeEffects() { return std::exchange(effects_, {}); }
  // The step to run next, or null. Valid until its StepDone. May have effects.
  const engine::PlannedStep* PlanStep(base::TimeNs now);
  // Apply before the planned step runs and before effects are acted on.
  std::vector<engine::BlockChange> TakeBlockChanges() { return pool_.TakeChanges(); }
  // When a Tick is due at the latest; max() = never.
  base::TimeNs NextDeadline() const;

  engine::Load load() const;
  uint32_t size() const { return static_cast<uint32_t>(entries_.size()); }
  uint32_t pulling() const { return static_cast<uint32_t>(pulls_.size()); }
  // Copies to or from host memory that run.
  uint32_t copying() const { return static_cast<uint32_t>(tiers_.jobs()); }
  const engine::KvTiers& tiers() const { return tiers_; }
  std::vector<engine::HostTier::Change> TakeHostChanges() { return tiers_.TakeHostChanges(); }
  // Prompt tokens per second that this worker computes, as measured by whoever runs the steps; 0 = not known.
  void set_prefill_rate(double tokens_per_s) { tiers_.set_prefill_rate(tokens_per_s); }
  const engine::PlannerStats& stats() const { return planner_.stats(); }
  const CoreStats& core_stats() const { return core_stats_; }
  const engine::BlockPool& pool() const { return pool_; }
  void CheckInvariants() const;

 private:
  enum class State : uint8_t { kQueued, kReserved, kRunning };
  enum class Pull : uint8_t { kNone, kRunning, kDone };
  struct Entry {
    State state = State::kQueued;
    Pull pull = Pull::kNone;
    bool want_local = false;  // PrefillLocal came while a pull was running
    bool admitted = false;
    engine::TokenId first_token = 0;
    RemoteKv final_kv;  // of Admit
    base::TimeNs deadline = 0, arrived = 0, admitted_at = 0;
    base::TimeNs first_chunk = -1, kv_ready = -1, first_decode = -1, last_token = -1;  // -1 = not yet
    uint32_t steps = 0;
    bool answered = false;  // Reserved is out
    bool loading = false;   // from host memory
    uint32_t host_tokens = 0;
    std::optional<engine::KvTiers::Keep> keep;
  };
  using FinishedChain = std::vector<base::Hash128>;

  void On(const Reserve& e, base::TimeNs now);
  void On(const Attach& e, base::TimeNs now);
  void On(const Admit& e, base::TimeNs now);
  void On(const PrefillLocal& e, base::TimeNs now);
  void On(const Preempt& e, base::TimeNs now);
  void On(const Cancel& e, base::TimeNs now);
  void On(const Retain& e, base::TimeNs now);
  void On(const Prefetch& e, base::TimeNs now);
  void On(const CopyEnded& e, base::TimeNs now);
  void On(const PullEnded& e, base::TimeNs now);
  void On(const StepDone& e, base::TimeNs now);
  void On(const Tick&, base::TimeNs) {}

  Entry* Find(engine::SeqId seq);
  bool BeginPull(engine::SeqId seq, Entry* entry, const RemoteKv& kv);
  void UsePulled(engine::SeqId seq, Entry* entry, const PullEnded& e, base::TimeNs now);
  void Recompute(engine::SeqId seq, Entry* entry, bool invalid, base::TimeNs now);
  void JoinBatch(engine::SeqId seq, Entry* entry, KvReady ready, base::TimeNs now);
  void FinishSequence(engine::SeqId seq, base::TimeNs now);
  void AbortVictims();
  void Fail(engine::SeqId seq, engine::Failure failure);
  void Close(engine::SeqId seq);
  void ExpireDeadlines(base::TimeNs now);
  void AdmitWaiting();
  // Tells that the sequence has blocks, the first time.
  void AnswerReserve(engine::SeqId seq, Entry* entry);
  void Remember(engine::SeqId seq, FinishedChain chain);

  const Options options_;
  engine::BlockPool pool_;
  engine::Planner planner_;
  engine::KvTiers tiers_;
  std::map<engine::SeqId, Entry> entries_;
  std::set<engine::SeqId> pulls_;  // without their PullEnded
  std::map<engine::SeqId, FinishedChain> finished_;
  std::deque<engine::SeqId> finished_order_;
  uint64_t finished_names_ = 0;
  std::vector<Effect> effects_;
  CoreStats core_stats_;
};

}  // namespace agentserve::decode_worker
