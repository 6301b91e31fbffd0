#include "engine/planner.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"
#include "engine/testing/toy_model.h"

namespace agentserve::engine {
namespace {

struct Rig {
  explicit Rig(uint32_t blocks, uint32_t block_tokens, uint32_t max_batch, uint32_t step_tokens, bool cache = true)
      : memory(blocks, block_tokens), executor(&memory), pool({.num_blocks = blocks, .prefix_cache = cache}) {
    Planner::Options o;
    o.block_tokens = block_tokens;
    o.max_batch = max_batch;
    o.step_tokens = step_tokens;
    o.context_length = blocks * block_tokens;
    o.end_tokens = {kToyEnd};
    planner = std::make_unique<Planner>(o, &pool);
  }
  SequenceSpec Spec(uint64_t id, std::vector<TokenId> tokens, uint32_t max_tokens, int64_t rank = 0) {
    SequenceSpec s;
    s.id = SeqId(id);
    s.prompt_tokens = static_cast<uint32_t>(tokens.size());
    s.tokens = std::move(tokens);
    s.sampling.max_tokens = max_tokens;
    s.sampling.seed = id;
    s.rank = rank;
    return s;
  }
  // Plans and runs one step; finished sequences are removed. False: nothing to run.
  bool Run() {
    planner->AdmitWaiting(~0u);
    const PlannedStep* step = planner->Plan();
    if (!step) return false;
    last_tokens = step->tokens;
    StepOutput out;
    EXPECT_TRUE(executor.Run(step->plan, nullptr, &out).ok());
    if (mid_step) mid_step();
    planner->CheckInvariants();
    std::vector<uint64_t> digests;
    for (const auto& s : step->seals) digests.push_back(memory.Digest(s.block, s.tokens));
    for (const Advance& a : planner->Complete(out, digests)) {
      if (!a.sampled) continue;
      output[a.seq].push_back(a.token.token);
      if (a.finish != FinishReason::kNone) {
        finish[a.seq] = a.finish;
        finish_order.push_back(a.seq);
        planner->Remove(a.seq);
      }
    }
    planner->CheckInvariants();
    return true;
  }
  ToyMemory memory;
  ToyExecutor executor;
  BlockPool pool;
  std::unique_ptr<Planner> planner;
  std::map<SeqId, std::vector<TokenId>> output;
  std::map<SeqId, FinishReason> finish;
  std::vector<SeqId> finish_order;
  std::function<void()> mid_step;
  uint32_t last_tokens = 0;
};

std::vector<TokenId> Prompt(base::SplitMix64* rng, size_t n) {
  std::vector<TokenId> p;
  for (size_t i = 0; i < n; ++i) p.push_back(static_cast<TokenId>(8 + rng->Below(kToyVocab - 8)));
  return p;
}

TEST(Planner, ChunksPromptsUnderTheBudgetBesideDecodes) {
  base::SplitMix64 rng(1);
  Rig rig(64, 4, 8, 16);
  rig.planner->Add(rig.Spec(1, Prompt(&rng, 6), 40), true);
  ASSERT_TRUE(rig.Run());
  EXPECT_EQ(rig.last_tokens, 6u);
  rig.planner->Add(rig.Spec(2, Prompt(&rng, 40), 4), true);
  ASSERT_TRUE(rig.Run());
  EXPECT_EQ(rig.last_tokens, 16u) << "one decode and a chunk of 15";
  EXPECT_EQ(rig.output[SeqId(1)].size(), 2u);
  EXPECT_TRUE(rig.output[SeqId(2)].empty());
  ASSERT_TRUE(rig.Run());
  ASSERT_TRUE(rig.Run());
  EXPECT_EQ(rig.output[SeqId(2)].size(), 1u);
}

TEST(Planner, ReusesPrefixesButComputesTheLastToken) {
  base::SplitMix64 rng(2);
  Rig rig(32, 4, 8, 64);
  const auto prompt = Prompt(&rng, 8);
  rig.planner->Add(rig.Spec(1, prompt, 1), true);
  rig.Run();
  rig.planner->Add(rig.Spec(2, prompt, 1), true);
  rig.Run();
  EXPECT_EQ(rig.last_tokens, 4u) << "the second block is full and known, but holds the last token";
  EXPECT_EQ(rig.planner->stats().prefix_hits, 4u);
  EXPECT_EQ(rig.planner->stats().prefix_queries, 16u);
  auto salted = rig.Spec(3, prompt, 1);
  salted.cache_salt = "other tenant";
  rig.planner->Add(salted, true);
  rig.Run();
  EXPECT_EQ(rig.last_tokens, 8u);
  EXPECT_EQ(rig.executor.bad_reads(), 0u);
}

TEST(Planner, HigherRankThenArrivalGoesFirst) {
  base::SplitMix64 rng(3);
  Rig rig(64, 4, 1, 64);
  rig.planner->Add(rig.Spec(1, Prompt(&rng, 5), 1), true);
  rig.planner->Add(rig.Spec(2, Prompt(&rng, 5), 1), true);
  rig.planner->Add(rig.Spec(3, Prompt(&rng, 5), 1, 5), true);
  rig.planner->Add(rig.Spec(4, Prompt(&rng, 5), 1), true);
  rig.planner->Reorder(SeqId(4), 9);
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.finish_order, (std::vector<SeqId>{SeqId(4), SeqId(3), SeqId(1), SeqId(2)}));
}

TEST(Planner, PreemptsTheNewestLowestAndItsOutputIsUnchanged) {
  base::SplitMix64 rng(4);
  Rig rig(4, 4, 4, 16, /*cache=*/false);
  std::map<uint64_t, std::vector<TokenId>> want;
  for (uint64_t id = 1; id <= 3; ++id) {
    auto prompt = Prompt(&rng, 3);
    want[id] = ToyGenerate(prompt, 3, id, 12, 16);
    rig.planner->Add(rig.Spec(id, prompt, 12), true);
  }
  int steps = 0;
  while (rig.Run()) ASSERT_LT(++steps, 200);
  EXPECT_GT(rig.planner->stats().preemptions, 0u);
  for (auto& [id, tokens] : want) EXPECT_EQ(rig.output[SeqId(id)], tokens) << id;
  EXPECT_EQ(rig.executor.bad_reads(), 0u);
  EXPECT_EQ(rig.pool.free(), 4u);
}

TEST(Planner, StopConditions) {
  SamplingParams s;
  s.max_tokens = 10;
  s.stop_token_ids = {50};
  const std::vector<TokenId> end = {7};
  EXPECT_EQ(StopAfter({7, 20, 1}, s, end, 100), FinishReason::kStop);
  EXPECT_EQ(StopAfter({50, 20, 1}, s, end, 100), FinishReason::kStop);
  EXPECT_EQ(StopAfter({8, 20, 9}, s, end, 100), FinishReason::kNone);
  EXPECT_EQ(StopAfter({8, 20, 10}, s, end, 100), FinishReason::kLength);
  EXPECT_EQ(StopAfter({7, 20, 10}, s, end, 100), FinishReason::kStop);
  EXPECT_EQ(StopAfter({8, 100, 3}, s, end, 100), FinishReason::kLength);
  s.min_tokens = 2;
  EXPECT_EQ(StopAfter({7, 20, 2}, s, end, 100), FinishReason::kNone);
  EXPECT_EQ(StopAfter({7, 20, 3}, s, end, 100), FinishReason::kStop);
  s.min_tokens = 0;
  s.ignore_eos = true;
  EXPECT_EQ(StopAfter({7, 20, 1}, s, end, 100), FinishReason::kNone);
  EXPECT_EQ(StopAfter({50, 20, 1}, s, end, 100), FinishReason::kStop);
}

TEST(Planner, AFailedStepLosesOnlyItsSequences) {
  base::SplitMix64 rng(5);
  Rig rig(16, 4, 1, 64);
  rig.planner->Add(rig.Spec(1, Prompt(&rng, 9), 4), true);
  rig.planner->Add(rig.Spec(2, Prompt(&rng, 9), 4), true);
  rig.planner->AdmitWaiting(~0u);
  ASSERT_NE(rig.planner->Plan(), nullptr);
  EXPECT_EQ(rig.planner->Fail(), std::vector<SeqId>{SeqId(1)});
  rig.planner->Remove(SeqId(1));
  while (rig.Run()) {
  }
  EXPECT_EQ(rig.output.size(), 1u);
  EXPECT_EQ(rig.pool.available(), 16u);
}

// Random arrivals with shared prefixes, cancels and preemptions, also in the middle of steps, in tiny pools: every
// sequence that is not cancelled generates exactly what the plain rules say, and the highest one always gets on.
TEST(PlannerProperty, RandomLoadInTinyPools) {
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    base::SplitMix64 rng(seed);
    const uint32_t block_tokens = static_cast<uint32_t>(1 + rng.Below(5));
    const uint32_t blocks = static_cast<uint32_t>(4 + rng.Below(rng.Below(2) ? 12 : 60));
    const uint32_t batch = static_cast<uint32_t>(1 + rng.Below(6));
    Rig rig(blocks, block_tokens, batch, batch + static_cast<uint32_t>(rng.Below(12)), rng.Below(4) > 0);
    const uint32_t context = blocks * block_tokens;
    std::vector<std::vector<TokenId>> stems;
    for (int i = 0; i < 3; ++i) stems.push_back(Prompt(&rng, rng.Below(context)));
    std::map<SeqId, std::vector<TokenId>> want;
    std::set<SeqId> live;
    uint64_t next_id = 1;
    const auto disturb = [&] {
      if (live.empty() || rng.Below(5) > 0) return;
      auto it = live.begin();
      std::advance(it, static_cast<long>(rng.Below(live.size())));
      if (rng.Below(2)) {
        rig.planner->Preempt(*it);
      } else {
        rig.planner->Remove(*it);
        want.erase(*it);
        live.erase(it);
      }
    };
    rig.mid_step = disturb;
    int idle = 0;
    for (int turn = 0; turn < 3000; ++turn) {
      if (turn < 150 && rng.Below(3) == 0) {
        auto prompt = stems[rng.Below(stems.size())];
        for (TokenId t : Prompt(&rng, rng.Below(4))) prompt.push_back(t);
        const uint32_t max_tokens = static_cast<uint32_t>(1 + rng.Below(20));
        if (rig.planner->CanFit(prompt.size())) {
          const uint64_t id = next_id++;
          want[SeqId(id)] = ToyGenerate(prompt, static_cast<uint32_t>(prompt.size()), id, max_tokens, context);
          live.insert(SeqId(id));
          rig.planner->Add(rig.Spec(id, prompt, max_tokens, static_cast<int64_t>(rng.Below(3))), true);
        }
      }
      if (turn < 150) disturb();
      if (turn == 150) rig.mid_step = nullptr;
      const bool ran = rig.Run();
      for (SeqId id : rig.finish_order) live.erase(id);
      if (turn > 150 && live.empty()) break;
      idle = ran ? 0 : idle + 1;
      ASSERT_TRUE(idle < 3 || live.empty()) << "stuck, seed " << seed;
    }
    ASSERT_TRUE(live.empty()) << "not all finished, seed " << seed;
    ASSERT_EQ(rig.executor.bad_reads(), 0u) << "seed " << seed;
    for (auto& [id, tokens] : want) ASSERT_EQ(rig.output[id], tokens) << "sequence " << id << " seed " << seed;
    ASSERT_EQ(rig.pool.available(), blocks) << "seed " << seed;
  }
}

}  // namespace
}  // namespace agentserve::engine
