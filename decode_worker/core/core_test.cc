// Scripts of single situations; tests/workers/cores_test.cc has the random ones.
#include "decode_worker/core/core.h"

#include <gtest/gtest.h>

#include "engine/block_hash.h"
#include "engine/testing/toy_model.h"

namespace agentserve::decode_worker {
namespace {

using engine::SeqId;
using engine::TokenId;
using Trace = std::vector<std::string>;

struct Rig {
  explicit Rig(uint32_t blocks = 8) : memory(blocks, 4), executor(&memory), core(Fill(blocks)) {}
  static Options Fill(uint32_t blocks) {
    Options o;
    o.pool = {blocks, true};
    o.planner.block_tokens = 4;
    o.planner.max_batch = 4;
    o.planner.step_tokens = 32;
    o.planner.context_length = blocks * 4;
    o.vocab_size = engine::kToyVocab;
    return o;
  }
  std::vector<TokenId> Prompt(uint64_t id, uint32_t n) {
    std::vector<TokenId> tokens;
    for (uint32_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>((id * 11 + i) % 90));
    return tokens;
  }
  void Begin(uint64_t id, uint32_t tokens, uint32_t max_tokens = 3, base::TimeNs budget = 1'000'000) {
    Reserve r;
    r.spec.id = SeqId(id);
    r.spec.tokens = Prompt(id, tokens);
    r.spec.prompt_tokens = tokens;
    r.spec.sampling.max_tokens = max_tokens;
    r.budget_ns = budget;
    Do(r);
  }
  void Do(const Event& e) {
    core.Step(e, now);
    Collect();
  }
  void Collect() {
    for (Effect& effect : core.TakeEffects()) {
      if (auto* pull = std::get_if<StartPull>(&effect)) last_pull = *pull;
      seen.push_back(Describe(effect));
    }
    core.CheckInvariants();
  }
  bool Run() {
    const engine::PlannedStep* step = core.PlanStep(now);
    Collect();
    if (!step) return false;
    StepDone done;
    EXPECT_TRUE(executor.Run(step->plan, nullptr, &done.output).ok());
    for (const auto& s : step->seals) done.digests.push_back(memory.Digest(s.block, s.tokens));
    Do(done);
    return true;
  }
  // What a prefill worker would offer: right rows, copied by hand.
  RemoteKv Remote(uint32_t blocks) {
    RemoteKv kv;
    for (uint32_t i = 0; i < blocks; ++i) kv.blocks.push_back({i, 1, 4, 99 + i});
    return kv;
  }
  void CopyAll(const std::vector<TokenId>& tokens) {
    for (uint32_t p = 0; p < tokens.size(); ++p) {
      memory.At(last_pull.blocks, p) = engine::ToyState(std::span(tokens).first(p + 1));
    }
  }
  static std::string Describe(const Effect& effect) {
    struct V {
      std::string N(SeqId s) { return " " + std::to_string(s.value); }
      std::string operator()(const Reserved& e) { return "reserved" + N(e.seq); }
      std::string operator()(const StartPull& e) { return "pull" + N(e.seq) + " from " + std::to_string(e.first); }
      std::string operator()(const FinishPull& e) { return "finish" + N(e.seq); }
      std::string operator()(const AbortPull& e) { return "abort" + N(e.seq); }
      std::string operator()(const HostCopy& e) {
        return std::string(e.to_host ? "store " : "load ") + std::to_string(e.blocks.size());
      }
      std::string operator()(const KvReady& e) { return "ready" + N(e.seq) + " " + e.transport; }
      std::string operator()(const StepTokens& e) { return "tokens " + std::to_string(e.tokens.size()); }
      std::string operator()(const Finished& e) { return "finished" + N(e.seq); }
      std::string operator()(const Failed& e) { return "failed" + N(e.seq) + " " + e.failure.reason; }
      std::string operator()(const Closed& e) { return "closed" + N(e.seq); }
    };
    return std::visit(V{}, effect);
  }
  Trace Seen() { return std::exchange(seen, {}); }

  base::TimeNs now = 1;
  engine::ToyMemory memory;
  engine::ToyExecutor executor;
  Core core;
  StartPull last_pull;
  Trace seen;
};

TEST(DecodeCore, LocalPrefillRunsToTheEnd) {
  Rig rig;
  rig.Begin(1, 6);
  rig.Do(PrefillLocal{SeqId(1)});
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.Seen(), (Trace{"reserved 1", "tokens 1", "tokens 1", "tokens 1", "finished 1", "closed 1"}));
  EXPECT_EQ(rig.executor.bad_reads(), 0u);
}

TEST(DecodeCore, APulledPromptJoinsTheNextStep) {
  Rig rig;
  rig.Begin(1, 6);
  rig.Do(Attach{SeqId(1), rig.Remote(2)});
  EXPECT_FALSE(rig.Run());
  rig.Do(Admit{SeqId(1), 40, rig.Remote(2)});
  EXPECT_EQ(rig.Seen(), (Trace{"reserved 1", "pull 1 from 0", "finish 1"}));
  rig.CopyAll(rig.Prompt(1, 6));
  rig.Do(PullEnded{SeqId(1), PullOutcome::kOk, "mapped", 10, 5});
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.Seen(), (Trace{"ready 1 mapped", "tokens 1", "tokens 1", "finished 1", "closed 1"}));
  EXPECT_EQ(rig.executor.bad_reads(), 0u);
  EXPECT_EQ(rig.executor.tokens_run(), 2u) << "nothing of the prompt was computed here";
}

