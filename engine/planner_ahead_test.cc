// Planning ahead: two steps in flight give each sequence the tokens that one step at a time gives it.
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <set>

#include "base/rng.h"
#include "engine/planner.h"
#include "engine/testing/toy_model.h"
#include "engine/testing/toy_pipeline.h"

namespace agentserve::engine {
namespace {

struct Shape {
  uint32_t blocks = 64, block_tokens = 4, max_batch = 8, step_tokens = 16;
  bool cache = true;
};

struct Rig {
  explicit Rig(const Shape& s)
      : memory(s.blocks, s.block_tokens),
        model(&memory),
        executor(&model),
        pool({.num_blocks = s.blocks, .prefix_cache = s.cache}),
        planner(Fill(s), &pool) {}
  static Planner::Options Fill(const Shape& s) {
    Planner::Options o;
    o.block_tokens = s.block_tokens;
    o.max_batch = s.max_batch;
    o.step_tokens = s.step_tokens;
    o.context_length = s.blocks * s.block_tokens;
    o.end_tokens = {kToyEnd};
    return o;
  }
  void Add(uint64_t id, std::vector<TokenId> tokens, uint32_t max_tokens, int64_t rank = 0, bool history = false) {
    SequenceSpec s;
    s.id = SeqId(id);
    s.prompt_tokens = static_cast<uint32_t>(tokens.size());
    s.tokens = std::move(tokens);
    s.sampling.max_tokens = max_tokens;
    s.sampling.seed = id;
    s.sampling.repetition_penalty = history ? 1.5f : 1.0f;  // the toy model does not care
    s.rank = rank;
    planner.Add(std::move(s), true);
  }
  // Plans and launches one step. False: nothing to run.
  bool Launch() {
    planner.AdmitWaiting(~0u);
    const PlannedStep* step = planner.Plan();
    planner.CheckInvariants();
    if (step == nullptr) return false;
    EXPECT_TRUE(executor.Launch(step->plan).ok());
    for (const SeqSlice& slice : step->plan.slices) ahead += slice.input_pending;
    launched.push_back(step);
    return true;
  }
  // Waits for the oldest step; finished sequences are removed. False: it failed.
  bool Finish() {
    StepOutput out;
    const absl::Status status = executor.Wait(&out);
    if (!status.ok()) {
      launched.clear();
      for (SeqId id : planner.Fail()) {
        failed.insert(id);
        planner.Remove(id);
      }
      planner.CheckInvariants();
      return false;
    }
    std::vector<uint64_t> digests;
    for (const auto& s : launched.front()->seals) digests.push_back(memory.Digest(s.block, s.tokens));
    launched.pop_front();
    for (const Advance& a : planner.Complete(out, digests)) {
      if (!a.sampled) continue;
      output[a.seq].push_back(a.token.token);
      if (a.finish == FinishReason::kNone) continue;
      over.insert(a.seq);
      planner.Remove(a.seq);
    }
    planner.CheckInvariants();
    return true;
  }
  // Runs everything to the end.
  void Drain() {
    for (;;) {
      while (launched.size() < Planner::kMaxInFlight && Launch()) {
      }
      if (launched.empty()) return;
      Finish();
    }
  }

