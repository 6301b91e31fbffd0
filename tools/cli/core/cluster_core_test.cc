#include "tools/cli/core/cluster_core.h"

#include <gtest/gtest.h>

#include "base/flags.h"
#include "tools/cli/core/line_splitter.h"

namespace agentserve::tools {
namespace {

using Kind = Command::Kind;
using Commands = std::vector<Command>;
constexpr base::TimeNs kMs = base::kNsPerMs;
constexpr base::TimeNs kS = base::kNsPerSecond;

// Two workers stop together, between the gateway and the kvstore.
class ClusterCoreTest : public ::testing::Test {
 protected:
  ClusterCoreTest() : core_({{"kvstore", 3}, {"p", 2}, {"d", 2}, {"gateway", 0}}, CoreOptions()) {
    core_.Begin(0);
    EXPECT_EQ(core_.TakeCommands().size(), 4u);
  }
  void AllReady() {
    for (size_t i = 0; i < 4; ++i) core_.OnReady(i);
  }
  ClusterCore core_;
};

TEST_F(ClusterCoreTest, BackoffDoublesToItsLimitAndIsResetByHealth) {
  AllReady();
  base::TimeNs now = kS;
  for (const base::TimeNs expected : {200 * kMs, 400 * kMs, 800 * kMs, 1600 * kMs, 3200 * kMs, 5 * kS, 5 * kS}) {
    core_.OnExit(1, {0, 9}, now);
    EXPECT_EQ(core_.NextWake(), now + expected);
    core_.OnTick(now + expected - 1);
    EXPECT_TRUE(core_.TakeCommands().empty());
    now += expected;
    core_.OnTick(now);
    EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kStart, 1}}));
  }
  now += 10 * kS;
  core_.OnExit(1, {0, 9}, now);
  EXPECT_EQ(core_.NextWake(), now + 200 * kMs);
  EXPECT_FALSE(core_.stopping());
}

TEST_F(ClusterCoreTest, ConfigurationErrorAtFirstStartStopsWithItsCode) {
  core_.OnExit(2, {base::kExitModel, 0}, kMs);
  EXPECT_TRUE(core_.stopping());
  EXPECT_EQ(core_.exit_code(), base::kExitModel);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kTerminate, 3}}));
}

TEST_F(ClusterCoreTest, SameCodeAfterItOnceWorkedIsACrash) {
  AllReady();
  core_.OnExit(2, {base::kExitModel, 0}, kMs);
  EXPECT_FALSE(core_.stopping());
  EXPECT_EQ(core_.state(2), ClusterCore::State::kBackoff);
}

TEST_F(ClusterCoreTest, GivesUpOnACrashLoopThatWasNeverReady) {
  base::TimeNs now = 0;
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(core_.stopping()) << i;
    core_.OnExit(1, {1, 0}, now);
    now += 5 * kS;
    core_.OnTick(now);
    core_.TakeCommands();
  }
  EXPECT_TRUE(core_.stopping());
  EXPECT_EQ(core_.exit_code(), base::kExitFailure);
  EXPECT_NE(core_.failure().find("p ended 5 times"), std::string::npos) << core_.failure();
}

TEST_F(ClusterCoreTest, StopsStageByStage) {
  AllReady();
  core_.OnStop(0);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kTerminate, 3}}));
  core_.OnExit(3, {}, kMs);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kTerminate, 1}, {Kind::kTerminate, 2}}));
  core_.OnExit(1, {}, kMs);
  EXPECT_TRUE(core_.TakeCommands().empty());
  core_.OnExit(2, {}, kMs);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kTerminate, 0}}));
  EXPECT_FALSE(core_.done());
  core_.OnExit(0, {}, kMs);
  EXPECT_TRUE(core_.done());
  EXPECT_EQ(core_.exit_code(), 0);
}

TEST_F(ClusterCoreTest, LateStagesGetTheirOwnShortTime) {
  AllReady();
  core_.OnStop(0);
  core_.TakeCommands();
  core_.OnTick(10 * kS - 1);
  EXPECT_TRUE(core_.TakeCommands().empty());
  core_.OnTick(10 * kS);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kKill, 3}}));
  core_.OnExit(3, {0, 9}, 10 * kS);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kTerminate, 1}, {Kind::kTerminate, 2}}));
  EXPECT_EQ(core_.NextWake(), 11 * kS);
  core_.OnTick(11 * kS);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kKill, 1}, {Kind::kKill, 2}}));
}

TEST_F(ClusterCoreTest, SecondStopKillsAll) {
  AllReady();
  core_.OnStop(0);
  core_.TakeCommands();
  core_.OnStop(kMs);
  EXPECT_EQ(core_.TakeCommands(), (Commands{{Kind::kKill, 0}, {Kind::kKill, 1}, {Kind::kKill, 2}, {Kind::kKill, 3}}));
  core_.OnExit(3, {0, 9}, kMs);
  EXPECT_TRUE(core_.TakeCommands().empty());
}

TEST_F(ClusterCoreTest, StopCancelsAWaitingRestart) {
  AllReady();
  core_.OnExit(1, {0, 9}, 0);
  core_.OnStop(kMs);
  core_.OnTick(kS);
  for (const Command& c : core_.TakeCommands()) EXPECT_NE(c.kind, Kind::kStart);
  for (const size_t i : {3u, 2u, 0u}) core_.OnExit(i, {}, kS);
  EXPECT_TRUE(core_.done());
}

// Random exits, stops and ticks: the invariants hold and stopping always ends once the children obey kills.
TEST(ClusterCore, RandomHistoriesKeepTheInvariants) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    uint64_t state = seed * 2654435761u + 1;
    const auto next = [&state](uint64_t n) {
      return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33 ? (state >> 33) % n : 0;
    };
    ClusterCore core({{"a", 0}, {"b", 1}, {"c", 1}, {"d", 2}}, CoreOptions());
    base::TimeNs now = 0;
    core.Begin(now);
    for (int step = 0; step < 200 && !core.done(); ++step) {
      now += static_cast<base::TimeNs>(next(700)) * kMs;
      core.OnTick(now);
      core.TakeCommands();
      const size_t child = next(4);
      if (core.state(child) == ClusterCore::State::kRunning) {
        if (next(2) == 0)
          core.OnReady(child);
        else
          core.OnExit(child, {static_cast<int>(next(6)), next(2) == 0 ? 9 : 0}, now);
      }
      if (next(60) == 0) core.OnStop(now);
      core.TakeCommands();
    }
    if (!core.stopping()) core.OnStop(now);
    for (int turn = 0; turn < 20 && !core.done(); ++turn) {
      for (size_t i = 0; i < 4; ++i) {
        if (core.state(i) == ClusterCore::State::kRunning) core.OnExit(i, {0, 9}, now);
      }
    }
    EXPECT_TRUE(core.done()) << "seed " << seed;
  }
}

std::vector<std::string> Split(const std::vector<std::string>& pieces) {
  LineSplitter splitter;
  std::vector<std::string> lines;
  const auto sink = [&lines](std::string_view line) { lines.emplace_back(line); };
  for (const std::string& piece : pieces) splitter.Feed(piece, sink);
  splitter.Finish(sink);
  return lines;
}

TEST(LineSplitter, JoinsPiecesAndKeepsTheLastPartialLine) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(Split({"a", "b\nc\r\n", "\n", "tail"}), (Lines{"ab", "c", "", "tail"}));
  EXPECT_EQ(Split({"one\ntwo\n"}), (Lines{"one", "two"}));
  EXPECT_EQ(Split({}), Lines());
}

TEST(LineSplitter, CutsEndlessLines) {
  const std::string endless(LineSplitter::kMaxLineBytes + 5, 'x');
  const auto lines = Split({endless, "\nrest\n"});
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].size(), LineSplitter::kMaxLineBytes);
  EXPECT_EQ(lines[1], "xxxxx");
  EXPECT_EQ(lines[2], "rest");
}

}  // namespace
}  // namespace agentserve::tools
