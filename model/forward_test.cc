// The whole forward pass: near a double-precision reference, and the same bits whatever shares the step.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "model/cpu_executor.h"
#include "model/generate.h"
#include "model/model.h"
#include "model/test_util.h"

namespace agentserve::model {
namespace {

using engine::BlockId;
using engine::TokenId;

std::unique_ptr<Model> MakeModel(const std::string& dir, const ModelConfig& config, int threads = 2,
                                 const RandomModelOptions& base = {}) {
  RandomModelOptions options = base;
  options.config = config;
  EXPECT_TRUE(WriteRandomModel(dir, options).ok());
  absl::StatusOr<std::unique_ptr<Model>> m = LoadModel(dir, {.device = "cpu", .threads = threads, .progress = {}});
  EXPECT_TRUE(m.ok()) << m.status();
  return m.ok() ? *std::move(m) : nullptr;
}

std::vector<TokenId> RandomTokens(size_t n, uint32_t seed) {
  std::mt19937 gen(seed);
  std::vector<TokenId> out(n);
  for (TokenId& t : out) t = gen() % 512;
  return out;
}

// A pool whose free slots hold NaN, and sequences with scattered blocks.
class Bench {
 public:
  Bench(Model& model, uint32_t block_tokens, uint32_t blocks) : layout_(model.layout(block_tokens)) {
    memory_.assign(layout_.BlockBytes() * blocks / 2, 0x7fff);
    executor_ = model.NewExecutor({reinterpret_cast<std::byte*>(memory_.data()), blocks, layout_});
    for (uint32_t i = 0; i < blocks; ++i) free_.emplace_back(i * 7 % blocks);  // scattered if 7 does not divide blocks
    greedy_.temperature = 0;
  }
  std::vector<BlockId> Take(uint32_t tokens) {
    std::vector<BlockId> table;
    for (uint32_t i = 0; i < layout_.BlocksFor(tokens); ++i) {
      table.push_back(free_.back());
      free_.pop_back();
    }
    return table;
  }
  engine::SeqSlice Slice(const std::vector<TokenId>& all, uint32_t start, uint32_t n, const std::vector<BlockId>& table,
                         bool sample = true) {
    engine::SeqSlice s;
    s.tokens = std::span(all).subspan(start, n);
    s.start = start;
    s.blocks = table;
    s.sample = sample;
    s.sampling = &greedy_;
    s.history = std::span(all).first(start + n);
    s.prompt_tokens = 1;
    return s;
  }
  // Runs and returns the logits of each sampling slice.
  std::vector<std::vector<float>> Run(std::vector<engine::SeqSlice> slices, engine::LayerObserver* observer = nullptr) {
    plan_.slices = std::move(slices);
    engine::StepOutput out;
    const absl::Status status = executor_->Run(plan_, observer, &out);
    EXPECT_TRUE(status.ok()) << status;
    const std::vector<float>& all = static_cast<CpuExecutor&>(*executor_).logits();
    std::vector<std::vector<float>> rows;
    const size_t vocab = out.tokens.empty() ? 0 : all.size() / out.tokens.size();
    for (size_t i = 0; i < out.tokens.size(); ++i) {
      rows.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(i * vocab),
                        all.begin() + static_cast<std::ptrdiff_t>((i + 1) * vocab));
    }
    return rows;
  }
  engine::Executor& executor() { return *executor_; }
  const std::vector<uint16_t>& memory() const { return memory_; }