  ToyMemory memory;
  ToyExecutor model;
  ToyPipeline executor;
  BlockPool pool;
  Planner planner;
  std::deque<const PlannedStep*> launched;
  std::map<SeqId, std::vector<TokenId>> output;
  std::set<SeqId> over, failed;
  uint64_t ahead = 0;
};

std::vector<TokenId> Prompt(base::SplitMix64* rng, size_t n) {
  std::vector<TokenId> p;
  for (size_t i = 0; i < n; ++i) p.push_back(static_cast<TokenId>(8 + rng->Below(kToyVocab - 8)));
  return p;
}

TEST(PlanAhead, ChunksAndDecodesContinueAndNewcomersJoin) {
  base::SplitMix64 rng(1);
  Rig rig({});
  const auto one = Prompt(&rng, 6), two = Prompt(&rng, 40);
  rig.Add(1, one, 40);
  ASSERT_TRUE(rig.Launch());
  rig.Add(2, two, 3);
  ASSERT_TRUE(rig.Launch());
  const StepPlan& second = rig.launched[1]->plan;
  ASSERT_EQ(second.slices.size(), 2u);
  EXPECT_TRUE(second.slices[0].input_pending);
  EXPECT_EQ(second.slices[0].start, 6u);
  EXPECT_FALSE(second.slices[1].input_pending);
  EXPECT_EQ(second.slices[1].tokens.size(), 15u);
  ASSERT_TRUE(rig.Finish());
  ASSERT_TRUE(rig.Launch());
  EXPECT_EQ(rig.launched[1]->plan.slices[1].start, 15u) << "the next chunk, while the first one runs";
  rig.Drain();
  EXPECT_EQ(rig.output[SeqId(1)], ToyGenerate(one, 6, 1, 40, 256));
  EXPECT_EQ(rig.output[SeqId(2)], ToyGenerate(two, 40, 2, 3, 256));
  EXPECT_EQ(rig.model.bad_reads(), 0u);
  EXPECT_EQ(rig.pool.available(), 64u);
}

TEST(PlanAhead, NothingIsRunForATokenThatCannotBeWanted) {
  base::SplitMix64 rng(2);
  Rig rig({.blocks = 3});
  rig.Add(1, Prompt(&rng, 4), 1);  // the first token is the last one
  rig.Add(2, Prompt(&rng, 4), 9, 0, /*history=*/true);
  ASSERT_TRUE(rig.Launch());
  EXPECT_FALSE(rig.Launch());
  EXPECT_EQ(rig.planner.in_flight(), 1u);
  rig.Drain();
  EXPECT_EQ(rig.ahead, 0u);
  rig.Add(3, Prompt(&rng, 11), 9);  // the context ends with the next token
  ASSERT_TRUE(rig.Launch());
  EXPECT_FALSE(rig.Launch());
}

TEST(PlanAhead, ASequenceThatEndsGivesItsBlocksBackAfterTheLaterStep) {
  base::SplitMix64 rng(3);
  Rig rig({.blocks = 8});
  uint64_t id = 1;  // a sequence whose first token is the end token
  const auto prompt = Prompt(&rng, 7);
  while (ToyNext(ToyState(prompt), id) != kToyEnd) ++id;
  rig.Add(id, prompt, 5);
  ASSERT_TRUE(rig.Launch());
  ASSERT_TRUE(rig.Launch());
  ASSERT_TRUE(rig.Finish());
  EXPECT_TRUE(rig.over.contains(SeqId(id)));
  EXPECT_EQ(rig.pool.free(), 6u) << "the later step still writes them";
  ASSERT_TRUE(rig.Finish());
  EXPECT_EQ(rig.output[SeqId(id)].size(), 1u);
  EXPECT_EQ(rig.pool.available(), 8u);
  EXPECT_EQ(rig.pool.cached(), 2u) << "the block that the later step filled is named too: its tokens are known";
  EXPECT_EQ(rig.planner.Find(SeqId(id)), nullptr);
}

TEST(PlanAhead, ACancelledGuessLeavesNoNamedBlock) {
  base::SplitMix64 rng(4);
  Rig rig({.blocks = 8});
  rig.Add(1, Prompt(&rng, 7), 5);
  ASSERT_TRUE(rig.Launch());
  ASSERT_TRUE(rig.Launch());
  rig.planner.Remove(SeqId(1));
  ASSERT_TRUE(rig.Finish());
  ASSERT_TRUE(rig.Finish());
  EXPECT_TRUE(rig.output.empty());
  EXPECT_EQ(rig.pool.cached(), 1u) << "the second block holds a token that nobody learned";
  EXPECT_EQ(rig.pool.available(), 8u);
}

TEST(PlanAhead, AFailedStepTakesOnlyItsOwnSequences) {
  base::SplitMix64 rng(5);
  Rig rig({});
  const auto two = Prompt(&rng, 9);
  rig.Add(1, Prompt(&rng, 9), 6);
  ASSERT_TRUE(rig.Launch());
  rig.Add(2, two, 6);
  ASSERT_TRUE(rig.Launch());
  rig.executor.FailNext();
  EXPECT_FALSE(rig.Finish());
  EXPECT_EQ(rig.planner.in_flight(), 0u);
  EXPECT_EQ(rig.failed, std::set<SeqId>{SeqId(1)});
  rig.Drain();
  EXPECT_EQ(rig.output[SeqId(2)], ToyGenerate(two, 9, 2, 6, 256));
  EXPECT_EQ(rig.model.bad_reads(), 0u);
  EXPECT_EQ(rig.pool.available(), 64u);
}

// What one random schedule did.
struct Totals {
  uint64_t ahead = 0, cancelled = 0, preemptions = 0, failed = 0, hits = 0;
};

struct Load {
  std::map<SeqId, std::vector<TokenId>> want;
  std::set<SeqId> live;
  uint64_t next_id = 1;
};

void Disturb(base::SplitMix64* rng, Rig* rig, Load* load, Totals* totals) {
  for (SeqId id : rig->over) load->live.erase(id);
  for (SeqId id : rig->failed) {
    totals->failed += load->want.erase(id);
    load->live.erase(id);
  }
  if (load->live.empty() || rng->Below(6) > 0) return;
  auto it = load->live.begin();
  std::advance(it, static_cast<long>(rng->Below(load->live.size())));
  if (rng->Below(2)) {
    rig->planner.Preempt(*it);
  } else {
    rig->planner.Remove(*it);
    load->want.erase(*it);
    load->live.erase(it);
    ++totals->cancelled;
  }
  rig->planner.CheckInvariants();
}

void RunSeed(uint64_t seed, Totals* totals) {
  base::SplitMix64 rng(seed);
  Shape shape;
  shape.block_tokens = static_cast<uint32_t>(1 + rng.Below(5));
  shape.blocks = static_cast<uint32_t>(4 + rng.Below(rng.Below(2) ? 12 : 60));
  shape.max_batch = static_cast<uint32_t>(1 + rng.Below(6));
  shape.step_tokens = shape.max_batch + static_cast<uint32_t>(rng.Below(12));
  shape.cache = rng.Below(4) > 0;
  Rig rig(shape);
  const bool failures = rng.Below(3) == 0;
  const uint32_t context = shape.blocks * shape.block_tokens;
  std::vector<std::vector<TokenId>> stems;
  for (int i = 0; i < 3; ++i) stems.push_back(Prompt(&rng, rng.Below(context)));
  Load load;
  int idle = 0;
  for (int turn = 0; turn < 6000; ++turn) {
    const bool busy = turn < 300;
    if (busy && rng.Below(4) == 0) {
      auto prompt = stems[rng.Below(stems.size())];
      for (TokenId t : Prompt(&rng, rng.Below(4))) prompt.push_back(t);
      const uint32_t max_tokens = static_cast<uint32_t>(1 + rng.Below(20));
      if (rig.planner.CanFit(prompt.size())) {
        const uint64_t id = load.next_id++;
        load.want[SeqId(id)] = ToyGenerate(prompt, static_cast<uint32_t>(prompt.size()), id, max_tokens, context);
        load.live.insert(SeqId(id));
        rig.Add(id, prompt, max_tokens, static_cast<int64_t>(rng.Below(3)), rng.Below(4) == 0);
      }
    }
    if (busy) Disturb(&rng, &rig, &load, totals);
    if (busy && failures && rng.Below(40) == 0) rig.executor.FailNext();
    // Any order of launching, running and waiting.
    bool moved = false;
    if (rng.Below(2) && rig.launched.size() < Planner::kMaxInFlight) moved = rig.Launch();
    if (rng.Below(2)) rig.executor.RunOne();
    if (!rig.launched.empty() && (!moved || rng.Below(2))) moved = true, rig.Finish();
    if (!moved && rig.launched.empty()) moved = rig.Launch();
    Disturb(&rng, &rig, &load, totals);
    if (!busy && load.live.empty() && rig.launched.empty()) break;
    idle = moved ? 0 : idle + 1;
    ASSERT_TRUE(idle < 5 || load.live.empty()) << "stuck, seed " << seed;
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
  ASSERT_TRUE(load.live.empty()) << "not all finished, seed " << seed;
  ASSERT_EQ(rig.model.bad_reads(), 0u) << "seed " << seed;
  ASSERT_EQ(rig.executor.orphans(), 0u) << "seed " << seed;
  for (auto& [id, tokens] : load.want) ASSERT_EQ(rig.output[id], tokens) << "sequence " << id << " seed " << seed;
  ASSERT_EQ(rig.pool.available(), shape.blocks) << "seed " << seed;
  totals->ahead += rig.ahead;
  totals->preemptions += rig.planner.stats().preemptions;
  totals->hits += rig.planner.stats().prefix_hits;
}

// Random arrivals with shared prefixes, cancels, preemptions and failing steps, in tiny pools, with launches, runs and
// waits in any order. Reused blocks are checked row by row, so a block with a wrong name shows.
TEST(PlanAheadProperty, RandomSchedulesGiveThePlainTokens) {
  Totals totals;
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    RunSeed(seed, &totals);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  }
  // Each path must really have been taken.
  EXPECT_GT(totals.ahead, 5000u);
  EXPECT_GT(totals.cancelled, 500u);
  EXPECT_GT(totals.preemptions, 500u);
  EXPECT_GT(totals.failed, 100u);
  EXPECT_GT(totals.hits, 1000u);
}

}  // namespace
}  // namespace agentserve::engine
