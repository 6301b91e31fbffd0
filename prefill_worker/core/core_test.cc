// Scripts of single situations; tests/workers/cores_test.cc has the random ones.
#include "prefill_worker/core/core.h"

#include <gtest/gtest.h>

#include "engine/testing/toy_model.h"

namespace agentserve::prefill_worker {
namespace {

using engine::SeqId;

struct Rig {
  explicit Rig(Options o = {}) : memory(8, 4), executor(&memory), core(Fill(o)) {}
  static Options Fill(Options o) {
    o.pool = {8, true};
    o.planner.block_tokens = 4;
    o.planner.max_batch = 4;
    o.planner.step_tokens = 8;
    o.planner.context_length = 33;
    o.vocab_size = engine::kToyVocab;
    return o;
  }
  void Begin(uint64_t id, uint32_t tokens, base::TimeNs budget = 1'000'000, int64_t rank = 0) {
    Start s;
    s.spec.id = SeqId(id);
    for (uint32_t i = 0; i < tokens; ++i) s.spec.tokens.push_back(static_cast<uint32_t>((id * 11 + i) % 90));
    s.spec.prompt_tokens = tokens;
    s.spec.sampling.max_tokens = 5;
    s.spec.rank = rank;
    s.budget_ns = budget;
    Do(s);
  }
  void Do(const Event& e) {
    core.Step(e, now);
    for (Effect& effect : core.TakeEffects()) seen.push_back(Describe(effect));
    core.CheckInvariants();
  }
  bool Run() {
    const engine::PlannedStep* step = core.PlanStep(now);
    if (!step) return false;
    StepDone done;
    EXPECT_TRUE(executor.Run(step->plan, nullptr, &done.output).ok());
    for (const auto& s : step->seals) done.digests.push_back(memory.Digest(s.block, s.tokens));
    Do(done);
    return true;
  }
  static std::string Describe(const Effect& effect) {
    struct V {
      std::string operator()(const Admitted& e) { return "admitted " + std::to_string(e.seq.value); }
      std::string operator()(const ChunkDone& e) {
        return "chunk " + std::to_string(e.seq.value) + " " + std::to_string(e.computed);
      }
      std::string operator()(const FirstToken& e) {
        for (const OfferedBlock& b : e.blocks) EXPECT_NE(b.digest, 0u);
        return "first " + std::to_string(e.seq.value) + " blocks " + std::to_string(e.blocks.size());
      }
      std::string operator()(const Failed& e) {
        return "failed " + std::to_string(e.seq.value) + " " + e.failure.reason;
      }
      std::string operator()(const Closed& e) { return "closed " + std::to_string(e.seq.value); }
      std::string operator()(const engine::HostCopy& e) { return "host copy " + std::to_string(e.job); }
    };
    return std::visit(V{}, effect);
  }
  std::vector<std::string> Seen() { return std::exchange(seen, {}); }
  using Trace = std::vector<std::string>;

  base::TimeNs now = 1;
  engine::ToyMemory memory;
  engine::ToyExecutor executor;
  Core core;
  std::vector<std::string> seen;
};

TEST(PrefillCore, ChunksHoldsAndReleases) {
  Rig rig;
  rig.Begin(1, 13);
  EXPECT_EQ(rig.Seen(), Rig::Trace{"admitted 1"});
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"chunk 1 8", "chunk 1 13", "first 1 blocks 4"}));
  EXPECT_EQ(rig.core.pool().held(), 4u);
  rig.Do(ReleaseKv{SeqId(1)});
  EXPECT_EQ(rig.Seen(), Rig::Trace{"closed 1"});
  EXPECT_EQ(rig.core.pool().cached(), 3u) << "full blocks stay for reuse, the partial one does not";
  rig.Do(ReleaseKv{SeqId(1)});
  EXPECT_TRUE(rig.Seen().empty()) << "a repeat changes nothing";
}

TEST(PrefillCore, AHoldExpires) {
  Options o;
  o.hold_ns = 100;
  Rig rig(o);
  rig.Begin(1, 4);
  rig.Run();
  rig.Seen();
  EXPECT_EQ(rig.core.NextDeadline(), 101);
  rig.now = 101;
  rig.Do(Tick{});
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"failed 1 HOLD_EXPIRED", "closed 1"}));
  EXPECT_EQ(rig.core.pool().available(), 8u);
}

TEST(PrefillCore, ABudgetEndsWaitingAndRunningPrompts) {
  Rig rig;
  rig.Begin(1, 30, 50);
  rig.Begin(2, 30, 50);
  rig.Begin(3, 4, 0);
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"admitted 1", "failed 3 DEADLINE", "closed 3"}));
  const engine::PlannedStep* step = rig.core.PlanStep(rig.now);
  ASSERT_NE(step, nullptr);
  rig.now = 60;
  rig.Do(Tick{});  // in the middle of a step: the blocks come back when it ends
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"failed 1 DEADLINE", "closed 1", "failed 2 DEADLINE", "closed 2"}));
  EXPECT_LT(rig.core.pool().available(), 8u);
  StepDone done;
  ASSERT_TRUE(rig.executor.Run(step->plan, nullptr, &done.output).ok());
  for (const auto& s : step->seals) done.digests.push_back(rig.memory.Digest(s.block, s.tokens));
  rig.Do(done);
  EXPECT_TRUE(rig.Seen().empty());
  EXPECT_EQ(rig.core.pool().available(), 8u);
}

TEST(PrefillCore, RefusesWhatItCannotServe) {
  Options o;
  o.queue.max_waiting = 1;
  Rig rig(o);
  rig.Begin(1, 33);
  rig.Begin(2, 32);
  rig.Begin(3, 32);
  rig.Begin(4, 32);
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"failed 1 TOO_LONG", "closed 1", "admitted 2", "failed 4 QUEUE_FULL", "closed 4"}));
}

TEST(PrefillCore, ReordersTheQueue) {
  Rig rig;
  rig.Begin(1, 32);
  rig.Begin(2, 20);
  rig.Begin(3, 20);
  rig.Do(Reorder{SeqId(3), 7});
  rig.Do(Cancel{SeqId(1)});
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"admitted 1", "closed 1", "admitted 3"}));
}

TEST(PrefillCore, AFailedStepEndsItsSequences) {
  Rig rig;
  rig.Begin(1, 8);
  ASSERT_NE(rig.core.PlanStep(rig.now), nullptr);
  rig.Do(StepDone{absl::UnavailableError("no"), {}, {}});
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"admitted 1", "failed 1 EXECUTOR", "closed 1"}));
  EXPECT_EQ(rig.core.pool().free(), 8u) << "what was written is not trusted";
}

TEST(PrefillCore, OffersAreBounded) {
  Options o;
  o.max_offers = 1;
  Rig rig(o);
  rig.Begin(1, 4);
  rig.Begin(2, 4);
  rig.Run();
  EXPECT_FALSE(rig.Run());
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"admitted 1", "chunk 1 4", "first 1 blocks 1"}));
  rig.Do(ReleaseKv{SeqId(1)});
  EXPECT_EQ(rig.Seen(), (Rig::Trace{"closed 1", "admitted 2"}));
}

}  // namespace
}  // namespace agentserve::prefill_worker
