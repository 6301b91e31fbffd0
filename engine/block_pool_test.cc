#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "engine/block_hash.h"

namespace agentserve::engine {
namespace {

std::vector<base::Hash128> Chain(uint64_t salt, size_t n) {
  std::vector<base::Hash128> chain;
  for (size_t i = 0; i < n; ++i) chain.push_back({salt, i + 1});
  return chain;
}

void SealAll(BlockPool* pool, const BlockTable& table, const std::vector<base::Hash128>& chain, size_t from = 0) {
  for (size_t i = from; i < chain.size(); ++i) pool->Seal(table[i], {chain[i], 100 + i, 16});
}

TEST(BlockHash, DependsOnSaltLayoutParentAndTokens) {
  const std::vector<TokenId> ids = {1, 2, 3, 4};
  const base::Hash128 root = ChainRoot("salt", 1);
  EXPECT_NE(root, ChainRoot("salu", 1));
  EXPECT_NE(root, ChainRoot("salt", 2));
  const base::Hash128 a = ChainNext(root, ids);
  EXPECT_NE(a, ChainNext(ChainRoot("salu", 1), ids));
  EXPECT_NE(a, ChainNext(root, std::vector<TokenId>{1, 2, 3, 5}));
  std::vector<base::Hash128> chain;
  ExtendChain(root, std::vector<TokenId>{1, 2, 3, 4, 1, 2, 3, 4, 9}, 4, &chain);
  ASSERT_EQ(chain.size(), 2u);
  EXPECT_EQ(chain[0], a);
  EXPECT_EQ(chain[1], ChainNext(a, ids));
  // The format is part of the wire: other processes compute the same names.
  EXPECT_EQ(a.Hex(), ChainNext(ChainRoot("salt", 1), ids).Hex());
}

TEST(BlockPool, WalksTheStatesAndBumpsEpochs) {
  BlockPool pool({.num_blocks = 2, .prefix_cache = true});
  const auto chain = Chain(1, 1);
  BlockId first;
  {
    BlockTable table(&pool);
    ASSERT_TRUE(pool.Allocate(1, &table));
    first = table[0];
    EXPECT_EQ(pool.state(first), BlockPool::State::kWriting);
    EXPECT_EQ(pool.epoch(first), Epoch(1));
    SealAll(&pool, table, chain);
    EXPECT_EQ(pool.held(), 1u);
    EXPECT_EQ(pool.digest(first), 100u);
  }
  EXPECT_EQ(pool.cached(), 1u);
  EXPECT_EQ(pool.available(), 2u);
  BlockTable all(&pool);
  ASSERT_TRUE(pool.Allocate(2, &all));
  EXPECT_EQ(pool.epoch(first), Epoch(2));
  EXPECT_EQ(pool.PrefixLength(chain), 0u);
  const auto changes = pool.TakeChanges();
  std::vector<BlockChange::Kind> kinds;
  for (const auto& c : changes) kinds.push_back(c.kind);
  using Kind = BlockChange::Kind;
  EXPECT_EQ(kinds, (std::vector<Kind>{Kind::kOpened, Kind::kSealed, Kind::kDropped, Kind::kOpened, Kind::kOpened}));
  EXPECT_EQ(changes[2].epoch, Epoch(1));
  EXPECT_FALSE(pool.Allocate(1, &all));
  pool.CheckInvariants();
}

TEST(BlockPool, UnsealedBlocksAreNeverReused) {
  BlockPool pool({.num_blocks = 2, .prefix_cache = true});
  {
    BlockTable table(&pool);
    ASSERT_TRUE(pool.Allocate(2, &table));
  }
  EXPECT_EQ(pool.free(), 2u);
  EXPECT_EQ(pool.cached(), 0u);
}

TEST(BlockPool, EvictsLeastRecentlyUsedAndTailsFirst) {
  BlockPool pool({.num_blocks = 4, .prefix_cache = true});
  const auto old_chain = Chain(1, 2), new_chain = Chain(2, 2);
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(2, &t));
    SealAll(&pool, t, old_chain);
  }
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(2, &t));
    SealAll(&pool, t, new_chain);
  }
  {
    BlockTable t(&pool);
    EXPECT_EQ(pool.MatchPrefix(old_chain, &t), 2u);
  }  // use the older one again
  BlockTable t(&pool);
  ASSERT_TRUE(pool.Allocate(1, &t));
  EXPECT_EQ(pool.PrefixLength(new_chain), 1u);
  EXPECT_EQ(pool.PrefixLength(old_chain), 2u);
  ASSERT_TRUE(pool.Allocate(2, &t));
  EXPECT_EQ(pool.PrefixLength(new_chain), 0u);
  EXPECT_EQ(pool.PrefixLength(old_chain), 1u);
}

