// A model of a worker that costs a few operations per event instead of per step and block.
//
// All decoding sequences gain one token a step, so their lengths are a counter plus a constant; between events the time
// of k steps has a closed form. Blocks are counted, not listed; cached prefixes are runs (prefix_tree.h). What it
// leaves out: the second step in flight, blocks sealed while a prompt is still being computed.
//
// Times: `boundary_` is when the last committed step ended. A steady stretch of planned_steps_ decode steps, or one
// mixed step, runs from there to `wake_`.
#pragma once

#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/rng.h"
#include "tools/sim/host_runs.h"
#include "tools/sim/prefix_tree.h"
#include "tools/sim/worker.h"

namespace agentserve::sim {

class FastWorker final : public SimWorker {
 public:
  FastWorker(const WorkerOptions& options, const StepModel* model);

  void Obey(const Order& order, TimeNs now) override;
  void Advance(TimeNs now) override;
  TimeNs NextEvent() const override;
  void PeerLost(uint32_t worker, TimeNs now) override;
  size_t size() const override { return seqs_.size(); }
  WorkerStats stats() const override { return stats_; }
  void CheckInvariants() const override;

 private:
  enum class State : uint8_t { kWaiting, kReserved, kPrefill, kDecode, kHeld };
  struct Seq {
    uint64_t id = 0;
    uint32_t attempt = 0;
    State state = State::kWaiting;
    bool runnable = false;  // prefill locally
    bool told_reserved = false;
    bool gone = false;  // ends at the next boundary
    router::FinishReason end = router::FinishReason::kLength;
    SpansPtr spans;
    uint32_t length = 0;  // tokens; of a decoding one: at `joined_`
    uint32_t left = 0;    // output tokens still to come
    uint64_t joined = 0;  // counter when it began to decode
    uint64_t finish = 0;  // counter at its last token
    uint32_t told = 0;    // its tokens that the router knows, since `joined`
    PrefixTree::Node node = 0;
    uint32_t shared = 0;  // leading blocks that the tree holds for it
    uint32_t own = 0;     // blocks beyond (of a decoding one: at `joined`)
    uint32_t computed = 0;
    uint32_t cached = 0;
    bool counted = false;
    int64_t rank = 0;
    uint64_t arrival = 0;
    uint32_t preemptions = 0;
    // Pull
    bool pulling = false, admitted = false;
    uint32_t peer = 0;
    TimeNs pull_from = 0, pull_done = 0, admitted_at = 0;
    TimeNs arrived = 0, first_chunk = -1, ready = -1;
    uint32_t host = 0;      // of `cached`, tokens from host memory
    uint32_t loading = 0;   // blocks, while a copy from host memory runs
    bool has_keep = false;  // what to do with its KV at its end
    router::Command keep;
  };
  struct Key {
    int64_t rank;
    uint64_t arrival, id;
    bool operator<(const Key& o) const { return rank != o.rank ? rank > o.rank : arrival < o.arrival; }
  };
  enum class Mode : uint8_t { kIdle, kSteady, kMixed };
  struct Chunk {
    uint64_t id;
    uint32_t tokens;
  };

  static Key KeyOf(const Seq& s) { return {s.rank, s.arrival, s.id}; }
  Seq* Find(router::SeqId id);
  uint32_t Blocks(uint32_t tokens) const { return (tokens + o_.block_tokens - 1) / o_.block_tokens; }
  uint32_t Length(const Seq& s) const {
    return s.state == State::kDecode ? s.length + static_cast<uint32_t>(counter_ - s.joined) : s.length;
  }
  uint32_t Own(const Seq& s) const { return s.own + (Blocks(Length(s)) - Blocks(s.length)); }
  int64_t Available() const { return int64_t{o_.num_blocks} - tree_.locked() - own_; }

  void Reserve(const Order& order, TimeNs now);
  void BeginPull(Seq* s, const router::Command& c, TimeNs now);
  void EndPull(Seq* s, TimeNs now);
  void Recompute(Seq* s, TimeNs now);
  void Cancel(Seq* s, TimeNs now);
  void Retain(const router::Command& c, TimeNs now);
  void KeepAs(const router::Command& c, const SpansPtr& spans, TimeNs now);
  void Prefetch(const router::Command& c, TimeNs now);
  void EndPrefetch(const SpansPtr& spans, TimeNs until);
  void StoreOnHost(const SpansPtr& spans, uint32_t worth);
  bool BeginLoad(Seq* s, TimeNs now);
  void EndLoad(Seq* s);
  void AdmitWaiting(TimeNs now);
  bool Admit(Seq* s, TimeNs now);
  void AnswerReserve(Seq* s);
  void MakeFree();
  void Seal(Seq* s, uint32_t tokens);
  void Release(Seq* s);
  void Erase(Seq* s);
  void Preempt(Seq* s);
  void JoinDecode(Seq* s);
  void LeaveDecode(Seq* s);
  void FirstOut(Seq* s, TimeNs now);
  void Finish(Seq* s, TimeNs now);
  void Tell(Seq* s, uint32_t count, router::FinishReason finish, UpMessage* m);
  void Flush(TimeNs now);
  void SayLoad();

  uint64_t Crossings(uint64_t steps) const;
  double SpanMs(double steps) const;
  void CutShort(TimeNs now);
  void Commit(TimeNs now);
  void CommitSteady();
  void CommitMixed(TimeNs now);
  void EndFinished(TimeNs now);
  void Plan(TimeNs now);
  void JoinPulled(TimeNs now);
  bool PlanMixed(TimeNs now);
  void PlanSteady(TimeNs now);
  double Noise(double steps);

  const WorkerOptions o_;
  const StepModel& model_;
  base::SplitMix64 rng_;
  PrefixTree tree_;
  std::unordered_map<uint64_t, Seq> seqs_;  // never iterated for decisions
  std::set<Key> waiting_, active_;
  std::set<Key> prefilling_;                           // runnable, with blocks, prompt not computed
  std::set<std::pair<uint64_t, uint64_t>> finishing_;  // decoding: (counter at the end, id)
  std::set<std::pair<TimeNs, uint64_t>> pulls_;        // (end, id)
  std::set<std::pair<TimeNs, uint64_t>> loads_;        // (end, id), from host memory
  struct Copy {
    SpansPtr spans;
    TimeNs until = 0;    // of a prefetch
    uint32_t worth = 0;  // of a store
    bool to_host = false;
  };
  std::multimap<TimeNs, Copy> copies_;  // by their end
  TimeNs host_link_free_ = 0;           // copies share one link, each direction
  HostRuns host_;
  std::map<uint64_t, SpansPtr> finished_;  // for a late Park, newest kMaxFinished
  std::vector<uint32_t> residues_;         // decoding sequences by (length - counter) mod block
  std::vector<uint64_t> gone_;
  uint64_t next_arrival_ = 0;
  uint64_t counter_ = 0, context_ = 0;  // decode steps; tokens of the decoding sequences
  uint32_t decoding_ = 0, pulling_ = 0;
  int64_t own_ = 0;

  Mode mode_ = Mode::kIdle;
  TimeNs boundary_ = 0, wake_ = 0;
  uint64_t planned_steps_ = 0;
  double base_ms_ = 0, slope_ms_ = 0;  // of the steady stretch, noise included
  std::vector<Chunk> chunks_;
  TimeNs next_flush_ = 0;
  uint64_t step_message_ = 0;
  bool load_wanted_ = false;
  WorkerStats stats_;
};

}  // namespace agentserve::sim