TEST(DecodeCore, AnInvalidCopyIsRecomputed) {
  Rig rig;
  rig.Begin(1, 6);
  rig.Do(Admit{SeqId(1), 40, rig.Remote(2)});
  rig.Do(PullEnded{SeqId(1), PullOutcome::kInvalid, "mapped", 10, 5});
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.Seen(), (Trace{"reserved 1", "pull 1 from 0", "finish 1", "ready 1 recompute", "tokens 1", "tokens 1",
                               "finished 1", "closed 1"}));
  EXPECT_EQ(rig.executor.bad_reads(), 0u);
  EXPECT_EQ(rig.core.core_stats().pulls_invalid, 1u);
}

TEST(DecodeCore, BlocksUnderAPullAreNotGivenAwayUntilItEnded) {
  Rig rig(4);
  rig.Begin(1, 15);
  rig.Do(Attach{SeqId(1), rig.Remote(4)});
  rig.Do(Cancel{SeqId(1)});
  EXPECT_EQ(rig.Seen(), (Trace{"reserved 1", "pull 1 from 0", "abort 1", "closed 1"}));
  EXPECT_EQ(rig.core.pool().available(), 0u);
  rig.Begin(2, 8);
  EXPECT_TRUE(rig.Seen().empty()) << "no room yet";
  rig.Do(PullEnded{SeqId(1), PullOutcome::kAborted, "", 0, 0});
  EXPECT_EQ(rig.Seen(), Trace{"reserved 2"});
  rig.Do(PullEnded{SeqId(1), PullOutcome::kAborted, "", 0, 0});
  EXPECT_EQ(rig.core.pulling(), 0u) << "a repeat changes nothing";
}

TEST(DecodeCore, PrefillLocalReplacesAPull) {
  Rig rig;
  rig.Begin(1, 6);
  rig.Do(Attach{SeqId(1), rig.Remote(2)});
  rig.Do(PrefillLocal{SeqId(1)});
  EXPECT_FALSE(rig.Run());
  rig.Do(PullEnded{SeqId(1), PullOutcome::kAborted, "", 0, 0});
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.Seen().back(), "closed 1");
  EXPECT_EQ(rig.executor.bad_reads(), 0u);
}

TEST(DecodeCore, AFirstTokenThatEndsTheSequence) {
  Rig rig;
  rig.Begin(1, 6, /*max_tokens=*/1);
  rig.Do(Admit{SeqId(1), 40, rig.Remote(2)});
  rig.Do(PullEnded{SeqId(1), PullOutcome::kOk, "mapped", 10, 5});
  EXPECT_EQ(rig.Seen(), (Trace{"reserved 1", "pull 1 from 0", "finish 1", "ready 1 mapped", "finished 1", "closed 1"}));
  EXPECT_FALSE(rig.Run());
}

TEST(DecodeCore, ParkKeepsBlocksAfterTheEnd) {
  Rig rig(8);
  rig.Begin(1, 9, 1);
  rig.Do(PrefillLocal{SeqId(1)});
  while (rig.Run()) {
  }
  rig.Do(Retain{SeqId(1), {engine::KeepWhere::kDevice, 500}});  // the router parks after it saw the end
  EXPECT_EQ(rig.core.pool().pinned(), 2u);
  rig.Begin(2, 22, 1);
  rig.Do(PrefillLocal{SeqId(2)});
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.core.pool().pinned(), 2u);
  rig.now = 502;
  rig.Do(Tick{});
  EXPECT_EQ(rig.core.pool().pinned(), 0u);
}

TEST(DecodeCore, DeadlinesAndRefusals) {
  Rig rig;
  rig.Begin(1, 32);
  rig.Begin(2, 6, 3, 40);
  rig.Do(PrefillLocal{SeqId(2)});
  rig.Run();
  rig.now = 41;
  rig.Do(Tick{});
  EXPECT_EQ(rig.Seen(),
            (Trace{"failed 1 TOO_LONG", "closed 1", "reserved 2", "tokens 1", "failed 2 DEADLINE", "closed 2"}));
  EXPECT_EQ(rig.core.pool().available(), 8u);
}

TEST(DecodeCore, CommandsForUnknownSequencesAreIgnored) {
  Rig rig;
  const SeqId ghost(9);
  for (const Event& e :
       std::vector<Event>{Attach{ghost, {}}, Admit{ghost, 1, {}}, PrefillLocal{ghost}, Preempt{ghost}, Cancel{ghost},
                          Retain{ghost, {engine::KeepWhere::kHost, 5}}, Prefetch{ghost, 5}, CopyEnded{7, 0},
                          PullEnded{ghost, PullOutcome::kFailed, "", 0, 0}}) {
    rig.Do(e);
  }
  EXPECT_TRUE(rig.Seen().empty());
}

}  // namespace
}  // namespace agentserve::decode_worker