TEST(BlockPool, PinsYieldLastAndExpire) {
  BlockPool pool({.num_blocks = 4, .prefix_cache = true});
  const auto a = Chain(1, 2), b = Chain(2, 2);
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(2, &t));
    SealAll(&pool, t, a);
  }
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(2, &t));
    SealAll(&pool, t, b);
  }
  EXPECT_EQ(pool.PinPrefix(a, 1000), 2u);
  EXPECT_EQ(pool.PinPrefix(b, 500), 0u) << "at most half of the pool";
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(2, &t));
  }
  EXPECT_EQ(pool.PrefixLength(a), 2u);
  EXPECT_EQ(pool.PrefixLength(b), 0u);
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(3, &t));
  }  // rather break a pin than stall
  EXPECT_EQ(pool.pinned(), 1u);
  pool.ExpirePins(1000);
  EXPECT_EQ(pool.pinned(), 0u);
  pool.CheckInvariants();
}

TEST(BlockPool, OneNameOneBlock) {
  BlockPool pool({.num_blocks = 2, .prefix_cache = true});
  const auto chain = Chain(1, 1);
  BlockTable t(&pool);
  ASSERT_TRUE(pool.Allocate(2, &t));
  pool.Seal(t[0], {chain[0], 1, 16});
  pool.Seal(t[1], {chain[0], 1, 16});
  pool.CheckInvariants();
  t.Clear();
  EXPECT_EQ(pool.cached(), 1u);
  EXPECT_EQ(pool.free(), 1u);
}

TEST(BlockPool, WithoutPrefixCacheNothingIsKept) {
  BlockPool pool({.num_blocks = 2, .prefix_cache = false});
  const auto chain = Chain(1, 2);
  {
    BlockTable t(&pool);
    ASSERT_TRUE(pool.Allocate(2, &t));
    SealAll(&pool, t, chain);
  }
  EXPECT_EQ(pool.free(), 2u);
}

TEST(BlockPoolDeath, MisuseIsCaught) {
  BlockPool pool({.num_blocks = 2, .prefix_cache = true});
  BlockTable t(&pool);
  ASSERT_TRUE(pool.Allocate(1, &t));
  pool.Seal(t[0], {});
  EXPECT_DEATH(pool.Seal(t[0], {}), "nobody writes");
}

// Seals like SealAll, and says what is before each block.
void SealLinked(BlockPool* pool, const BlockTable& table, const std::vector<base::Hash128>& chain, size_t from = 0) {
  for (size_t i = from; i < chain.size(); ++i) {
    pool->Seal(table[i], {chain[i], 100 + i, 16, i > 0 ? chain[i - 1] : base::Hash128{}});
  }
}

void Cache(BlockPool* pool, const std::vector<base::Hash128>& chain) {
  BlockTable t(pool);
  const uint32_t have = pool->MatchPrefix(chain, &t);
  ASSERT_TRUE(pool->Allocate(static_cast<uint32_t>(chain.size()) - have, &t));
  SealLinked(pool, t, chain, have);
}

void Evict(BlockPool* pool, uint32_t blocks) {
  BlockTable t(pool);
  ASSERT_TRUE(pool->Allocate(pool->free() + blocks, &t));
  pool->CheckInvariants();
}

TEST(BlockPool, AParentOutlivesItsChildren) {
  BlockPool pool({.num_blocks = 6, .prefix_cache = true});
  auto a = Chain(1, 3), b = a;
  b[2] = {7, 7};
  Cache(&pool, a);
  Cache(&pool, b);  // a and b share two blocks
  Cache(&pool, Chain(2, 2));
  Evict(&pool, 1);
  EXPECT_EQ(pool.PrefixLength(a), 2u) << "the oldest leaf";
  Evict(&pool, 1);
  EXPECT_EQ(pool.PrefixLength(b), 2u) << "the next oldest leaf; what both share is worth more than a newer leaf";
  Evict(&pool, 2);
  EXPECT_EQ(pool.PrefixLength(Chain(2, 2)), 0u);
  EXPECT_EQ(pool.PrefixLength(a), 2u);
}

TEST(BlockPool, FinalGoesFirstAndWorthDecidesTheRest) {
  BlockPool pool({.num_blocks = 6, .prefix_cache = true});
  const auto old_rich = Chain(1, 2), poor = Chain(2, 2), done = Chain(3, 2);
  Cache(&pool, old_rich);
  Cache(&pool, poor);
  Cache(&pool, done);
  pool.SetWorth(old_rich, 4 * BlockPool::kBaseWorth);
  EXPECT_EQ(pool.MakeFinal(done), 2u);
  Evict(&pool, 2);
  EXPECT_EQ(pool.PrefixLength(done), 0u);
  EXPECT_EQ(pool.evictions(BlockPool::Reason::kFinal), 2u);
  Evict(&pool, 2);
  EXPECT_EQ(pool.PrefixLength(poor), 0u) << "the older one is worth four times as much";
  EXPECT_EQ(pool.PrefixLength(old_rich), 2u);
}

