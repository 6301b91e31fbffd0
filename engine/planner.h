// Iteration-level batch planner: who is in the next step, with how many tokens, in which blocks.
//
// Order everywhere: larger rank first, then earlier arrival ("higher"). Each step first takes one token of every
// decoding sequence, then fills what is left of the token budget with chunks of prompts. A sequence gets blocks for all
// its tokens when it is admitted, after the blocks of its longest cached prefix; while decoding it grows block by
// block. When the pool is full the lowest sequence loses its blocks and is recomputed later (prompt and output, so
// nothing changes for the reader). So the highest sequence always gets what it needs and finishes.
//
// Single-threaded, owned by the worker's loop; no clock. Each step: Plan, run, Complete or Fail. All other calls may
// come between Plan and Complete; blocks used by a step in flight are then given back by its Complete.
//
// Planning ahead: with one step in flight the next one may be planned. It continues what the first one leaves undone
// and takes sequences that are not in it. A sequence whose next token the first step samples is continued with a
// placeholder for it (SeqSlice::input_pending), unless its end is certain by then or its sampling reads the history,
// and only into blocks that are free: nobody is preempted for a token that may not be wanted. If the sequence turns out
// to be over, what the later step sampled for it is dropped, and its blocks come back when that step is complete.
//
// Invariants, see CheckInvariants():
//   1. A sequence has blocks only while active, and then enough for [0, computed + scheduled).
//   2. Blocks of a busy sequence (in a step in flight, or written by somebody else) are never given away.
//   3. active <= max_batch; waiting and active sequences are exactly those of their ordered sets.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "engine/batch.h"
#include "engine/block_pool.h"
#include "engine/sequence.h"

namespace agentserve::engine {

// A block that a planned step fills (or, for the last one of a prompt, writes for the last time).
struct SealRequest {
  SeqId seq;
  BlockId block;
  uint32_t index = 0;   // in the sequence
  uint32_t tokens = 0;  // rows that will hold data
};

struct PlannedStep {
  uint64_t number = 0;  // from 1 on
  // Spans into sequences are valid until the step has run or is launched; sizes and all else until Complete.
  StepPlan plan;
  // In slice order. Whoever runs the step hands the digest of each back to Complete.
  std::vector<SealRequest> seals;
  uint32_t tokens = 0;  // of all slices
};

// A sequence moved on by a step.
struct Advance {
  SeqId seq;
  uint32_t computed = 0;  // tokens whose KV is complete now
  bool sampled = false;
  SampledToken token;                         // if sampled; already appended to the sequence
  FinishReason finish = FinishReason::kNone;  // if not kNone the owner removes the sequence
};

struct PlannerStats {
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t prompt_tokens = 0;     // prompts whose prefill is complete (here, or pulled)
  uint64_t generated_tokens = 0;  // sampled here
  uint64_t computed_tokens = 0;   // run through the model
  // In tokens, counted once for a sequence, when its prefill is complete.
  uint64_t prefix_queries = 0;
  uint64_t prefix_hits = 0;
};

class Planner {
 public:
  struct Options {
    uint32_t block_tokens = 16;
    // Most sequences with blocks: each costs one slice per step.
    uint32_t max_batch = 64;
    // Most tokens of a step: bounds how long a prompt chunk delays decodes.
    uint32_t step_tokens = 512;
    // Most tokens of a sequence (model's limit, or what the pool holds if that is less).
    uint32_t context_length = 0;
    uint64_t layout_fingerprint = 0;
    std::vector<TokenId> end_tokens;
    // True: a prompt's last, partly filled block is sealed too (without a name), since peers read it.
    bool seal_prompt_tail = false;
    // False: a sequence is never continued past a token that is still being sampled.
    bool plan_past_samples = true;
  };
  // A third step would only start what the second one may show not to be wanted.
  static constexpr size_t kMaxInFlight = 2;

  Planner(Options options, BlockPool* pool);

  // Adds a waiting sequence. The caller checked CanFit and that the id is new. `runnable` false: it gets blocks but
  // takes no part in steps until MakeRunnable.
  void Add(SequenceSpec spec, bool runnable);
  // Whether a sequence of that many tokens, and one more, can ever be served.
  bool CanFit(uint64_t tokens) const { return tokens >= 1 && tokens < options_.context_length; }
  // Null if unknown. The pointer is valid until the sequence is removed.
  Sequence* Find(SeqId id);
  const Sequence* Find(SeqId id) const { return const_cast<Planner*>(this)->Find(id); }
  // KV of tokens [0, computed) is in the blocks now, or nowhere (computed = 0, dormant). It takes part in steps, once
  // it is not `io` (any more).
  void MakeRunnable(SeqId id);
  // A dormant sequence waits for blocks again, as it did before it was first admitted.
  void Requeue(SeqId id);
  // Changes the place of a sequence.
  void Reorder(SeqId id, int64_t rank);