 private:
  engine::KvLayout layout_;
  std::vector<uint16_t> memory_;
  std::unique_ptr<engine::Executor> executor_;
  std::vector<BlockId> free_;
  engine::SamplingParams greedy_;
  engine::StepPlan plan_;
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Shape {
  uint32_t head_dim, heads, kv_heads;
  bool tied;
};
class ForwardShapes : public testing::TestWithParam<Shape> {};

TEST_P(ForwardShapes, NearDoubleReference) {
  const Shape s = GetParam();
  const ModelConfig config = SmallConfig(s.head_dim, s.heads, s.kv_heads, s.tied);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config);
  const auto weights = LoadWeights(dir.path(), config, {});
  ASSERT_TRUE(weights.ok());
  const std::vector<TokenId> tokens = RandomTokens(70, 5);
  const Matrix want = ReferenceLogits(config, **weights, tokens);
  Bench bench(*model, 16, 16);
  const std::vector<BlockId> table = bench.Take(70);
  uint32_t at = 0;
  for (const uint32_t n : {33u, 1u, 35u, 1u}) {
    const std::vector<float> got = bench.Run({bench.Slice(tokens, at, n, table)}).front();
    at += n;
    double err = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      err += (got[i] - want[at - 1][i]) * (got[i] - want[at - 1][i]);
      norm += want[at - 1][i] * want[at - 1][i];
    }
    // Above fp32 rounding only because a K or V that lies on a bf16 tie may round the other way.
    EXPECT_LT(std::sqrt(err / norm), 1e-3) << "position " << at - 1;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ForwardShapes,
                         testing::Values(Shape{64, 4, 1, true}, Shape{64, 3, 3, false}, Shape{128, 3, 1, true},
                                         Shape{16, 8, 2, false}));

// Random plans over several sequences, with chunks and company of every kind: each sequence's logits must equal, bit
// for bit, those of the sequence alone, token by token.
TEST(Forward, BitsNeverDependOnBatchChunkingThreadsOrBlocks) {
  const ModelConfig config = SmallConfig(64, 4, 2, true);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config, 2);
  const auto single = MakeModel(dir.path(), config, 1);
  constexpr uint32_t kSeqs = 4, kLength = 90;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<std::vector<float>>> want(kSeqs);
  for (uint32_t s = 0; s < kSeqs; ++s) {
    tokens.push_back(RandomTokens(kLength, 100 + s));
    Bench alone(*single, 16, 8);
    const std::vector<BlockId> table = alone.Take(kLength);
    for (uint32_t i = 0; i < kLength; ++i) want[s].push_back(alone.Run({alone.Slice(tokens[s], i, 1, table)}).front());
  }
  for (uint32_t trial = 0; trial < 12; ++trial) {
    std::mt19937 gen(trial);
    Bench bench(*model, trial % 2 == 0 ? 16 : 5, 100);
    std::vector<std::vector<BlockId>> tables;
    for (uint32_t s = 0; s < kSeqs; ++s) tables.push_back(bench.Take(kLength));
    std::vector<uint32_t> at(kSeqs, 0);
    while (*std::min_element(at.begin(), at.end()) < kLength) {
      std::vector<engine::SeqSlice> slices;
      std::vector<std::pair<uint32_t, uint32_t>> sampled;  // sequence, position
      for (uint32_t s = 0; s < kSeqs; ++s) {
        if (at[s] == kLength || gen() % 3 == 0) continue;
        const uint32_t n =
            std::min<uint32_t>(kLength - at[s], gen() % 2 == 0 ? 1u : static_cast<uint32_t>(1 + gen() % 40));
        const bool sample = gen() % 4 != 0;
        slices.push_back(bench.Slice(tokens[s], at[s], n, tables[s], sample));
        at[s] += n;
        if (sample) sampled.emplace_back(s, at[s] - 1);
      }
      const std::vector<std::vector<float>> got = bench.Run(slices);
      ASSERT_EQ(got.size(), sampled.size());
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_TRUE(SameBits(got[i], want[sampled[i].first][sampled[i].second]))
            << "seed " << trial << " sequence " << sampled[i].first << " position " << sampled[i].second;
      }
    }
  }
}

TEST(Forward, ObserverSeesEachLayerAfterItsKvIsWritten) {
  const ModelConfig config = SmallConfig(64, 4, 2, true);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config);
  Bench bench(*model, 16, 4);
  const std::vector<TokenId> tokens = RandomTokens(20, 1);
  const std::vector<BlockId> table = bench.Take(20);
  class Observer : public engine::LayerObserver {
   public:
    explicit Observer(const Bench& b, const std::vector<BlockId>& t, engine::KvLayout l)
        : bench_(b), table_(t), layout_(l) {}
    void OnLayerWritten(const engine::StepPlan& plan, uint32_t layer) override {
      EXPECT_EQ(plan.slices.size(), 1u);
      EXPECT_EQ(layer, layers_++);
      for (uint32_t l = 0; l < layout_.num_layers; ++l) {
        const size_t at = (table_[0].value * layout_.BlockBytes() + layout_.Offset(l, 1, 1)) / 2;
        EXPECT_EQ(bench_.memory()[at] != 0x7fff, l <= layer) << "layer " << l << " when told of " << layer;
      }
    }
    uint32_t layers_ = 0;

   private:
    const Bench& bench_;
    const std::vector<BlockId>& table_;
    engine::KvLayout layout_;
  } observer(bench, table, model->layout(16));
  EXPECT_TRUE(bench.Run({bench.Slice(tokens, 0, 20, table, false)}, &observer).empty());
  EXPECT_EQ(observer.layers_, config.num_layers);
}

