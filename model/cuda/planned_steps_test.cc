// Planner and GPU executor together: steps planned ahead of their input tokens give the tokens that one step at a time
// gives, over arrivals, chunks, prefix reuse, preemption and cancels. The batch-invariant mode makes that exact.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/planner.h"
#include "model/cuda/cuda_model.h"
#include "model/random_model.h"
#include "model/test_util.h"

namespace agentserve::model::cuda {
namespace {

using engine::SeqId;
using engine::TokenId;

using Tokens = std::map<SeqId, std::vector<TokenId>>;

struct Load {
  uint64_t seed = 1;
  uint32_t blocks = 200, max_batch = 8, sequences = 24;
  bool cancels = false;
};

struct Outcome {
  Tokens tokens;
  uint64_t ahead = 0, preemptions = 0, hits = 0;
  double ms = 0;
  std::set<SeqId> cancelled;
};

class Runner {
 public:
  Runner(CudaModel& model, const Load& load, size_t depth)
      : load_(load), depth_(depth), rng_(load.seed), pool_({.num_blocks = load.blocks, .prefix_cache = true}) {
    const engine::KvLayout layout = model.layout(16);
    auto memory = model.AllocateKv(layout.BlockBytes() * load.blocks);
    EXPECT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    auto executor = model.CreateCudaExecutor({memory_.get(), load.blocks, layout});
    EXPECT_TRUE(executor.ok()) << executor.status();
    executor_ = *std::move(executor);
    engine::Planner::Options o;
    o.max_batch = load.max_batch;
    o.step_tokens = 96;
    o.context_length = std::min(model.config().max_position, load.blocks * 16);
    o.end_tokens = {1, 2, 3, 4, 5, 6, 7};
    planner_ = std::make_unique<engine::Planner>(o, &pool_);
    vocab_ = model.config().vocab_size;
  }

  Outcome Run() {
    const base::MonotonicClock clock;
    const base::TimeNs began = clock.Now();
    uint64_t next = 1;
    std::deque<const engine::PlannedStep*> steps;
    for (int turn = 0;; ++turn) {
      while (next <= load_.sequences && planner_->size() < load_.max_batch + 2) Add(next++);
      while (steps.size() < depth_) {
        planner_->AdmitWaiting(~0u);
        const engine::PlannedStep* step = planner_->Plan();
        if (step == nullptr) break;
        for (const engine::SeqSlice& slice : step->plan.slices) out_.ahead += slice.input_pending;
        const absl::Status launched = executor_->Launch(step->plan);
        EXPECT_TRUE(launched.ok()) << launched;
        steps.push_back(step);
      }
      if (load_.cancels && turn % 7 == 3) Cancel();
      planner_->CheckInvariants();
      if (steps.empty() || testing::Test::HasFailure()) break;
      Finish(*steps.front());
      steps.pop_front();
    }
    out_.ms = base::ToMs(clock.Now() - began);
    out_.preemptions = planner_->stats().preemptions;
    out_.hits = planner_->stats().prefix_hits;
    EXPECT_EQ(pool_.available(), load_.blocks);
    return out_;
  }

 private:
  void Add(uint64_t id) {
    base::SplitMix64 rng(id % 4);  // four families of prompts share their beginnings
    engine::SequenceSpec s;
    s.id = SeqId(id);
    const size_t length = 1 + (id * 37) % 150;
    for (size_t i = 0; i < length; ++i) s.tokens.push_back(static_cast<TokenId>(8 + rng.Below(vocab_ - 8)));
    s.prompt_tokens = static_cast<uint32_t>(length);
    s.sampling.temperature = id % 3 == 0 ? 0.0f : 1.0f;
    s.sampling.repetition_penalty = id % 5 == 0 ? 1.2f : 1.0f;
    s.sampling.seed = id;
    s.sampling.max_tokens = static_cast<uint32_t>(1 + id % 40);
    s.rank = static_cast<int64_t>(id % 2);
    planner_->Add(std::move(s), true);
    live_.insert(SeqId(id));
  }

  void Cancel() {
    if (live_.empty()) return;
    auto it = live_.begin();
    std::advance(it, static_cast<long>(rng_.Below(live_.size())));
    out_.cancelled.insert(*it);
    planner_->Remove(*it);
    live_.erase(it);
  }

  void Finish(const engine::PlannedStep& step) {
    engine::StepOutput output;
    const absl::Status status = executor_->Wait(&output);
    ASSERT_TRUE(status.ok()) << status;
    const std::vector<uint64_t> digests(step.seals.size(), 1);
    for (const engine::Advance& a : planner_->Complete(output, digests)) {
      if (!a.sampled) continue;
      out_.tokens[a.seq].push_back(a.token.token);
      if (a.finish == engine::FinishReason::kNone) continue;
      planner_->Remove(a.seq);
      live_.erase(a.seq);
    }
  }

  const Load load_;
  const size_t depth_;
  base::SplitMix64 rng_;
  engine::BlockPool pool_;
  KvMemory memory_;
  std::unique_ptr<CudaExecutor> executor_;
  std::unique_ptr<engine::Planner> planner_;
  uint32_t vocab_ = 0;
  std::set<SeqId> live_;
  Outcome out_;
};

class PlannedSteps : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelConfig config = SmallConfig(64, 8, 2, true);
    config.hidden_size = 256;
    config.intermediate_size = 512;
    config.vocab_size = 512;
    LoadOptions load;
    load.batch_invariant = true;
    load.limits = {.max_step_tokens = 512, .max_sequences = 40};
    auto model = CudaModel::Random(config, load, 0, CudaOptions{});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }
  std::unique_ptr<CudaModel> model_;
};

TEST_F(PlannedSteps, TwoInFlightGiveTheTokensOfOne) {
  const Load load;
  Runner(*model_, load, 1).Run();  // loads the kernels, so that the times below compare
  const Outcome one = Runner(*model_, load, 1).Run(), two = Runner(*model_, load, 2).Run();
  EXPECT_EQ(one.tokens.size(), load.sequences);
  EXPECT_EQ(two.tokens, one.tokens);
  EXPECT_EQ(one.ahead, 0u);
  EXPECT_GT(two.ahead, 100u);
  EXPECT_GT(two.hits, 0u);
  std::printf("one at a time %.1f ms, two in flight %.1f ms; %llu slices ahead\n", one.ms, two.ms,
              static_cast<unsigned long long>(two.ahead));
}

// What is recomputed goes through the prefill kernel, so tokens may differ in a last bit's consequence; all must end.
TEST_F(PlannedSteps, PreemptedSequencesFinish) {
  Load load;
  load.blocks = 24;
  const Outcome two = Runner(*model_, load, 2).Run();
  EXPECT_EQ(two.tokens.size(), load.sequences);
  EXPECT_GT(two.ahead, 100u);
  EXPECT_GT(two.preemptions, 0u);
}

TEST_F(PlannedSteps, CancelsLeaveTheOthersAlone) {
  Load load;
  const Outcome one = Runner(*model_, load, 1).Run();
  load.cancels = true;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    load.seed = seed;
    const Outcome two = Runner(*model_, load, 2).Run();
    EXPECT_GT(two.cancelled.size(), 0u);
    for (const auto& [id, tokens] : two.tokens) {
      const std::vector<TokenId>& want = one.tokens.at(id);
      ASSERT_LE(tokens.size(), want.size());
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), want.begin())) << "sequence " << id << " seed " << seed;
      if (!two.cancelled.contains(id)) {
        EXPECT_EQ(tokens.size(), want.size()) << "sequence " << id;
      }
    }
  }
}

}  // namespace
}  // namespace agentserve::model::cuda
