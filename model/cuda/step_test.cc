#include "model/cuda/step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "model/cuda/edits.h"

namespace agentserve::model::cuda {
namespace {

using engine::SeqSlice;
using engine::StepPlan;
using kernels::cuda::LogitEdit;

constexpr uint32_t kBlockTokens = 16;

ModelConfig TestConfig() {
  ModelConfig c;
  c.vocab_size = 512;
  c.hidden_size = 128;
  c.intermediate_size = 256;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 64;
  c.max_position = 4096;
  return c;
}

// Sequences with `length` tokens; the last `fresh` of them are this step's.
class StepTest : public ::testing::Test {
 protected:
  struct Seq {
    std::vector<engine::TokenId> tokens;
    std::vector<engine::BlockId> blocks;
    uint32_t prompt;
  };

  SeqSlice Add(uint32_t length, uint32_t fresh, bool sample, uint32_t prompt) {
    auto s = std::make_unique<Seq>();
    for (uint32_t i = 0; i < length; ++i) s->tokens.push_back((7 * i + length) % 512);
    for (uint32_t i = 0; i <= (length - 1) / kBlockTokens; ++i) s->blocks.emplace_back(next_block_++);
    s->prompt = prompt;
    SeqSlice out;
    out.seq = engine::SeqId(seqs_.size() + 1);
    out.tokens = std::span(s->tokens).last(fresh);
    out.start = length - fresh;
    out.blocks = s->blocks;
    out.sample = sample;
    out.sampling = &sampling_;
    out.history = s->tokens;
    out.prompt_tokens = prompt;
    seqs_.push_back(std::move(s));
    plan_.slices.push_back(out);
    return out;
  }

  // Packs with exact sizes into memory_.
  StepArrays Pack(const StepOptions& options, StepShape* shape, PackedStep* packed) {
    layout_ = LayOut(plan_, kBlockTokens, options);
    *shape = layout_.shape;
    shape->decode_limits = DecodeLimitsOf(std::max(1, shape->decodes), 4096, config_, options);
    shape->max_tiles = kernels::cuda::MaxPrefillTiles(shape->chunk_tokens, shape->chunks, 64);
    memory_.assign(StepArrays::Bytes(*shape), std::byte{0xee});
    Arena arena(memory_.data());
    StepArrays arrays = StepArrays::Carve(*shape, &arena);
    shape->decode_stride = 256;
    tables_.resize(256 * 16);
    arrays.decode_tables = tables_.data();
    status_ = PackStep(plan_, layout_, *shape, pending_, kBlockTokens, 64, options, arrays, packed);
    return arrays;
  }