TEST(Forward, BadPlansAreRefusedByName) {
  const ModelConfig config = SmallConfig(64, 4, 2, true);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config);
  Bench bench(*model, 16, 4);
  std::vector<TokenId> tokens = RandomTokens(20, 1);
  const std::vector<BlockId> table = bench.Take(20);
  const auto message = [&](const engine::SeqSlice& slice) {
    engine::StepPlan plan;
    plan.slices = {slice};
    engine::StepOutput out;
    const absl::Status s = bench.executor().Run(plan, nullptr, &out);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    return std::string(s.message());
  };
  EXPECT_NE(message(bench.Slice(tokens, 0, 0, table)).find("no tokens"), std::string::npos);
  engine::SeqSlice slice = bench.Slice(tokens, 0, 20, table);
  slice.blocks = std::span(table).first(1);
  EXPECT_NE(message(slice).find("20 positions need 2"), std::string::npos);
  slice = bench.Slice(tokens, 0, 20, table);
  slice.start = config.max_position;
  EXPECT_NE(message(slice).find("beyond the context length"), std::string::npos);
  slice = bench.Slice(tokens, 0, 20, table);
  slice.history = std::span(tokens).first(5);
  EXPECT_NE(message(slice).find("history"), std::string::npos);
  const std::vector<BlockId> outside = {BlockId(0), BlockId(99)};
  EXPECT_NE(message(bench.Slice(tokens, 0, 20, outside)).find("block 99"), std::string::npos);
  tokens[3] = 512;
  EXPECT_NE(message(bench.Slice(tokens, 0, 20, table)).find("token 512"), std::string::npos);
}

TEST(Generate, ChunkAndBlockSizesNeverChangeTokens) {
  const ModelConfig config = SmallConfig(64, 4, 2, true);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config);
  const std::vector<TokenId> prompt = RandomTokens(50, 9);
  for (const float temperature : {0.0f, 1.0f}) {
    engine::SamplingParams p;
    p.temperature = temperature;
    p.max_tokens = 30;
    p.seed = 77;
    p.ignore_eos = true;
    const auto tokens = [&](GenerateOptions o) {
      const auto r = Generate(*model, prompt, p, o, {});
      EXPECT_TRUE(r.ok()) << r.status();
      EXPECT_EQ(r->finish_reason, engine::FinishReason::kLength);
      std::vector<TokenId> out;
      for (const auto& t : r->tokens) out.push_back(t.token);
      return out;
    };
    const std::vector<TokenId> want = tokens({});
    EXPECT_EQ(want.size(), 30u);
    EXPECT_EQ(tokens({.chunk_tokens = 1, .block_tokens = 16}), want);
    EXPECT_EQ(tokens({.chunk_tokens = 17, .block_tokens = 3}), want);
  }
}

// A stream resumed from its committed tokens continues as if nothing had happened.
TEST(Generate, ResumesTokenExactFromAnyPoint) {
  const ModelConfig config = SmallConfig(64, 4, 2, true);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config);
  engine::SamplingParams p;
  p.max_tokens = 20;
  p.seed = 5;
  p.ignore_eos = true;
  const std::vector<TokenId> prompt = RandomTokens(10, 3);
  const auto whole = Generate(*model, prompt, p, {}, {});
  ASSERT_TRUE(whole.ok());
  for (const size_t cut : {size_t{1}, size_t{7}, size_t{19}}) {
    std::vector<TokenId> resumed = prompt;
    for (size_t i = 0; i < cut; ++i) resumed.push_back(whole->tokens[i].token);
    p.max_tokens = static_cast<uint32_t>(20 - cut);
    const auto rest = Generate(*model, resumed, p, {}, {});
    ASSERT_TRUE(rest.ok());
    for (size_t i = 0; i < rest->tokens.size(); ++i) EXPECT_EQ(rest->tokens[i].token, whole->tokens[cut + i].token);
  }
}

TEST(Generate, StopsAtEndTokensAndCallback) {
  const ModelConfig config = SmallConfig(64, 4, 2, true);
  TempDir dir;
  const auto model = MakeModel(dir.path(), config);
  engine::SamplingParams p;
  p.temperature = 0;
  p.max_tokens = 10;
  p.ignore_eos = true;
  const std::vector<TokenId> prompt = RandomTokens(10, 3);
  const auto free_run = Generate(*model, prompt, p, {}, {});
  ASSERT_TRUE(free_run.ok());
  p.stop_token_ids = {free_run->tokens[0].token};
  auto r = Generate(*model, prompt, p, {}, {});
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->finish_reason, engine::FinishReason::kStop);
  EXPECT_EQ(r->tokens.size(), 1u);
  p.min_tokens = 3;  // the stop token is masked until three tokens are out
  r = Generate(*model, prompt, p, {}, {});
  ASSERT_TRUE(r.ok());
  for (size_t i = 0; i < 3 && i < r->tokens.size(); ++i) EXPECT_NE(r->tokens[i].token, p.stop_token_ids[0]);
  EXPECT_GT(r->tokens.size(), 3u);
  r = Generate(*model, prompt, p, {}, [](const engine::SampledToken&) { return false; });
  EXPECT_EQ(r->finish_reason, engine::FinishReason::kCancelled);
  EXPECT_EQ(Generate(*model, {}, p, {}, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Generate(*model, RandomTokens(20000, 1), p, {}, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace agentserve::model
