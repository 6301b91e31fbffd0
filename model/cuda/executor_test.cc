// The executor on a GPU against the forward pass in double, and against itself: other batches, chunks, graphs, steps in
// flight, repetition.
#include "model/cuda/executor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <set>
#include <vector>

#include "model/cuda/cuda_model.h"
#include "model/cuda/gpu_check.h"
#include "model/model.h"
#include "model/test_util.h"

namespace agentserve::model::cuda {
namespace {

using engine::SeqSlice;
using engine::StepOutput;
using engine::StepPlan;

struct Shape {
  uint32_t head_dim, heads, kv_heads, hidden, intermediate, vocab;
  bool tied;
};
constexpr Shape kShapes[] = {{64, 8, 2, 256, 512, 512, true}, {128, 6, 2, 384, 768, 1040, false}};

ModelConfig ConfigOf(const Shape& s) {
  ModelConfig c = SmallConfig(s.head_dim, s.heads, s.kv_heads, s.tied);
  c.hidden_size = s.hidden;
  c.intermediate_size = s.intermediate;
  c.vocab_size = s.vocab;
  return c;
}

// A folder with random weights and a model of it on the GPU.
struct Loaded {
  Loaded(const ModelConfig& config, bool invariant, const CudaOptions& cuda) {
    RandomModelOptions options;
    options.config = config;
    EXPECT_TRUE(WriteRandomModel(dir.path(), options).ok());
    LoadOptions load;
    load.batch_invariant = invariant;
    load.limits = {.max_step_tokens = 512, .max_sequences = 40};
    auto loaded = CudaModel::Load(dir.path(), load, 0, cuda);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (loaded.ok()) model = *std::move(loaded);
  }
  TempDir dir;
  std::unique_ptr<CudaModel> model;
};

std::vector<float> ToFloat(const std::vector<uint16_t>& v) {
  std::vector<float> out;
  for (const uint16_t b : v) out.push_back(kernels::Bf16ToFloat(b));
  return out;
}

class ExecutorTest : public ::testing::TestWithParam<int> {
 protected:
  ModelConfig config_ = ConfigOf(kShapes[GetParam()]);
};

// Logits after prompts cut in chunks of many sizes, in double and here.
TEST_P(ExecutorTest, LogitsAreNearTheDoubleReference) {
  CudaOptions cuda;
  cuda.keep_logits = true;
  Loaded loaded(config_, false, cuda);
  ASSERT_NE(loaded.model, nullptr);
  auto weights = LoadWeights(loaded.dir.path(), config_, nullptr);
  ASSERT_TRUE(weights.ok());
  const std::vector<uint32_t> prompts = {1, 2, 15, 16, 17, 33, 90};
  for (const uint32_t chunk : {1u, 7u, 16u, 90u}) {
    auto batch = CheckBatch::Create(*loaded.model, prompts, 4, 16, 5);
    ASSERT_TRUE(batch.ok()) << batch.status();
    auto executor = loaded.model->CreateCudaExecutor((*batch)->pool());
    ASSERT_TRUE(executor.ok()) << executor.status();
    for (const CheckSequence& s : (*batch)->sequences()) {
      StepOutput out;
      for (uint32_t at = 0; at < s.prompt; at += chunk) {
        const uint32_t n = std::min(chunk, s.prompt - at);
        StepPlan plan{{(*batch)->Slice(s, at, n, at + n == s.prompt)}};
        ASSERT_TRUE((*executor)->Run(plan, nullptr, &out).ok());
      }
      const auto raw = (*executor)->CopyLogits();
      ASSERT_TRUE(raw.ok());
      const std::vector<float> got = ToFloat(*raw);
      const std::vector<double> want = ReferenceLogits(config_, **weights, s.tokens).back();
      double error = 0, norm = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
      }
      // bf16 activations: about 0.4 % per rounding, a dozen roundings a layer.
      EXPECT_LT(std::sqrt(error / norm), 2.5e-2) << "prompt " << s.prompt << " chunk " << chunk;
    }
  }
}

// All steps of one generation over `prompts`, two in flight.
std::vector<std::vector<engine::TokenId>> Pipelined(CudaModel& model, const std::vector<uint32_t>& prompts,
                                                    uint32_t steps, const engine::SamplingParams& sampling) {
  auto batch = CheckBatch::Create(model, prompts, steps + 1, 16, 11);
  EXPECT_TRUE(batch.ok()) << batch.status();
  (*batch)->sampling() = sampling;
  auto executor = model.CreateCudaExecutor((*batch)->pool());
  EXPECT_TRUE(executor.ok()) << executor.status();
  EXPECT_TRUE(GeneratePipelined(**batch, **executor, steps, 32).ok());
  std::vector<std::vector<engine::TokenId>> out;
  for (const CheckSequence& s : (*batch)->sequences()) out.push_back(s.tokens);
  return out;
}

// One step at a time, directly launched.
std::vector<std::vector<engine::TokenId>> OneByOne(CudaModel& model, const std::vector<uint32_t>& prompts,
                                                   uint32_t steps, const engine::SamplingParams& sampling) {
  auto batch = CheckBatch::Create(model, prompts, steps + 1, 16, 11);
  EXPECT_TRUE(batch.ok()) << batch.status();
  (*batch)->sampling() = sampling;
  auto executor = model.CreateCudaExecutor((*batch)->pool());
  EXPECT_TRUE(executor.ok()) << executor.status();
  std::vector<std::vector<engine::TokenId>> out;
  for (CheckSequence& s : (*batch)->sequences()) {
    uint32_t at = 0;
    StepOutput result;
    while (s.tokens.size() < s.prompt + steps) {
      const auto n = static_cast<uint32_t>(s.tokens.size()) - at;
      StepPlan plan{{(*batch)->Slice(s, at, n, true)}};
      EXPECT_TRUE((*executor)->Run(plan, nullptr, &result).ok());
      at += n;
      s.tokens.push_back(result.tokens.at(0).token);
    }
    out.push_back(s.tokens);
  }
  return out;
}

// The whole promise of the mode: alone without graphs = in a batch with graphs, chunks and two steps in flight.
TEST_P(ExecutorTest, BatchInvariantTokensDoNotDependOnTheBatch) {
  CudaOptions plain;
  plain.graphs = false;
  plain.pdl = false;
  Loaded alone(config_, true, plain), together(config_, true, {});
  ASSERT_NE(alone.model, nullptr);
  ASSERT_NE(together.model, nullptr);
  const std::vector<uint32_t> prompts = {1, 7, 16, 31, 32, 33, 64, 65, 100, 17, 5};
  engine::SamplingParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(Pipelined(*together.model, prompts, 24, greedy), OneByOne(*alone.model, prompts, 24, greedy));
  engine::SamplingParams drawn;
  drawn.temperature = 0.8f;
  drawn.top_p = 0.9f;
  drawn.top_k = 50;
  drawn.seed = 77;
  EXPECT_EQ(Pipelined(*together.model, prompts, 24, drawn), OneByOne(*alone.model, prompts, 24, drawn));
}

TEST_P(ExecutorTest, SameTokensEveryRun) {
  Loaded loaded(config_, false, {});
  ASSERT_NE(loaded.model, nullptr);
  engine::SamplingParams greedy;
  greedy.temperature = 0;
  for (const std::vector<uint32_t>& prompts :
       {std::vector<uint32_t>{40}, std::vector<uint32_t>{5, 60, 17}, std::vector<uint32_t>(20, 33)}) {
    const auto first = Pipelined(*loaded.model, prompts, 40, greedy);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(Pipelined(*loaded.model, prompts, 40, greedy), first);
  }
}

TEST_P(ExecutorTest, PenaltiesBiasesAndLogprobs) {
  Loaded loaded(config_, false, {});
  ASSERT_NE(loaded.model, nullptr);
  engine::SamplingParams p;
  p.temperature = 0;
  p.logit_bias = {{123, 1000.0f}};
  for (const auto& tokens : OneByOne(*loaded.model, {9, 20}, 4, p)) EXPECT_EQ(tokens.back(), 123u);
  p.logit_bias.clear();
  p.frequency_penalty = 100.0f;  // no token twice
  for (const auto& tokens : OneByOne(*loaded.model, {9, 20}, 12, p)) {
    const std::set<engine::TokenId> seen(tokens.end() - 12, tokens.end());
    EXPECT_EQ(seen.size(), 12u);
  }
  p.frequency_penalty = 0;
  p.top_logprobs = 20;
  auto batch = CheckBatch::Create(*loaded.model, {30}, 2, 16, 3);
  ASSERT_TRUE(batch.ok());
  (*batch)->sampling() = p;
  auto executor = loaded.model->CreateCudaExecutor((*batch)->pool());
  ASSERT_TRUE(executor.ok());
  StepPlan plan{{(*batch)->Slice((*batch)->sequences()[0], 0, 30, true)}};
  StepOutput out;
  ASSERT_TRUE((*executor)->Run(plan, nullptr, &out).ok());
  ASSERT_EQ(out.tokens.size(), 1u);
  ASSERT_TRUE(out.tokens[0].has_logprobs);
  ASSERT_EQ(out.tokens[0].top.size(), 20u);
  EXPECT_EQ(out.tokens[0].top[0].token, out.tokens[0].token);
  EXPECT_EQ(out.tokens[0].top[0].logprob, out.tokens[0].logprob);
  for (size_t i = 1; i < 20; ++i) EXPECT_LE(out.tokens[0].top[i].logprob, out.tokens[0].top[i - 1].logprob);
}

class Recorder final : public engine::LayerObserver {
 public:
  void OnLayerWritten(const StepPlan&, uint32_t layer) override { layers.push_back(layer); }
  std::vector<uint32_t> layers;
};

TEST_P(ExecutorTest, ObserverHearsEachLayerOnceInOrder) {
  Loaded loaded(config_, false, {});
  ASSERT_NE(loaded.model, nullptr);
  auto batch = CheckBatch::Create(*loaded.model, {50, 20}, 2, 16, 3);
  ASSERT_TRUE(batch.ok());
  auto executor = loaded.model->CreateCudaExecutor((*batch)->pool());
  ASSERT_TRUE(executor.ok());
  std::vector<uint32_t> want;
  for (uint32_t l = 0; l < config_.num_layers; ++l) want.push_back(l);
  for (const bool sample : {false, true}) {
    Recorder recorder;
    StepPlan plan{{(*batch)->Slice((*batch)->sequences()[0], 0, 50, sample),
                   (*batch)->Slice((*batch)->sequences()[1], 0, 20, false)}};
    StepOutput out;
    ASSERT_TRUE((*executor)->Run(plan, &recorder, &out).ok());
    EXPECT_EQ(recorder.layers, want);
    EXPECT_EQ(out.tokens.size(), sample ? 1u : 0u);
  }
}

TEST_P(ExecutorTest, LaunchedChunksTellTheirLayersBeforeWaitReturns) {
  Loaded loaded(config_, false, {});
  ASSERT_NE(loaded.model, nullptr);
  auto batch = CheckBatch::Create(*loaded.model, {50, 20}, 2, 16, 3);
  ASSERT_TRUE(batch.ok());
  auto executor = loaded.model->CreateCudaExecutor((*batch)->pool());
  ASSERT_TRUE(executor.ok());
  Recorder recorder;
  (*executor)->ObserveLaunches(&recorder);
  std::vector<uint32_t> want;
  for (uint32_t l = 0; l < config_.num_layers; ++l) want.push_back(l);
  const StepPlan first{{(*batch)->Slice((*batch)->sequences()[0], 0, 32, false)}};
  const StepPlan second{{(*batch)->Slice((*batch)->sequences()[0], 32, 18, true)}};
  StepOutput out;
  ASSERT_TRUE((*executor)->Launch(first).ok());
  ASSERT_TRUE((*executor)->Launch(second).ok());
  for (int step = 0; step < 2; ++step) {
    recorder.layers.clear();
    ASSERT_TRUE((*executor)->Wait(&out).ok());
    EXPECT_EQ(recorder.layers, want) << "step " << step;
  }
  EXPECT_EQ(out.tokens.size(), 1u);
}

TEST_P(ExecutorTest, RefusesAndStaysUsable) {
  Loaded loaded(config_, false, {});
  ASSERT_NE(loaded.model, nullptr);
  auto batch = CheckBatch::Create(*loaded.model, {600, 20}, 2, 16, 3);
  ASSERT_TRUE(batch.ok());
  auto executor = loaded.model->CreateCudaExecutor((*batch)->pool());
  ASSERT_TRUE(executor.ok());
  StepOutput out;
  StepPlan large{{(*batch)->Slice((*batch)->sequences()[0], 0, 600, true)}};
  EXPECT_EQ((*executor)->Run(large, nullptr, &out).code(), absl::StatusCode::kInvalidArgument);
  StepPlan fine{{(*batch)->Slice((*batch)->sequences()[1], 0, 20, true)}};
  EXPECT_EQ((*executor)->Wait(&out).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*executor)->Run(fine, nullptr, &out).ok());
  EXPECT_EQ(out.tokens.size(), 1u);
  EXPECT_TRUE((*executor)->Launch(fine).ok());
  EXPECT_TRUE((*executor)->Launch(fine).ok());
  EXPECT_EQ((*executor)->Launch(fine).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*executor)->Run(fine, nullptr, &out).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*executor)->Wait(&out).ok());
  EXPECT_TRUE((*executor)->Wait(&out).ok());
}

INSTANTIATE_TEST_SUITE_P(Shapes, ExecutorTest, ::testing::Values(0, 1));

TEST(CudaModel, DeviceMemoryAddsUpAndTooLargePoolsSayWhatIsMissing) {
  Loaded loaded(ConfigOf(kShapes[0]), false, {});
  ASSERT_NE(loaded.model, nullptr);
  const auto memory = loaded.model->device_memory();
  ASSERT_TRUE(memory.ok());
  EXPECT_TRUE(memory->on_gpu());
  EXPECT_GT(memory->weight_bytes, loaded.model->weight_bytes());
  EXPECT_LT(memory->PoolBytes(), memory->free_bytes);
  const auto pool = loaded.model->AllocateKv(memory->total_bytes + (size_t{1} << 30));
  ASSERT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted);
  std::printf("%s\n", std::string(pool.status().message()).c_str());
  // The same folder has the same identity on the CPU.
  const auto cpu = LoadModel(loaded.dir.path(), {});
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ((*cpu)->fingerprint(), loaded.model->fingerprint());
}

}  // namespace
}  // namespace agentserve::model::cuda