  const ModelConfig config_ = TestConfig();
  engine::SamplingParams sampling_;
  StepPlan plan_;
  StepLayout layout_;
  PendingRows pending_;
  absl::Status status_;
  std::vector<std::byte> memory_;
  std::vector<int32_t> tables_;
  std::vector<std::unique_ptr<Seq>> seqs_;
  uint32_t next_block_ = 3;
};

TEST_F(StepTest, DecodesComeFirstAndSamplesKeepSliceOrder) {
  const SeqSlice chunk = Add(40, 20, true, 40);
  const SeqSlice decode = Add(18, 1, true, 10);
  const SeqSlice middle = Add(64, 32, false, 100);
  StepShape shape;
  PackedStep packed;
  const StepArrays a = Pack({}, &shape, &packed);
  ASSERT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(shape.decodes, 1);
  EXPECT_EQ(shape.chunks, 2);
  EXPECT_EQ(shape.rows(), 53);
  EXPECT_EQ(shape.samples, 2);
  EXPECT_FALSE(shape.all_sample());
  EXPECT_EQ(a.ids[0], static_cast<int32_t>(decode.tokens[0]));
  EXPECT_EQ(a.positions[0], 17);
  EXPECT_EQ(a.slots[0], static_cast<int32_t>(decode.blocks[1].value * kBlockTokens + 1));
  EXPECT_EQ(a.cu_tokens[0], 0);
  EXPECT_EQ(a.cu_tokens[1], 20);
  EXPECT_EQ(a.cu_tokens[2], 52);
  EXPECT_EQ(a.starts[0], 20);
  EXPECT_EQ(a.starts[1], 32);
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(a.ids[21 + i], static_cast<int32_t>(middle.tokens[static_cast<size_t>(i)]));
    EXPECT_EQ(a.positions[21 + i], 32 + i);
    EXPECT_EQ(a.from[21 + i], -1);
  }
  // The chunk's slice comes before the decode's, so it samples first; its last row is 20.
  EXPECT_EQ(a.sample_rows[0], 20);
  EXPECT_EQ(a.sample_rows[1], 0);
  EXPECT_EQ(a.settings[0].position, chunk.history.size());
  EXPECT_EQ(a.decode_tables[1], static_cast<int32_t>(decode.blocks[1].value));
  EXPECT_EQ(a.chunk_tables[shape.table_stride + 3], static_cast<int32_t>(middle.blocks[3].value));
  EXPECT_EQ(packed.units, 1);
  EXPECT_EQ(a.units[0].end, 18);
}

TEST_F(StepTest, PaddingWritesNothingAndHasNoUnits) {
  Add(30, 1, true, 10);
  Add(200, 1, true, 10);
  Add(31, 1, true, 10);
  layout_ = LayOut(plan_, kBlockTokens, {});
  StepShape shape = layout_.shape;
  EXPECT_TRUE(shape.all_sample());
  shape.decodes = shape.samples = 8;
  shape.table_stride = 64;
  shape.decode_limits = DecodeLimitsOf(8, 4096, config_, {});
  memory_.assign(StepArrays::Bytes(shape), std::byte{0xee});
  Arena arena(memory_.data());
  StepArrays a = StepArrays::Carve(shape, &arena);
  shape.decode_stride = 256;
  tables_.resize(256 * 16);
  a.decode_tables = tables_.data();
  PackedStep packed;
  ASSERT_TRUE(PackStep(plan_, layout_, shape, pending_, kBlockTokens, 64, {}, a, &packed).ok());
  EXPECT_TRUE(packed.tables_changed);
  EXPECT_EQ(packed.table_columns, 13);
  PackedStep again;
  ASSERT_TRUE(PackStep(plan_, layout_, shape, pending_, kBlockTokens, 64, {}, a, &again).ok());
  EXPECT_FALSE(again.tables_changed);
  for (int row = 3; row < 8; ++row) {
    EXPECT_EQ(a.slots[row], -1);
    EXPECT_EQ(a.splits[row], a.splits[row + 1]) << row;
  }
  for (int u = 0; u < packed.units; ++u) EXPECT_LT(a.units[u].row, 3);
  for (int u = packed.units; u < shape.decode_limits.max_units; ++u) EXPECT_EQ(a.units[u].row, -1);
}

TEST_F(StepTest, PendingInputsNameTheRowOfTheStepBefore) {
  Add(30, 1, true, 10);
  Add(31, 1, true, 10);
  plan_.slices[1].input_pending = true;
  StepShape shape;
  PackedStep packed;
  Pack({}, &shape, &packed);
  EXPECT_EQ(status_.code(), absl::StatusCode::kInvalidArgument);
  pending_[plan_.slices[1].seq.value] = 5;
  const StepArrays a = Pack({}, &shape, &packed);
  ASSERT_TRUE(status_.ok());
  EXPECT_EQ(a.from[0], -1);
  EXPECT_EQ(a.from[1], 5);
}

TEST_F(StepTest, InvariantModeKeepsPromptsOutOfTheDecodeKernel) {
  Add(33, 1, true, 33);   // last token of a prompt
  Add(33, 1, false, 50);  // a chunk of one token
  Add(34, 1, true, 33);   // a decode
  EXPECT_EQ(LayOut(plan_, kBlockTokens, {}).decodes.size(), 3u);
  const StepLayout invariant = LayOut(plan_, kBlockTokens, {.batch_invariant = true});
  EXPECT_EQ(invariant.decodes, std::vector<uint32_t>{2});
  EXPECT_EQ(invariant.chunks, (std::vector<uint32_t>{0, 1}));
}

TEST_F(StepTest, RefusesWhatDoesNotFit) {
  engine::KvPoolView pool;
  pool.num_blocks = 100;
  pool.layout.block_tokens = kBlockTokens;
  Add(30, 1, true, 10);
  const ExecutorLimits limits;
  EXPECT_TRUE(ValidateStep(plan_, config_, pool, limits).ok());
  const auto broken = [&](auto change) {
    StepPlan plan = plan_;
    change(&plan.slices[0]);
    return ValidateStep(plan, config_, pool, limits);
  };
  EXPECT_FALSE(broken([](SeqSlice* s) { s->tokens = {}; }).ok());
  EXPECT_FALSE(broken([](SeqSlice* s) { s->start = 4096; }).ok());
  EXPECT_FALSE(broken([](SeqSlice* s) { s->blocks = s->blocks.first(1); }).ok());
  EXPECT_FALSE(broken([](SeqSlice* s) { s->sampling = nullptr; }).ok());
  EXPECT_FALSE(broken([](SeqSlice* s) { s->history = s->history.first(5); }).ok());
  pool.num_blocks = 4;
  EXPECT_FALSE(ValidateStep(plan_, config_, pool, limits).ok());
  pool.num_blocks = 100;
  EXPECT_FALSE(ValidateStep(plan_, config_, pool, {.max_step_tokens = 0, .max_sequences = 256}).ok());
}

// What the list must be, counted anew.
void ExpectEdits(const SeqSlice& s, const std::vector<LogitEdit>& edits, const std::set<uint32_t>& masked,
                 const std::map<uint32_t, float>& biases) {
  std::map<uint32_t, LogitEdit> want;
  for (size_t i = 0; i < s.history.size(); ++i) {
    LogitEdit& e = want[s.history[i]];
    e.flags |= kernels::cuda::kEditSeen;
    if (i >= s.prompt_tokens) ++e.output;
  }
  for (const uint32_t id : masked) want[id].flags |= kernels::cuda::kEditMasked;
  for (const auto& [id, bias] : biases) want[id].bias += bias;
  ASSERT_EQ(edits.size(), want.size());
  size_t i = 0;
  for (const auto& [id, e] : want) {
    EXPECT_EQ(edits[i].token, static_cast<int32_t>(id));
    EXPECT_EQ(edits[i].output, e.output) << id;
    EXPECT_EQ(edits[i].flags, e.flags) << id;
    EXPECT_EQ(edits[i].bias, e.bias) << id;
    ++i;
  }
}

TEST_F(StepTest, EditsListEachTokenOnceAscending) {
  const SeqSlice s = Add(100, 1, true, 60);
  sampling_.repetition_penalty = 1.5f;
  sampling_.logit_bias = {{3, 2.0f}, {511, -1.0f}, {3, 0.5f}, {9999, 1.0f}};
  sampling_.min_tokens = 64;
  sampling_.stop_token_ids = {8};
  ASSERT_TRUE(NeedsEdits(s));
  EditBuilder builder(512, 4);
  for (int turn = 0; turn < 2; ++turn) {
    std::vector<LogitEdit> edits;
    builder.Append(s, {2}, &edits);
    ExpectEdits(s, edits, {2, 8}, {{3, 2.5f}, {511, -1.0f}});
  }
}

TEST_F(StepTest, EditsFollowGrowingHistoriesAndNoticeOthersUnderTheSameNumber) {
  sampling_.presence_penalty = 1.0f;
  EditBuilder builder(512, 4);
  std::vector<std::vector<engine::TokenId>> tokens(12);
  std::vector<uint32_t> state(12, 1);
  for (int turn = 0; turn < 400; ++turn) {
    const auto n = static_cast<size_t>(turn * 7 % 12);
    if (turn % 50 == 49) tokens[n].clear();  // the number is given to a new sequence
    const int grow = turn % 13 == 0 ? 100 : 1;
    for (int i = 0; i < grow; ++i) {
      state[n] = state[n] * 1664525u + 1013904223u;
      tokens[n].push_back((state[n] >> 16) % 512);
    }
    SeqSlice s;
    s.seq = engine::SeqId(n);
    s.history = tokens[n];
    s.prompt_tokens = 1;
    s.sampling = &sampling_;
    std::vector<LogitEdit> edits;
    builder.Append(s, {}, &edits);
    ExpectEdits(s, edits, {}, {});
  }
}

}  // namespace
}  // namespace agentserve::model::cuda
