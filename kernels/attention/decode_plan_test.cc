#include "kernels/attention/decode_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSms = 132;

struct Plan {
  DecodePlanLimits limits;
  std::vector<DecodeUnit> units;
  std::vector<int32_t> splits;
  int count = 0;
};

Plan Make(const std::vector<int32_t>& lengths, int block_tokens, int fixed_chunk, int kv_heads = 8) {
  Plan plan;
  const int rows = static_cast<int>(lengths.size());
  const int longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  plan.limits = DecodeLimits(rows, longest, kSms, fixed_chunk, kv_heads);
  plan.units.assign(static_cast<size_t>(plan.limits.max_units), DecodeUnit{7, 7, 7, 7});
  plan.splits.assign(lengths.size() + 1, -1);
  plan.count = PlanDecode(lengths.data(), rows, block_tokens, kSms, fixed_chunk, plan.limits, plan.units.data(),
                          plan.splits.data());
  return plan;
}

// Every position of every row is in exactly one unit, in order; what is left of the units is empty.
void CheckCovers(const Plan& plan, const std::vector<int32_t>& lengths, int block_tokens) {
  ASSERT_GE(plan.count, 0);
  ASSERT_LE(plan.count, plan.limits.max_units);
  size_t unit = 0;
  for (size_t row = 0; row < lengths.size(); ++row) {
    ASSERT_EQ(plan.splits[row], static_cast<int32_t>(unit));
    int32_t position = 0, split = 0;
    while (position < lengths[row]) {
      const DecodeUnit& u = plan.units[unit++];
      ASSERT_EQ(u.row, static_cast<int32_t>(row));
      ASSERT_EQ(u.begin, position);
      ASSERT_EQ(u.begin % block_tokens, 0);
      ASSERT_GT(u.end, u.begin);
      ASSERT_EQ(u.split, split++);
      position = u.end;
    }
    ASSERT_EQ(position, lengths[row]);
  }
  ASSERT_EQ(plan.splits.back(), static_cast<int32_t>(unit));
  ASSERT_EQ(plan.count, static_cast<int>(unit));
  for (; unit < plan.units.size(); ++unit) ASSERT_EQ(plan.units[unit].row, -1);
}

TEST(DecodePlan, CoversEveryPositionOnce) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> lengths(random() % 70);
    for (int32_t& n : lengths) n = static_cast<int32_t>(random() % (random() % 5 == 0 ? 40000 : 500));
    const int block_tokens = 16 * (1 + static_cast<int>(random() % 8));
    const int chunk = random() % 2 == 0 ? 0 : 100 + static_cast<int>(random() % 1000);
    const int kv_heads = 1 + static_cast<int>(random() % 16);
    CheckCovers(Make(lengths, block_tokens, chunk, kv_heads), lengths, block_tokens);
  }
}

TEST(DecodePlan, EdgeLengths) {
  const std::vector<int32_t> lengths = {1, 0, 15, 16, 17, 0, 511, 512, 513, 32768, 1, 0};
  for (int chunk : {0, 16, 512}) CheckCovers(Make(lengths, 16, chunk), lengths, 16);
  EXPECT_EQ(Make({}, 16, 0).count, 0);
  EXPECT_EQ(Make({0, 0}, 16, 0).count, 0);
}

TEST(DecodePlan, FixedChunkDoesNotDependOnTheBatch) {
  const Plan alone = Make({2000}, 16, 512);
  const Plan batch = Make({2000, 9, 7777, 512}, 16, 512);
  ASSERT_EQ(alone.count, 4);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(alone.units[i].begin, static_cast<int32_t>(512 * i));
    EXPECT_EQ(alone.units[i].begin, batch.units[i].begin);
    EXPECT_EQ(alone.units[i].end, batch.units[i].end);
  }
}

TEST(DecodePlan, FixedChunkIsRoundedUpToBlocks) { EXPECT_EQ(Make({1000}, 64, 100).units[0].end, 128); }

TEST(DecodePlan, TooManyUnitsForTheLimits) {
  const DecodePlanLimits limits = DecodeLimits(4, 4096, kSms);
  std::vector<DecodeUnit> units(static_cast<size_t>(limits.max_units));
  std::vector<int32_t> splits(5);
  const std::vector<int32_t> lengths(4, 4096);
  EXPECT_EQ(PlanDecode(lengths.data(), 4, 16, kSms, 16, limits, units.data(), splits.data()), -1);
}

TEST(DecodePlan, OneSequenceIsSpreadOverTheGpu) {
  // A cluster of 8 for each of 8 heads; split only when that is too few blocks.
  EXPECT_EQ(DecodeLimits(1, 1 << 17, kSms).cluster, 8);
  EXPECT_EQ(Make({1024}, 16, 0).count, 1);
  EXPECT_EQ(Make({32768}, 16, 0).count, 3);
  // A head alone needs more units.
  EXPECT_GE(Make({32768}, 16, 0, 1).count, 8);
  EXPECT_EQ(DecodeLimits(1, 1 << 17, kSms, 512).cluster, 1);
}

TEST(DecodePlan, LargerBatchesHaveSmallerClusters) {
  int last = 16;
  for (int rows = 1; rows <= 512; ++rows) {
    const int cluster = DecodeLimits(rows, 4096, kSms).cluster;
    EXPECT_LE(cluster, last);
    EXPECT_EQ(cluster & (cluster - 1), 0);
    EXPECT_LE(rows <= 8 ? rows * 8 * cluster : 0, 2 * kSms) << "blocks of an unsplit batch run at once";
    last = cluster;
  }
  EXPECT_EQ(last, 1);
}

TEST(DecodePlan, OneLongSequenceAmongShortOnesIsSplit) {
  std::vector<int32_t> lengths(20, 100);
  lengths[5] = 30000;
  const Plan plan = Make(lengths, 16, 0);
  EXPECT_GE(plan.splits[6] - plan.splits[5], 12);
}

TEST(DecodePlan, LargeBatchesAreBalanced) {
  for (int rows : {33, 40, 64, 100, 256}) {
    const std::vector<int32_t> lengths(static_cast<size_t>(rows), 4096);
    const Plan plan = Make(lengths, 16, 0);
    std::vector<int64_t> load(33, 0);
    for (int i = 0; i < plan.count; ++i) {
      const DecodeUnit& u = plan.units[static_cast<size_t>(i)];
      load[static_cast<size_t>(i % 33)] += u.end - u.begin;
    }
    const double even = 4096.0 * rows / 33;
    EXPECT_LE(static_cast<double>(*std::max_element(load.begin(), load.end())), 1.35 * even) << rows << " rows";
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda
