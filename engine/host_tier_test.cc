#include "engine/host_tier.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"

namespace agentserve::engine {
namespace {

HostTier::Block Block(uint64_t name, uint64_t parent = 0, uint32_t worth = 1000) {
  HostTier::Block b;
  b.hash = {1, name};
  if (parent != 0) b.parent = {1, parent};
  b.digest = name;
  b.tokens = 16;
  b.worth = worth;
  return b;
}

std::vector<base::Hash128> Names(std::initializer_list<uint64_t> names) {
  std::vector<base::Hash128> out;
  for (uint64_t n : names) out.push_back({1, n});
  return out;
}

bool Store(HostTier* tier, const HostTier::Block& block) {
  const std::optional<SlotId> slot = tier->BeginStore(block);
  if (slot) tier->EndStore(*slot, true);
  tier->CheckInvariants();
  return slot.has_value();
}

TEST(HostTier, KeepsPrefixesOnly) {
  HostTier tier(4);
  EXPECT_FALSE(Store(&tier, Block(2, 1))) << "what is before it is not here";
  EXPECT_TRUE(Store(&tier, Block(1)));
  EXPECT_TRUE(Store(&tier, Block(2, 1)));
  EXPECT_FALSE(Store(&tier, Block(2, 1))) << "here already";
  EXPECT_EQ(tier.PrefixLength(Names({1, 2, 3})), 2u);
  EXPECT_EQ(tier.PrefixLength(Names({2})), 1u);
  // The tail goes first, although it was used last.
  EXPECT_TRUE(Store(&tier, Block(10)));
  EXPECT_TRUE(Store(&tier, Block(11)));
  EXPECT_TRUE(Store(&tier, Block(12)));
  EXPECT_EQ(tier.PrefixLength(Names({1, 2})), 1u);
  EXPECT_EQ(tier.evictions(HostTier::Reason::kValue), 1u);
  EXPECT_EQ(tier.evictions(HostTier::Reason::kOrphan), 0u);
}

TEST(HostTier, WhatIsWorthMoreStaysLonger) {
  HostTier tier(3);
  ASSERT_TRUE(Store(&tier, Block(1, 0, 4000)));
  ASSERT_TRUE(Store(&tier, Block(2, 0, 1000)));
  ASSERT_TRUE(Store(&tier, Block(3, 0, 1000)));
  int survived = 0;
  for (uint64_t n = 10; n < 40 && tier.Has({1, 1}); ++n, ++survived) Store(&tier, Block(n, 0, 1000));
  EXPECT_GE(survived, 4) << "four times the worth, about three rounds more";
  EXPECT_LE(survived, 12) << "but not for ever";
  EXPECT_FALSE(tier.Accepts(0) && !tier.Accepts(1000));
}

TEST(HostTier, SlotsUnderIoAreNotGivenAway) {
  HostTier tier(2);
  ASSERT_TRUE(Store(&tier, Block(1)));
  const std::optional<SlotId> storing = tier.BeginStore(Block(2, 1));
  ASSERT_TRUE(storing);
  EXPECT_EQ(tier.PrefixLength(Names({1, 2})), 1u) << "not before it is complete";
  EXPECT_FALSE(tier.BeginStore(Block(5)).has_value()) << "one is a parent, one is being written";
  EXPECT_EQ(tier.Drop(Names({1, 2})), 2u);
  EXPECT_EQ(tier.doomed(), 1u);
  EXPECT_TRUE(Store(&tier, Block(5)));
  tier.EndStore(*storing, true);
  EXPECT_EQ(tier.doomed(), 0u);
  EXPECT_FALSE(tier.Has({1, 2})) << "dropped while it was written";
  tier.CheckInvariants();
}

TEST(HostTier, ABadBlockTakesWhatFollowsAlong) {
  HostTier tier(8);
  for (uint64_t n = 1; n <= 4; ++n) ASSERT_TRUE(Store(&tier, Block(n, n - 1)));
  ASSERT_TRUE(Store(&tier, Block(20, 2)));
  const auto first = tier.BeginLoad({1, 1}), second = tier.BeginLoad({1, 2}), third = tier.BeginLoad({1, 3});
  tier.EndLoad(*first, false);
  tier.EndLoad(*second, true);
  tier.CheckInvariants();
  EXPECT_EQ(tier.stored(), 1u);
  EXPECT_EQ(tier.doomed(), 1u) << "block 3 is still read";
  tier.EndLoad(*third, false);
  EXPECT_EQ(tier.free(), 7u);
  EXPECT_EQ(tier.evictions(HostTier::Reason::kCorrupt), 1u);
  EXPECT_EQ(tier.evictions(HostTier::Reason::kOrphan), 3u);
  tier.CheckInvariants();
}

TEST(HostTier, DropSparesWhatOthersContinue) {
  HostTier tier(8);
  for (uint64_t n = 1; n <= 4; ++n) ASSERT_TRUE(Store(&tier, Block(n, n - 1)));
  ASSERT_TRUE(Store(&tier, Block(20, 2)));
  EXPECT_EQ(tier.Drop(Names({1, 2, 3, 4})), 2u);
  EXPECT_EQ(tier.PrefixLength(Names({1, 2, 20})), 3u);
}

TEST(HostTier, NoneKeepsNothing) {
  HostTier tier(0);
  EXPECT_FALSE(Store(&tier, Block(1)));
  EXPECT_EQ(tier.PrefixLength(Names({1})), 0u);
}

// Against the plainest model: the set of names that came and did not go, by the changes told.
TEST(HostTier, RandomUse) {
  uint64_t stored = 0, evicted = 0, corrupt = 0;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    base::SplitMix64 rng(seed);
    HostTier tier(static_cast<uint32_t>(1 + rng.Below(12)));
    std::vector<SlotId> stores, loads;
    std::map<base::Hash128, SlotId> model;
    for (int op = 0; op < 300; ++op) {
      // Names 1..30 form a tree: the parent of n is n / 3.
      const uint64_t n = 1 + rng.Below(30);
      std::vector<base::Hash128> chain;
      for (uint64_t i = n; i > 0; i /= 3) chain.insert(chain.begin(), base::Hash128{1, i});
      switch (rng.Below(8)) {
        case 0:
        case 1:
        case 2:
          if (const auto slot = tier.BeginStore(Block(n, n / 3, static_cast<uint32_t>(rng.Below(5000))))) {
            stores.push_back(*slot);
          }
          break;
        case 3:
          if (!stores.empty()) {
            std::swap(stores[rng.Below(stores.size())], stores.back());
            tier.EndStore(stores.back(), rng.Below(5) > 0);
            stores.pop_back();
          }
          break;
        case 4:
          if (const auto slot = tier.BeginLoad({1, n})) loads.push_back(*slot);
          break;
        case 5:
          if (!loads.empty()) {
            std::swap(loads[rng.Below(loads.size())], loads.back());
            tier.EndLoad(loads.back(), rng.Below(10) == 0);
            loads.pop_back();
          }
          break;
        case 6:
          tier.SetWorth(chain, static_cast<uint32_t>(rng.Below(5000)));
          break;
        default:
          if (rng.Below(3) == 0) tier.Drop(chain);
      }
      tier.CheckInvariants();
      for (const HostTier::Change& c : tier.TakeChanges()) {
        if (c.stored) {
          EXPECT_TRUE(model.emplace(c.block.hash, c.slot).second) << "seed " << seed;
          ++stored;
        } else {
          EXPECT_EQ(model.erase(c.block.hash), 1u) << "seed " << seed;
          ++evicted;
        }
      }
      ASSERT_EQ(model.size(), tier.stored()) << "seed " << seed;
      for (const auto& [name, slot] : model) ASSERT_EQ(tier.block(slot).hash, name);
      uint32_t known = 0;
      while (known < chain.size() && model.contains(chain[known])) ++known;
      ASSERT_EQ(tier.PrefixLength(chain), known) << "seed " << seed;
    }
    for (SlotId s : stores) tier.EndStore(s, true);
    for (SlotId s : loads) tier.EndLoad(s, false);
    EXPECT_EQ(tier.doomed() + tier.storing(), 0u);
    corrupt += tier.evictions(HostTier::Reason::kCorrupt);
    tier.CheckInvariants();
  }
  EXPECT_GT(stored, 2000u);
  EXPECT_GT(evicted, 1000u);
  EXPECT_GT(corrupt, 200u);
}

}  // namespace
}  // namespace agentserve::engine
