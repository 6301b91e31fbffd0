#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/decode_attention_fixture.h"

namespace agentserve::kernels::cuda {
namespace {

std::string Describe(const DecodeCase& c) {
  std::string text = std::to_string(c.q_heads) + "/" + std::to_string(c.kv_heads) + " heads, dim " +
                     std::to_string(c.head_dim) + ", blocks of " + std::to_string(c.block_tokens) + ", chunk " +
                     std::to_string(c.fixed_chunk) + ", cluster " + std::to_string(c.cluster) + ", lengths";
  for (size_t i = 0; i < c.lengths.size() && i < 12; ++i) text += " " + std::to_string(c.lengths[i]);
  return text + (c.lengths.size() > 12 ? " ..." : "");
}

// Compares with the double reference: the whole output and each head of each row; rows without KV must stay as they
// were. NaN anywhere fails.
void Check(const DecodeCase& c) {
  SCOPED_TRACE(Describe(c));
  DecodeFixture fixture(c);
  ASSERT_GT(fixture.units(), 0);
  const std::vector<uint16_t> out = fixture.Run();
  const std::vector<double> want = fixture.Reference();
  double all_error = 0, all_norm = 0, worst = 0;
  size_t worst_head = 0;
  const size_t dim = static_cast<size_t>(c.head_dim);
  for (size_t head = 0; head < out.size() / dim; ++head) {
    if (c.lengths[head / static_cast<size_t>(c.q_heads)] == 0) {
      for (size_t d = 0; d < dim; ++d) EXPECT_EQ(out[head * dim + d], 0xffff) << "an empty row was written";
      continue;
    }
    double error = 0, norm = 0;
    for (size_t i = head * dim; i < (head + 1) * dim; ++i) {
      const double e = double{Bf16ToFloat(out[i])} - want[i];
      error += e * e;
      norm += want[i] * want[i];
    }
    all_error += error;
    all_norm += norm;
    const double ratio = std::isfinite(error) ? std::sqrt(error / norm) : std::numeric_limits<double>::infinity();
    if (ratio > worst) {
      worst = ratio;
      worst_head = head;
    }
  }
  const double total = std::sqrt(all_error / all_norm);
  std::printf("%-7s %.2e, worst head %.2e, units %d: %s\n", total <= 4e-3 && worst <= 1e-2 ? "ok" : "WRONG", total,
              worst, fixture.units(), Describe(c).c_str());
  EXPECT_TRUE(total <= 4e-3) << total;
  EXPECT_TRUE(worst <= 1e-2) << worst << " at row " << worst_head / static_cast<size_t>(c.q_heads) << " head "
                             << worst_head % static_cast<size_t>(c.q_heads);
  EXPECT_TRUE(fixture.CountersAreZero());
}

DecodeCase Llama1b(std::vector<int32_t> lengths) {
  DecodeCase c;
  c.lengths = std::move(lengths);
  return c;
}
DecodeCase Llama3b(std::vector<int32_t> lengths) {
  DecodeCase c = Llama1b(std::move(lengths));
  c.q_heads = 24;
  c.head_dim = 128;
  return c;
}

TEST(DecodeAttention, OneToken) {
  Check(Llama1b({1}));
  Check(Llama3b({1}));
}

TEST(DecodeAttention, LengthsAroundBlocksAndTiles) {
  std::vector<int32_t> lengths;
  for (int n : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513}) {
    lengths.push_back(n);
  }
  for (int block_tokens : {16, 32, 48, 64, 256}) {
    for (int chunk : {0, 128, 512}) {
      DecodeCase c = Llama1b(lengths);
      c.block_tokens = block_tokens;
      c.fixed_chunk = chunk;
      Check(c);
      c = Llama3b(lengths);
      c.block_tokens = block_tokens;
      c.fixed_chunk = chunk;
      Check(c);
    }
  }
}

TEST(DecodeAttention, EveryHeadShape) {
  for (int group = 1; group <= 8; ++group) {
    for (int kv_heads : {1, 2, 3, 8, 16}) {
      for (int dim : {64, 128}) {
        DecodeCase c = Llama1b({1, 130, 777, 40});
        c.q_heads = group * kv_heads;
        c.kv_heads = kv_heads;
        c.head_dim = dim;
        c.seed = static_cast<uint64_t>(group * 100 + kv_heads);
        Check(c);
      }
    }
  }
}

TEST(DecodeAttention, Clusters) {
  for (int cluster : {2, 4, 8}) {
    for (int chunk : {0, 128, 1024}) {
      DecodeCase c = Llama1b({1, 16, 17, 127, 128, 129, 1023, 1024, 1025, 2500, 0, 33});
      c.cluster = cluster;
      c.fixed_chunk = chunk;
      Check(c);
      c.q_heads = 24;
      c.head_dim = 128;
      Check(c);
      c.kv_heads = 3;
      Check(c);
      c.q_heads = 14;
      c.kv_heads = 2;
      c.head_dim = 64;
      Check(c);
    }
  }
}

TEST(DecodeAttention, SeveralHeadsABlock) {
  for (int heads : {2, 4, 8}) {
    for (int chunk : {0, 128, 1024}) {
      for (int combine_kernel : {0, 1}) {
        DecodeCase c = Llama1b({1, 16, 17, 127, 128, 129, 1023, 1024, 1025, 2500, 0, 33});
        c.heads = heads;
        c.fixed_chunk = chunk;
        c.combine_kernel = combine_kernel;
        Check(c);
        c.q_heads = 56;  // groups of 7
        Check(c);
        if (heads > 4) continue;  // blocks of 4 warps
        c.q_heads = 24;
        c.head_dim = 128;
        Check(c);
      }
    }
  }
}

TEST(DecodeAttention, OneLongAmongShort) {
  std::vector<int32_t> lengths(40, 1);
  lengths[17] = 32768;
  DecodeCase c = Llama1b(lengths);
  c.layers = 1;
  Check(c);
  c.fixed_chunk = 512;
  Check(c);
}

TEST(DecodeAttention, LongContextAlone) {
  for (int length : {1024, 4096, 8191, 32768}) {
    DecodeCase c = Llama1b({length});
    c.layers = 1;
    Check(c);
  }
  DecodeCase c = Llama3b({16385});
  c.layers = 1;
  Check(c);
}

TEST(DecodeAttention, EmptyRowsAndUnits) {
  Check(Llama1b({0, 5, 0, 0, 300, 0}));
  std::vector<int32_t> lengths(256, 0);
  lengths[3] = 1000;
  DecodeCase c = Llama3b(lengths);
  c.fixed_chunk = 256;
  Check(c);
}

TEST(DecodeAttention, SharedPrefix) {
  DecodeCase c = Llama1b({500, 501, 640, 300, 481});
  c.shared_blocks = 18;
  Check(c);
}

TEST(DecodeAttention, PoolBeyondFourGigabytes) {
  DecodeCase c = Llama1b({700, 33});
  c.spare_blocks = 100000;  // 2 layers: 64 KiB a block, 6.5 GB
  Check(c);
}

TEST(DecodeAttention, RandomBatches) {
  std::mt19937 random(7);
  for (int round = 0; round < 12; ++round) {
    std::vector<int32_t> lengths(1 + random() % 60);
    for (int32_t& n : lengths) n = static_cast<int32_t>(random() % (random() % 4 == 0 ? 3000 : 300));
    lengths[0] = 1 + static_cast<int32_t>(random() % 1000);
    DecodeCase c = round % 2 == 0 ? Llama1b(lengths) : Llama3b(lengths);
    c.fixed_chunk = round % 3 == 0 ? 256 : 0;
    c.seed = static_cast<uint64_t>(round);
    Check(c);
  }
}

TEST(DecodeAttention, HundredRunsAreBitwiseEqual) {
  for (bool pdl : {false, true}) {
    DecodeFixture fixture(Llama1b({3000, 17, 260, 1025, 5000, 64}));
    const std::vector<uint16_t> first = fixture.Run(pdl);
    for (int i = 0; i < 100; ++i) ASSERT_EQ(fixture.Run(pdl), first) << "run " << i;
    DecodeFixture large(Llama3b({2047, 4100, 1}));
    const std::vector<uint16_t> first_large = large.Run(pdl);
    for (int i = 0; i < 100; ++i) ASSERT_EQ(large.Run(pdl), first_large) << "run " << i;
    DecodeCase c = Llama1b({2047, 4100, 1, 777});
    c.cluster = 4;
    c.fixed_chunk = 1024;
    DecodeFixture clusters(c);
    const std::vector<uint16_t> first_clusters = clusters.Run(pdl);
    for (int i = 0; i < 100; ++i) ASSERT_EQ(clusters.Run(pdl), first_clusters) << "run " << i;
  }
}

// Whether the last block or a second kernel adds up the parts, the bits are the same.
TEST(DecodeAttention, BothCombinesGiveTheSameBits) {
  for (const DecodeCase& base : {Llama1b({3000, 17, 260, 1025, 0, 5000, 64}), Llama3b({2047, 4100, 1})}) {
    for (int chunk : {128, 512}) {
      DecodeCase c = base;
      c.fixed_chunk = chunk;
      c.combine_kernel = 0;
      const std::vector<uint16_t> by_last_block = DecodeFixture(c).Run();
      c.combine_kernel = 1;
      DecodeFixture fixture(c);
      for (int i = 0; i < 20; ++i) ASSERT_EQ(fixture.Run(i % 2 == 1), by_last_block) << Describe(c);
      Check(c);
      EXPECT_EQ(fixture.RunAfterLateWriter(), by_last_block) << Describe(c);
    }
  }
}

// What is read before the wait must not be what the kernel before writes.
TEST(DecodeAttention, WaitsForQAndTheNewestRow) {
  DecodeCase clusters = Llama1b({1, 1024, 600});
  clusters.cluster = 8;
  for (const DecodeCase& c : {Llama1b({1}), Llama1b({16, 17, 700, 1024, 31}), Llama1b({5000}), Llama3b({1, 129, 640}),
                              Llama3b({3000}), clusters}) {
    DecodeFixture fixture(c);
    const std::vector<uint16_t> want = fixture.Run();
    for (int i = 0; i < 10; ++i) ASSERT_EQ(fixture.RunAfterLateWriter(), want) << Describe(c);
  }
}

// With a fixed chunk a row's bits do not depend on the rest of the batch: the other rows are empty, short or long,
// while row 0 keeps its q and KV (the fixture draws q for all rows first, then KV row by row).
TEST(DecodeAttention, FixedChunkDoesNotDependOnTheBatch) {
  for (bool large : {false, true}) {
    for (int length : {100, 513, 2500}) {
      std::vector<std::vector<uint16_t>> rows;
      for (int others : {0, 1, 40, 3000}) {
        std::vector<int32_t> lengths(9, others);
        lengths[0] = length;
        DecodeCase c = large ? Llama3b(lengths) : Llama1b(lengths);
        c.fixed_chunk = 512;
        DecodeFixture fixture(c);
        std::vector<uint16_t> out = fixture.Run();
        out.resize(static_cast<size_t>(c.q_heads * c.head_dim));
        rows.push_back(std::move(out));
      }
      for (const auto& row : rows) EXPECT_EQ(row, rows[0]) << "length " << length;
    }
  }
}

TEST(DecodeAttention, RefusesWhatItCannotDo) {
  DecodeFixture fixture(Llama1b({10}));
  const auto refuse = [&](auto change) {
    DecodeAttentionParams p = fixture.Params();
    change(p);
    return DecodeAttention(p, LaunchContext()).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refuse([](auto& p) { p.kv.head_dim = 96; }));
  EXPECT_TRUE(refuse([](auto& p) { p.kv.block_tokens = 24; }));
  EXPECT_TRUE(refuse([](auto& p) { p.q_heads = 72; }));
  EXPECT_TRUE(refuse([](auto& p) { p.q_heads = 33; }));
  EXPECT_TRUE(refuse([](auto& p) { p.workspace_bytes = 100; }));
}

}  // namespace
}  // namespace agentserve::kernels::cuda
