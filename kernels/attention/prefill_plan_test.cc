#include "kernels/attention/prefill_plan.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kernels/attention/attention_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

TEST(PrefillPlan, CoversEveryRowOnceLongestFirst) {
  const std::vector<int32_t> cu = {0, 1, 1000, 1000, 1192, 1320}, starts = {7, 0, 3, 5000, 64};
  for (const int head_dim : {64, 128}) {
    const int rows = PrefillTileRows(head_dim), sequences = static_cast<int>(starts.size());
    std::vector<int32_t> tiles(MaxPrefillTiles(cu.back(), sequences, head_dim));
    const int count = PlanPrefill(cu.data(), starts.data(), sequences, head_dim, tiles.data());
    ASSERT_LE(count, static_cast<int>(tiles.size()));
    std::set<int> covered;
    int before = 1 << 30;
    for (int i = 0; i < count; ++i) {
      const int s = PrefillTileSequence(tiles[i]);
      const PrefillRows extent = PrefillTileExtent(cu[s + 1] - cu[s], PrefillTileIndex(tiles[i]), rows);
      EXPECT_LE(extent.end - extent.begin, rows);
      for (int row = extent.begin; row < extent.end; ++row) EXPECT_TRUE(covered.insert(cu[s] + row).second);
      const int length = starts[s] + extent.end;
      EXPECT_LE(length, before);
      before = length;
    }
    EXPECT_EQ(covered.size(), static_cast<size_t>(cu.back()));
  }
}

TEST(PrefillPlan, LimitHoldsForTheWorstSplit) {
  std::vector<int32_t> cu = {0}, starts;
  for (int i = 0; i < 50; ++i) {
    cu.push_back(cu.back() + 1 + i * 37 % 400);
    starts.push_back(i);
  }
  for (const int head_dim : {64, 128}) {
    std::vector<int32_t> tiles(MaxPrefillTiles(cu.back(), 50, head_dim));
    EXPECT_LE(PlanPrefill(cu.data(), starts.data(), 50, head_dim, tiles.data()), static_cast<int>(tiles.size()));
  }
}

TEST(PrefillPlan, Nothing) {
  const int32_t cu[] = {0, 0}, starts[] = {0};
  int32_t tile;
  EXPECT_EQ(PlanPrefill(cu, starts, 1, 64, &tile), 0);
  EXPECT_EQ(PlanPrefill(cu, starts, 0, 64, &tile), 0);
}

}  // namespace
}  // namespace agentserve::kernels::cuda