  // Gives blocks to waiting sequences, highest first, until one does not fit. `most_active` lowers max_batch for now.
  std::vector<SeqId> AdmitWaiting(uint32_t most_active);
  // Takes the blocks away; at once, or when the sequence stops being busy. Counts as a preemption.
  void Preempt(SeqId id);
  // Forgets the sequence; at once, or when it stops being busy. Until then Find still knows it.
  void Remove(SeqId id);
  // The outside writer is done (`Sequence::io`).
  void EndIo(SeqId id);
  // Takes the blocks of an idle sequence out and forgets it.
  BlockTable TakeBlocks(SeqId id);

  // The next step, or null if nothing can run (now). Valid until its Complete or Fail. At most kMaxInFlight at a time.
  const PlannedStep* Plan();
  size_t in_flight() const { return steps_.size(); }
  // Number of the oldest step in flight.
  uint64_t oldest_step() const { return steps_.front().number; }
  // The oldest step is over. `digests`: one per seal request. Sequences to be removed or preempted give no Advance.
  std::vector<Advance> Complete(const StepOutput& output, const std::vector<uint64_t>& digests);
  // The oldest step failed: nothing is computed, and a later step in flight is lost with it. Returns the sequences of
  // the failed step that are not on their way out; the owner removes them. Others of the lost step are planned again.
  std::vector<SeqId> Fail();
  // Names and seals the blocks of tokens [0, tokens) that somebody else wrote. `digests`: one per block of the
  // sequence, of which sealed ones are skipped.
  void SealWritten(Sequence* seq, uint32_t tokens, const std::vector<uint64_t>& digests);
  // Names and seals the full blocks [seq->sealed, seq->sealed + digests.size()), which came out of a cache: unlike
  // SealWritten this is a prefix hit, and the rest of the prompt is still to be computed.
  void SealCached(Sequence* seq, const std::vector<uint64_t>& digests);

  // Sequences preempted by Plan although somebody outside writes their blocks: the owner must stop the writer and call
  // EndIo.
  std::vector<SeqId> TakeIoVictims() { return std::exchange(io_victims_, {}); }

  uint32_t active() const { return static_cast<uint32_t>(active_.size()); }
  uint32_t waiting() const { return static_cast<uint32_t>(waiting_.size()); }
  uint32_t size() const { return static_cast<uint32_t>(sequences_.size()); }
  // Active sequences whose next step is a decode.
  uint32_t decoding() const;
  // Prompt tokens not computed, of waiting and active sequences.
  uint64_t pending_tokens() const;
  const PlannerStats& stats() const { return stats_; }
  const Options& options() const { return options_; }
  void CheckInvariants() const;

 private:
  // Sorts higher sequences first.
  struct Key {
    int64_t rank;
    uint64_t arrival;
    SeqId id;
    bool operator<(const Key& o) const {
      return rank != o.rank ? rank > o.rank : arrival != o.arrival ? arrival < o.arrival : id < o.id;
    }
  };
  static Key KeyOf(const Sequence& s) { return {s.rank, s.arrival, s.id}; }

  Sequence& Get(SeqId id);
  bool Admit(Sequence* seq);
  bool Grow(Sequence* seq, uint32_t tokens, bool may_preempt);
  bool MakeRoom(const Sequence& seq);
  bool NextTokenWanted(const Sequence& seq) const;
  void AddDecode(Sequence* seq, PlannedStep* step);
  void AddSlice(Sequence* seq, uint32_t count, PlannedStep* step);
  static void ForgetPlaceholder(Sequence* seq);
  void Settle(SeqId id);
  void DropBlocks(Sequence* seq);
  void Erase(SeqId id);
  void CountPrefill(Sequence* seq);
  void ApplySeals(const PlannedStep& step, const std::vector<uint64_t>& digests);
  Advance AdvanceOne(Sequence* seq, const SeqSlice& slice, const StepOutput& output, size_t next_token);

  const Options options_;
  BlockPool* const pool_;
  std::map<SeqId, std::unique_ptr<Sequence>> sequences_;
  std::set<Key> waiting_, active_;
  uint64_t next_arrival_ = 0;
  std::deque<PlannedStep> steps_;  // in flight, oldest first
  std::vector<SeqId> io_victims_;
  PlannerStats stats_;
};

}  // namespace agentserve::engine
