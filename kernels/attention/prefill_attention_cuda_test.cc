#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/prefill_attention_mma.h"
#include "kernels/attention/prefill_attention_testing.h"

namespace agentserve::kernels::cuda {
namespace {

using testing::PrefillProblem;
using testing::PrefillSequence;
using testing::PrefillShape;

bool RunOn(const PrefillProblem& problem, bool pdl = false) {
  LaunchContext context;
  context.pdl = pdl;
  const absl::Status status = PrefillAttention(problem.params(), context);
  EXPECT_TRUE(status.ok()) << status;
  const cudaError_t error = cudaDeviceSynchronize();
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  return status.ok() && error == cudaSuccess;
}

std::string Name(const PrefillShape& s) {
  std::string name = "q" + std::to_string(s.q_heads) + " kv" + std::to_string(s.kv_heads) + " d" +
                     std::to_string(s.head_dim) + " block " + std::to_string(s.block_tokens) + " (start+tokens)";
  for (size_t i = 0; i < s.sequences.size() && i < 8; ++i) {
    name += " " + std::to_string(s.sequences[i].start) + "+" + std::to_string(s.sequences[i].tokens);
  }
  return name;
}

void ExpectNearReference(const PrefillShape& shape, uint32_t seed, int stride) {
  PrefillProblem problem(shape, seed);
  if (!RunOn(problem)) return;
  const double error = problem.Error(stride);
  std::printf("%-70s error %.2e\n", Name(shape).c_str(), error);
  EXPECT_LE(error, 4e-3) << Name(shape);
  EXPECT_FALSE(error != error) << Name(shape);
}

TEST(PrefillAttentionMma, NearReference) {
  for (const int d : {64, 128}) {
    for (const int block : {8, 16}) {
      PrefillProblem problem({6, 2, d, block, {{0, 333}, {70, 200}, {511, 9}}}, 50);
      const absl::Status status = PrefillAttentionMma(problem.params(), {});
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const double error = problem.Error(1);
      std::printf("plain kernel, d %d, block %d: error %.2e\n", d, block, error);
      EXPECT_LE(error, 4e-3);
    }
  }
}

TEST(PrefillAttention, OneSequence) {
  uint32_t seed = 1;
  for (const int d : {64, 128}) {
    for (const int tokens : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 385, 700}) {
      ExpectNearReference({4, 2, d, 16, {{0, tokens}}}, seed++, 1);
    }
  }
}

TEST(PrefillAttention, AfterAPrefix) {
  uint32_t seed = 100;
  for (const int d : {64, 128}) {
    for (const int start : {1, 16, 100, 127, 128, 129, 500, 1024}) {
      for (const int tokens : {1, 33, 128, 200, 300}) ExpectNearReference({4, 4, d, 16, {{start, tokens}}}, seed++, 3);
    }
  }
}

TEST(PrefillAttention, Groups) {
  for (const int d : {64, 128}) {
    for (const int group : {1, 2, 3, 4, 5, 8}) {
      for (const int kv_heads : {1, 2, 3}) {
        ExpectNearReference({group * kv_heads, kv_heads, d, 16, {{40, 260}, {0, 77}}}, 200 + group, 5);
      }
    }
  }
}

TEST(PrefillAttention, BlockSizes) {
  for (const int d : {64, 128}) {
    for (const int block : {16, 32, 48, 64, 128, 256}) {
      ExpectNearReference({4, 2, d, block, {{0, 333}, {70, 200}, {511, 9}}}, 300 + block, 3);
    }
  }
}

TEST(PrefillAttention, RaggedBatches) {
  std::mt19937 random(7);
  for (int round = 0; round < 12; ++round) {
    PrefillShape shape = {8, 2, round % 2 == 0 ? 64 : 128, 16, {}};
    const int sequences = 1 + static_cast<int>(random() % 40);
    for (int i = 0; i < sequences; ++i) {
      const int start = random() % 3 == 0 ? 0 : static_cast<int>(random() % 900);
      const int tokens = random() % 4 == 0 ? 1 : 1 + static_cast<int>(random() % 500);
      shape.sequences.push_back({start, tokens});
    }
    ExpectNearReference(shape, 400 + round, 7);
  }
}

TEST(PrefillAttention, LongPromptsOfTheModels) {
  ExpectNearReference({32, 8, 64, 16, {{0, 4096}, {0, 1000}}}, 500, 61);
  ExpectNearReference({24, 8, 128, 16, {{0, 4096}, {0, 1000}}}, 501, 61);
  ExpectNearReference({32, 8, 64, 16, {{12000, 500}}}, 502, 17);
}

// Scores that grow along the sequence by far more than the softmax tolerates without moving its reference.
TEST(PrefillAttention, LargeScores) {
  for (const int d : {64, 128}) {
    PrefillShape shape = {4, 2, d, 16, {{0, 900}, {300, 200}}};
    shape.scale_q = 60.0f;
    ExpectNearReference(shape, 600 + d, 1);
  }
}

TEST(PrefillAttention, ChunksAndBatchesKeepEveryBit) {
  for (const int d : {64, 128}) {
    PrefillShape shape = {8, 2, d, 16, {{0, 1200}, {37, 700}}};
    for (const float spread : {1.0f, 30.0f}) {
      shape.scale_q = spread;
      PrefillProblem problem(shape, 700);
      if (!RunOn(problem)) return;
      const std::vector<uint16_t> whole = problem.Output();
      const size_t row = static_cast<size_t>(shape.q_heads) * d;
      const std::vector<std::vector<PrefillProblem::Slice>> cuts = {
          {{0, 0, 1200}},
          {{1, 37, 700}},
          {{0, 0, 100}, {0, 100, 1100}},
          {{0, 513, 687}, {1, 37, 1}, {0, 0, 513}, {1, 38, 699}},
          {{0, 0, 1}, {0, 1, 63}, {0, 64, 65}, {0, 129, 300}, {0, 429, 771}},
          {{1, 150, 511}, {1, 661, 76}},
      };
      for (size_t c = 0; c < cuts.size(); ++c) {
        std::vector<int> offsets;
        problem.Cut(cuts[c], &offsets);
        if (!RunOn(problem)) return;
        const std::vector<uint16_t> part = problem.Output();
        size_t at = 0, different = 0;
        for (size_t i = 0; i < cuts[c].size(); ++i) {
          for (size_t x = 0; x < cuts[c][i].tokens * row; ++x, ++at) {
            different += part[at] != whole[offsets[i] * row + x] ? 1 : 0;
          }
        }
        EXPECT_EQ(different, 0u) << "d " << d << " spread " << spread << " cut " << c << " of " << at;
      }
    }
  }
}

TEST(PrefillAttention, SameBitsEveryRun) {
  for (const int d : {64, 128}) {
    PrefillProblem problem({32, 8, d, 16, {{0, 2000}, {100, 600}, {0, 5}, {999, 1}}}, 800);
    if (!RunOn(problem)) return;
    const std::vector<uint16_t> first = problem.Output();
    for (int run = 0; run < 100; ++run) {
      problem.PoisonOutput();
      if (!RunOn(problem, run % 2 == 1)) return;
      ASSERT_EQ(std::memcmp(first.data(), problem.Output().data(), first.size() * 2), 0) << "d " << d << " run " << run;
    }
  }
}

TEST(PrefillAttention, RefusesOtherShapes) {
  PrefillAttentionParams params;
  params.kv.head_dim = 80;
  params.kv.kv_heads = 1;
  params.q_heads = 1;
  EXPECT_EQ(PrefillAttention(params, {}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace agentserve::kernels::cuda