TEST(BlockPool, FinalSparesWhatOthersShareOrUse) {
  BlockPool pool({.num_blocks = 8, .prefix_cache = true});
  auto a = Chain(1, 4), b = a;
  b[2] = {7, 7};
  b.resize(3);
  Cache(&pool, a);
  Cache(&pool, b);
  EXPECT_EQ(pool.MakeFinal(a), 2u) << "the first two blocks lead to b as well";
  BlockTable t(&pool);
  EXPECT_EQ(pool.MatchPrefix(a, &t), 4u) << "asked for after all: not final any more";
  t.Clear();
  Evict(&pool, 1);
  EXPECT_EQ(pool.evictions(BlockPool::Reason::kFinal), 0u);
}

TEST(BlockPool, ACopyInHostMemoryMakesABlockCheapToLose) {
  BlockPool pool({.num_blocks = 4, .prefix_cache = true});
  const auto older = Chain(1, 2), newer = Chain(2, 2);
  Cache(&pool, older);
  Cache(&pool, newer);
  for (const auto& name : newer) pool.SetClean(name, true);
  Evict(&pool, 2);
  EXPECT_EQ(pool.PrefixLength(newer), 0u);
  EXPECT_EQ(pool.PrefixLength(older), 2u);
}

TEST(BlockPool, UnpinSparesWhatOthersShare) {
  BlockPool pool({.num_blocks = 12, .prefix_cache = true});
  auto a = Chain(1, 4), b = a;
  b[2] = {7, 7};
  b.resize(3);
  Cache(&pool, a);
  Cache(&pool, b);
  EXPECT_EQ(pool.PinPrefix(a, 1000), 4u);
  EXPECT_EQ(pool.PinPrefix(b, 500), 3u);
  EXPECT_EQ(pool.pinned(), 5u);
  pool.UnpinTail(a);
  EXPECT_EQ(pool.pinned(), 3u);
}

// Trees of prompts under all that can be done to a pool.
TEST(BlockPool, RandomTreesKeepInvariants) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    base::SplitMix64 rng(seed);
    BlockPool pool({.num_blocks = static_cast<uint32_t>(4 + rng.Below(20)), .prefix_cache = true});
    std::vector<BlockTable> tables;
    for (int op = 0; op < 300; ++op) {
      std::vector<base::Hash128> chain;
      for (uint64_t n = 1 + rng.Below(60); n > 0; n /= 2) chain.insert(chain.begin(), base::Hash128{1, n});
      switch (rng.Below(8)) {
        case 0:
        case 1:
        case 2: {
          BlockTable t(&pool);
          const uint32_t matched = rng.Below(4) ? pool.MatchPrefix(chain, &t) : 0;  // 0: blocks of equal names
          if (!pool.Allocate(static_cast<uint32_t>(chain.size()) - matched, &t)) break;
          SealLinked(&pool, t, chain, matched);
          tables.push_back(std::move(t));
          break;
        }
        case 3:
          if (!tables.empty()) {
            std::swap(tables[rng.Below(tables.size())], tables.back());
            tables.pop_back();
          }
          break;
        case 4:
          pool.PinPrefix(chain, static_cast<base::TimeNs>(op + 1 + rng.Below(40)));
          pool.ExpirePins(op);
          break;
        case 5:
          pool.SetWorth(chain, static_cast<uint32_t>(rng.Below(9000)));
          break;
        case 6:
          pool.SetClean(chain.back(), rng.Below(2));
          if (rng.Below(2)) pool.UnpinTail(chain);
          break;
        default:
          pool.MakeFinal(chain);
      }
      ASSERT_NO_FATAL_FAILURE(pool.CheckInvariants()) << "seed " << seed;
    }
    tables.clear();
    EXPECT_EQ(pool.available(), pool.total()) << "seed " << seed;
    BlockTable all(&pool);
    EXPECT_TRUE(pool.Allocate(pool.total(), &all)) << "whatever is pinned or shared, nobody is stopped; seed " << seed;
  }
}

TEST(BlockPool, RandomUseKeepsInvariants) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    base::SplitMix64 rng(seed);
    BlockPool pool({.num_blocks = static_cast<uint32_t>(4 + rng.Below(13)), .prefix_cache = true});
    std::vector<BlockTable> tables;
    for (int op = 0; op < 200; ++op) {
      const auto chain = Chain(rng.Below(6), 1 + rng.Below(4));
      switch (rng.Below(4)) {
        case 0:
        case 1: {
          BlockTable t(&pool);
          const uint32_t matched = pool.MatchPrefix(chain, &t);
          if (!pool.Allocate(static_cast<uint32_t>(chain.size()) - matched, &t)) break;
          if (rng.Below(3) > 0) SealAll(&pool, t, chain, matched);
          tables.push_back(std::move(t));
          break;
        }
        case 2:
          if (!tables.empty()) {
            std::swap(tables[rng.Below(tables.size())], tables.back());
            tables.pop_back();
          }
          break;
        default:
          pool.PinPrefix(chain, static_cast<base::TimeNs>(op + 1 + rng.Below(40)));
          pool.ExpirePins(op);
      }
      ASSERT_NO_FATAL_FAILURE(pool.CheckInvariants()) << "seed " << seed;
    }
    tables.clear();
    EXPECT_EQ(pool.available(), pool.total()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace agentserve::engine
