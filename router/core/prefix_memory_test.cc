// The trie of prefixes against a plain map from blocks to workers, on generated chains.
#include "router/core/prefix_memory.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"

namespace agentserve::router {
namespace {

using Chain = std::vector<base::Hash128>;

// A chained hash of small numbers: equal hashes mean equal prefixes.
Chain MakeChain(const std::vector<uint64_t>& parts) {
  Chain out;
  base::Hash128 at{1, 1};
  for (uint64_t p : parts) {
    base::SplitMix64 r(at.lo ^ (p * 0x9e3779b97f4a7c15ull) ^ (at.hi << 1));
    at = {r.Next(), r.Next()};
    out.push_back(at);
  }
  return out;
}

std::map<uint64_t, uint32_t> Matches(const PrefixMemory& m, const Chain& chain) {
  std::vector<PrefixMatch> out;
  m.Match(chain, &out);
  std::map<uint64_t, uint32_t> by_worker;
  for (const PrefixMatch& p : out) by_worker[p.worker.value] = p.blocks;
  EXPECT_EQ(by_worker.size(), out.size());
  return by_worker;
}

TEST(PrefixMemoryTest, EqualsAMapOfBlocksWhileNothingIsForgotten) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    base::SplitMix64 rng(seed);
    PrefixMemory m(100'000);
    std::map<uint64_t, std::set<base::Hash128>> held;  // by worker
    std::vector<std::vector<uint64_t>> known;
    for (int i = 0; i < 120; ++i) {
      std::vector<uint64_t> parts;
      if (!known.empty() && rng.Below(4) != 0) {
        parts = known[rng.Below(known.size())];
        parts.resize(rng.Below(parts.size() + 1));
      }
      const uint64_t more = rng.Below(30);
      for (uint64_t k = 0; k < more; ++k) parts.push_back(rng.Below(3));
      known.push_back(parts);
      const Chain chain = MakeChain(parts);
      std::map<uint64_t, uint32_t> want;
      for (const auto& [w, blocks] : held) {
        uint32_t n = 0;
        while (n < chain.size() && blocks.count(chain[n]) > 0) ++n;
        if (n > 0) want[w] = n;
      }
      ASSERT_EQ(Matches(m, chain), want) << "seed " << seed << " step " << i;
      const uint64_t w = 1 + rng.Below(6);
      m.Record(chain, WorkerId(w));
      held[w].insert(chain.begin(), chain.end());
      m.CheckInvariants();
    }
  }
}

TEST(PrefixMemoryTest, ForgetsTheLeastRecentTailsAndStaysBounded) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    base::SplitMix64 rng(seed);
    PrefixMemory m(64);
    Chain last;
    for (int i = 0; i < 300; ++i) {
      std::vector<uint64_t> parts;
      const uint64_t length = 1 + rng.Below(i % 10 == 0 ? 100 : 20);
      for (uint64_t k = 0; k < length; ++k) parts.push_back(rng.Below(2));
      last = MakeChain(parts);
      m.Record(last, WorkerId(1 + rng.Below(12)));
      m.CheckInvariants();
      ASSERT_LE(m.size(), 64u);
      // What was recorded last is known in full, or as much of it as fits.
      std::vector<PrefixMatch> out;
      m.Match(last, &out);
      uint32_t best = 0;
      for (const PrefixMatch& p : out) best = std::max(best, p.blocks);
      ASSERT_EQ(best, std::min<size_t>(last.size(), 64));
    }
  }
}

TEST(PrefixMemoryTest, AGrowingProgramStaysOneRun) {
  PrefixMemory m(100'000);
  std::vector<uint64_t> parts(50, 7);
  for (int turn = 0; turn < 40; ++turn) {
    for (int k = 0; k < 10; ++k) parts.push_back(static_cast<uint64_t>(turn));
    m.Record(MakeChain(parts), WorkerId(1 + static_cast<uint64_t>(turn) % 2));
  }
  EXPECT_EQ(m.runs(), 1u);
  EXPECT_EQ(Matches(m, MakeChain(parts)), (std::map<uint64_t, uint32_t>{{1, 440}, {2, 450}}));
  // A branch splits it, and both ends stay known.
  std::vector<uint64_t> branch(parts.begin(), parts.begin() + 100);
  branch.push_back(99);
  m.Record(MakeChain(branch), WorkerId(3));
  EXPECT_EQ(m.runs(), 3u);
  EXPECT_EQ(Matches(m, MakeChain(branch)), (std::map<uint64_t, uint32_t>{{1, 100}, {2, 100}, {3, 101}}));
  EXPECT_EQ(Matches(m, MakeChain(parts)), (std::map<uint64_t, uint32_t>{{1, 440}, {2, 450}, {3, 100}}));
  m.CheckInvariants();
}

}  // namespace
}  // namespace agentserve::router
