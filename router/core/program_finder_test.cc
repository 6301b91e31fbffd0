// Which program a call without hints belongs to: conversations as agents send them.
#include "router/core/program_finder.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"
#include "engine/block_hash.h"

namespace agentserve::router {
namespace {

constexpr uint32_t kBlock = 16;

// A prompt and its chain, as the router has them.
struct Prompt {
  std::string tenant = "t";
  std::vector<TokenId> tokens;
  std::vector<base::Hash128> chain;
  Turn turn = Turn::kUnknown;
  PromptView View() const { return {tenant, chain, tokens, kBlock, turn}; }
};

Prompt Make(std::vector<TokenId> tokens, Turn turn = Turn::kUnknown, std::string tenant = "t") {
  Prompt p;
  p.tenant = std::move(tenant);
  p.tokens = std::move(tokens);
  p.turn = turn;
  engine::ExtendChain(engine::ChainRoot(p.tenant, 7), p.tokens, kBlock, &p.chain);
  return p;
}

std::vector<TokenId> Tokens(size_t n, uint64_t seed) {
  std::vector<TokenId> out;
  for (size_t i = 0; i < n; ++i) out.push_back(static_cast<TokenId>((seed * 7919 + i * 31 + i / 7) % 30'000));
  return out;
}

std::vector<TokenId> operator+(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(ProgramFinder, NextTurnIsFoundAndAnEqualPromptIsNot) {
  ProgramFinder f({});
  const auto turn1 = Tokens(70, 1);
  EXPECT_FALSE(f.Find(Make(turn1).View()));
  f.Record(Make(turn1).View(), "a");
  const auto next = f.Find(Make(turn1 + Tokens(30, 2)).View());
  ASSERT_TRUE(next);
  EXPECT_EQ(next->program, "a");
  EXPECT_TRUE(next->exact);
  EXPECT_EQ(next->blocks, 4U);
  EXPECT_FALSE(f.Find(Make(turn1).View())) << "the same text once more is another caller's";
  EXPECT_TRUE(f.Find(Make(turn1, Turn::kLater).View())) << "a retry of a turn";
  EXPECT_FALSE(f.Find(Make(turn1 + Tokens(30, 2), Turn::kFirst).View())) << "no answer in it: a new conversation";
  f.CheckInvariants();
}

TEST(ProgramFinder, LessThanTwoBlocksSaysNothing) {
  ProgramFinder f({});
  f.Record(Make(Tokens(31, 1)).View(), "a");
  EXPECT_EQ(f.programs(), 0U);
  EXPECT_FALSE(f.Find(Make(Tokens(31, 1) + Tokens(40, 3), Turn::kLater).View()));
  f.Record(Make(Tokens(32, 1)).View(), "b");
  EXPECT_TRUE(f.Find(Make(Tokens(32, 1) + Tokens(40, 3), Turn::kLater).View()));
}

TEST(ProgramFinder, TheTailBehindTheLastBlockCounts) {
  ProgramFinder f({});
  const auto system = Tokens(64, 1);
  f.Record(Make(system + Tokens(5, 10)).View(), "a");
  f.Record(Make(system + Tokens(5, 11)).View(), "b");
  // Both programs have the same full blocks.
  const auto b = f.Find(Make(system + Tokens(5, 11) + Tokens(60, 12)).View());
  ASSERT_TRUE(b);
  EXPECT_EQ(b->program, "b");
  EXPECT_FALSE(f.Find(Make(system + Tokens(5, 13) + Tokens(60, 12)).View()));
}

TEST(ProgramFinder, EqualSystemPromptsDoNotJoinAgents) {
  ProgramFinder f({});
  const auto system = Tokens(50 * kBlock, 1);
  f.Record(Make(system + Tokens(100, 2), Turn::kFirst).View(), "a");
  EXPECT_FALSE(f.Find(Make(system + Tokens(100, 3), Turn::kFirst).View()));
  f.Record(Make(system + Tokens(100, 3), Turn::kFirst).View(), "b");
  // Later turns go to the right one, though the deepest mark at a multiple of the stride is shared.
  EXPECT_EQ(f.Find(Make(system + Tokens(100, 2) + Tokens(200, 4), Turn::kLater).View())->program, "a");
  EXPECT_EQ(f.Find(Make(system + Tokens(100, 3) + Tokens(200, 5), Turn::kLater).View())->program, "b");
  // A third one in mid-flight (the router was restarted) belongs to neither.
  EXPECT_FALSE(f.Find(Make(system + Tokens(300, 6), Turn::kLater).View()));
}

TEST(ProgramFinder, AnEditedEndIsStillTheSameProgram) {
  ProgramFinder f({});
  const auto history = Tokens(400, 1);
  f.Record(Make(history + Tokens(20, 2), Turn::kLater).View(), "a");  // a reminder at the end
  const auto next = f.Find(Make(history + Tokens(120, 3) + Tokens(20, 2), Turn::kLater).View());
  ASSERT_TRUE(next);
  EXPECT_EQ(next->program, "a");
  EXPECT_FALSE(next->exact);
  // Sharing less than half is not enough: a summary of the history after the system prompt.
  const std::vector<TokenId> system(history.begin(), history.begin() + 100);
  EXPECT_FALSE(f.Find(Make(system + Tokens(500, 4), Turn::kLater).View()));
}

TEST(ProgramFinder, TenantsNeverMeet) {
  ProgramFinder f({});
  f.Record(Make(Tokens(64, 1), Turn::kLater, "t").View(), "a");
  EXPECT_FALSE(f.Find(Make(Tokens(64, 1) + Tokens(64, 2), Turn::kLater, "u").View()));
  // Not even if somebody gave them the same chain.
  Prompt same = Make(Tokens(64, 1) + Tokens(64, 2), Turn::kLater, "t");
  same.tenant = "u";
  EXPECT_FALSE(f.Find(same.View()));
}

TEST(ProgramFinder, ForgottenProgramsAreNotFound) {
  ProgramFinder f({});
  f.Record(Make(Tokens(64, 1)).View(), "a");
  f.Forget("t", "a");
  f.Forget("t", "a");
  EXPECT_FALSE(f.Find(Make(Tokens(64, 1) + Tokens(64, 2), Turn::kLater).View()));
  f.CheckInvariants();
}

TEST(ProgramFinder, ParallelBranchesAllBelongToTheProgram) {
  ProgramFinder f({});
  const auto history = Tokens(200, 1);
  f.Record(Make(history, Turn::kLater).View(), "a");
  for (uint64_t branch = 0; branch < 8; ++branch) {
    const Prompt p = Make(history + Tokens(90, 100 + branch), Turn::kLater);
    ASSERT_EQ(f.Find(p.View())->program, "a");
    f.Record(p.View(), "a");
  }
  for (uint64_t branch = 0; branch < 8; ++branch) {
    EXPECT_EQ(f.Find(Make(history + Tokens(90, 100 + branch) + Tokens(50, 5), Turn::kLater).View())->program, "a");
  }
}

// Conversations of generated lengths over few system prompts, interleaved: every later turn is found, none is mixed up,
// and the bounds hold. Fails if marks, tails or the order of strides are wrong.
TEST(ProgramFinder, InterleavedConversationsAreKeptApart) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    base::SplitMix64 rng(seed);
    ProgramFinder f({});
    struct Agent {
      std::vector<TokenId> history;
      bool begun = false;
    };
    std::map<int, Agent> agents;
    for (int i = 0; i < 24; ++i) {
      agents[i].history =
          Tokens(32 + (i % 3) * 333, static_cast<uint64_t>(i % 3)) + Tokens(3 + rng.Next() % 90, 1000 + i);
    }
    for (int step = 0; step < 300; ++step) {
      const int who = static_cast<int>(rng.Next() % agents.size());
      Agent& a = agents[who];
      const Turn turn = a.begun ? Turn::kLater : Turn::kFirst;
      if (a.begun) a.history = a.history + Tokens(1 + rng.Next() % 120, rng.Next() % 100'000);
      const Prompt p = Make(a.history, turn);
      const auto found = f.Find(p.View());
      if (a.begun) {
        ASSERT_TRUE(found) << "seed " << seed << " step " << step << " agent " << who;
        ASSERT_EQ(found->program, std::to_string(who)) << "seed " << seed << " step " << step;
        ASSERT_TRUE(found->exact);
      } else {
        ASSERT_FALSE(found);
      }
      f.Record(p.View(), std::to_string(who));
      a.begun = true;
      f.CheckInvariants();
    }
  }
}

TEST(ProgramFinder, BoundsHold) {
  ProgramFinder f({.marks = 50, .programs = 5});
  for (uint64_t i = 0; i < 100; ++i) {
    f.Record(Make(Tokens(100 + i * 16, i)).View(), "p" + std::to_string(i));
    f.CheckInvariants();
  }
  EXPECT_EQ(f.programs(), 5U);
  EXPECT_EQ(f.marks(), 50U);
  EXPECT_TRUE(f.Find(Make(Tokens(100 + 99 * 16, 99) + Tokens(20, 1)).View())) << "the newest is still known";
}

}  // namespace
}  // namespace agentserve::router
