#include "worker/threaded_executor.h"

#include <gtest/gtest.h>

#include "engine/planner.h"
#include "engine/testing/toy_model.h"

namespace agentserve::worker {
namespace {

using engine::SeqId;
using engine::TokenId;

// Fails the n-th step.
class Failing final : public engine::Executor {
 public:
  Failing(engine::ToyMemory* memory, int n) : model_(memory), left_(n) {}
  absl::Status Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) override {
    if (--left_ == 0) return absl::UnavailableError("the n-th step");
    return model_.Run(plan, observer, out);
  }

 private:
  engine::ToyExecutor model_;
  int left_;
};

struct Rig {
  explicit Rig(int fail_at)
      : memory(64, 4),
        executor(std::make_unique<Failing>(&memory, fail_at)),
        pool({.num_blocks = 64, .prefix_cache = true}),
        planner(Options(), &pool) {}
  static engine::Planner::Options Options() {
    engine::Planner::Options o;
    o.block_tokens = 4;
    o.step_tokens = 64;
    o.context_length = 200;
    o.end_tokens = {engine::kToyEnd};
    return o;
  }
  void Add(uint64_t id) {
    engine::SequenceSpec s;
    s.id = SeqId(id);
    for (uint32_t i = 0; i < 9; ++i) s.tokens.push_back(10 + i);
    s.prompt_tokens = 9;
    s.sampling.max_tokens = 30;
    s.sampling.seed = id;
    prompt = s.tokens;
    planner.Add(std::move(s), true);
  }
  const engine::PlannedStep* Launch() {
    planner.AdmitWaiting(~0u);
    const engine::PlannedStep* step = planner.Plan();
    if (step != nullptr) {
      EXPECT_TRUE(executor.Launch(step->plan).ok());
    }
    return step;
  }
  engine::ToyMemory memory;
  ThreadedExecutor executor;
  engine::BlockPool pool;
  engine::Planner planner;
  std::vector<TokenId> prompt;
};

TEST(ThreadedExecutor, TwoStepsInFlightGiveThePlainTokens) {
  Rig rig(-1);
  rig.Add(3);
  std::vector<TokenId> got;
  std::deque<const engine::PlannedStep*> steps;
  for (;;) {
    while (steps.size() < 2) {
      const engine::PlannedStep* step = rig.Launch();
      if (step == nullptr) break;
      steps.push_back(step);
    }
    if (steps.empty()) break;
    engine::StepOutput out;
    ASSERT_TRUE(rig.executor.Wait(&out).ok());
    std::vector<uint64_t> digests;
    for (const auto& s : steps.front()->seals) digests.push_back(rig.memory.Digest(s.block, s.tokens));
    steps.pop_front();
    for (const engine::Advance& a : rig.planner.Complete(out, digests)) {
      if (a.sampled) got.push_back(a.token.token);
      if (a.finish != engine::FinishReason::kNone) rig.planner.Remove(a.seq);
    }
  }
  EXPECT_EQ(got, engine::ToyGenerate(rig.prompt, 9, 3, 30, 200));
}

TEST(ThreadedExecutor, AFailedStepTakesTheLaterOneWithIt) {
  Rig rig(1);
  rig.Add(1);
  ASSERT_NE(rig.Launch(), nullptr);
  ASSERT_NE(rig.Launch(), nullptr);
  engine::StepOutput out;
  EXPECT_EQ(rig.executor.Wait(&out).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(rig.executor.Wait(&out).code(), absl::StatusCode::kFailedPrecondition) << "nothing is in flight now";
  EXPECT_EQ(rig.planner.Fail(), std::vector<SeqId>{SeqId(1)});
  rig.planner.Remove(SeqId(1));
  rig.Add(2);
  ASSERT_NE(rig.Launch(), nullptr);
  EXPECT_TRUE(rig.executor.Wait(&out).ok());
  EXPECT_EQ(out.tokens.size(), 1u);
}

}  // namespace
}  // namespace agentserve::worker
