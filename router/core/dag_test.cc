// Graphs of calls and programs.
#include "router/core/dag.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "router/core/program_table.h"

namespace agentserve::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DagTest : public ::testing::Test {
 protected:
  // True: ready, false: waits. Fails the test on an error.
  bool Arrive(uint64_t request, const std::string& program, const std::string& call, std::vector<std::string> needs) {
    const auto r = Try(request, program, call, std::move(needs));
    EXPECT_TRUE(r.ok()) << r.status();
    return r.ok() && *r;
  }
  absl::StatusOr<bool> Try(uint64_t request, const std::string& program, const std::string& call,
                           std::vector<std::string> needs) {
    AgentInfo a;
    a.tenant_id = "t";
    a.program_id = program;
    a.call_id = call;
    a.depends_on = std::move(needs);
    a.osl_hint = 10;
    const auto r = dag_.Arrive(RequestKey(request), program.empty() ? "" : Key(program), a);
    dag_.CheckInvariants();
    return r;
  }
  std::vector<uint64_t> End(uint64_t request) {
    std::vector<RequestKey> out;
    dag_.EndCall(RequestKey(request), &out);
    dag_.CheckInvariants();
    return Values(out);
  }
  std::vector<uint64_t> EndProgram(const std::string& program) {
    std::vector<RequestKey> out;
    dag_.EndProgram(Key(program), &out);
    dag_.CheckInvariants();
    return Values(out);
  }
  static std::vector<uint64_t> Values(const std::vector<RequestKey>& keys) {
    std::vector<uint64_t> out;
    for (RequestKey k : keys) out.push_back(k.value);
    return out;
  }
  static std::string Key(const std::string& program) { return ProgramTable::Key("t", program); }
  std::vector<std::string> Unknown(uint64_t request, const std::set<std::string>& programs = {}) {
    return dag_
        .MissingOf(RequestKey(request), [&](const std::string& key) { return programs.count(key.substr(2)) > 0; })
        .unknown;
  }

  Dag dag_{Dag::Limits{}};
};

TEST_F(DagTest, AJoinWaitsForAllItsCalls) {
  EXPECT_TRUE(Arrive(1, "p", "a", {}));
  EXPECT_TRUE(Arrive(2, "p", "b", {}));
  EXPECT_FALSE(Arrive(3, "p", "join", {"a", "b", "a"}));
  EXPECT_FALSE(Arrive(4, "p", "", {"join"}));
  EXPECT_EQ(dag_.waiting(), 2U);
  EXPECT_THAT(End(2), IsEmpty());
  EXPECT_THAT(End(1), ElementsAre(3));
  EXPECT_THAT(End(3), ElementsAre(4));
  EXPECT_THAT(End(4), IsEmpty());
  EXPECT_EQ(dag_.nodes(), 0U);
  EXPECT_TRUE(Arrive(5, "p", "late", {"a", "join"})) << "names of ended calls are remembered";
}

TEST_F(DagTest, OrderOfArrivalDoesNotMatter) {
  EXPECT_FALSE(Arrive(1, "p", "c", {"b"}));
  EXPECT_THAT(Unknown(1), ElementsAre("b"));
  EXPECT_FALSE(Arrive(2, "p", "b", {"a"}));
  EXPECT_THAT(Unknown(1), IsEmpty());
  EXPECT_TRUE(Arrive(3, "p", "a", {}));
  EXPECT_THAT(End(3), ElementsAre(2));
  EXPECT_THAT(End(2), ElementsAre(1));
}

TEST_F(DagTest, ProgramsWaitForPrograms) {
  EXPECT_FALSE(Arrive(1, "parent", "", {"child-1", "child-2"}));
  EXPECT_THAT(Unknown(1, {"child-1"}), ElementsAre("child-2"));
  EXPECT_THAT(EndProgram("child-2"), IsEmpty());
  EXPECT_THAT(EndProgram("child-1"), ElementsAre(1));
  EXPECT_TRUE(Arrive(2, "", "", {"child-1"})) << "calls outside programs may wait for programs";
  EXPECT_FALSE(Arrive(3, "", "", {"other"}));
  EXPECT_THAT(EndProgram("other"), ElementsAre(3));
}

TEST_F(DagTest, ACallComesBeforeAProgramOfTheSameName) {
  EXPECT_TRUE(Arrive(1, "p", "x", {}));
  EXPECT_FALSE(Arrive(2, "p", "", {"x"}));
  EXPECT_THAT(EndProgram("x"), IsEmpty()) << "the call is meant";
  EXPECT_THAT(End(1), ElementsAre(2));
  EXPECT_TRUE(Arrive(3, "q", "y", {"x"})) << "here the program is meant, and it has ended";
}

TEST_F(DagTest, CirclesAreRefusedAndLeaveNothingBehind) {
  EXPECT_THAT(std::string(Try(1, "p", "a", {"a"}).status().message()), HasSubstr("circle"));
  EXPECT_EQ(dag_.nodes(), 0U);
  EXPECT_FALSE(Arrive(1, "p", "a", {"b"}));
  EXPECT_FALSE(Arrive(2, "p", "b", {"c"}));
  const auto third = Try(3, "p", "c", {"a"});
  EXPECT_EQ(third.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("\"a\" closes a circle"));
  EXPECT_EQ(dag_.nodes(), 2U);
  EXPECT_TRUE(Arrive(3, "p", "c", {})) << "without the bad dependency it is welcome";
  EXPECT_THAT(End(3), ElementsAre(2));
}

TEST_F(DagTest, CirclesThroughPrograms) {
  EXPECT_EQ(Try(1, "p", "a", {"p"}).status().code(), absl::StatusCode::kInvalidArgument) << "its own program";
  EXPECT_FALSE(Arrive(1, "p", "a", {"q"}));
  EXPECT_EQ(Try(2, "q", "b", {"p"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(Arrive(2, "q", "b", {"r"}));
  EXPECT_EQ(Try(3, "r", "", {"p"}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DagTest, DeclaredAhead) {
  const std::vector<DeclaredCallInfo> plan = {
      {"sink", {"m1", "m2"}, 100}, {"m1", {"root"}, 20}, {"m2", {"root"}, 30}, {"root", {}, 5}};
  ASSERT_TRUE(dag_.Declare(Key("p"), "t", plan).ok());
  EXPECT_EQ(dag_.DeclaredLeft(Key("p")), 4U);
  const GraphView root = dag_.ViewOf(Key("p"), "root");
  EXPECT_EQ(root.dependents, 2U);
  EXPECT_EQ(root.path_calls, 2U);
  EXPECT_EQ(root.path_tokens, 130U);
  EXPECT_FALSE(Arrive(1, "p", "sink", {})) << "what was declared holds";
  EXPECT_THAT(Unknown(1), IsEmpty());
  EXPECT_TRUE(Arrive(2, "p", "root", {}));
  EXPECT_FALSE(Arrive(3, "p", "m1", {"root"}));
  EXPECT_THAT(End(2), ElementsAre(3));
  EXPECT_TRUE(Arrive(4, "p", "m2", {}));
  EXPECT_EQ(dag_.ViewOf(Key("p"), "m2").join_left, 2U);
  EXPECT_THAT(End(3), IsEmpty());
  EXPECT_EQ(dag_.ViewOf(Key("p"), "m2").join_left, 1U) << "the last straggler";
  EXPECT_EQ(dag_.ViewOf(Key("p"), "m2").join_width, 2U);
  EXPECT_THAT(End(4), ElementsAre(1));
}

TEST_F(DagTest, EndOfAProgramEndsWhatWasOnlyDeclared) {
  const std::vector<DeclaredCallInfo> plan = {{"never", {}, 0}};
  ASSERT_TRUE(dag_.Declare(Key("p"), "t", plan).ok());
  EXPECT_FALSE(Arrive(1, "p", "", {"never"}));
  EXPECT_FALSE(Arrive(2, "q", "", {"p"}));
  EXPECT_THAT(EndProgram("p"), ElementsAre(1, 2));
  EXPECT_EQ(dag_.DeclaredLeft(Key("p")), 0U);
}

TEST_F(DagTest, BadDeclarationsChangeNothing) {
  ASSERT_TRUE(dag_.Declare(Key("p"), "t", std::vector<DeclaredCallInfo>{{"a", {"z"}, 1}}).ok());
  for (const auto& bad :
       {std::vector<DeclaredCallInfo>{{"b", {"c"}, 1}, {"c", {"b"}, 1}},
        std::vector<DeclaredCallInfo>{{"b", {}, 1}, {"", {}, 1}}, std::vector<DeclaredCallInfo>{{"z", {"a"}, 1}},
        std::vector<DeclaredCallInfo>{{"b", std::vector<std::string>(65, "x"), 1}},
        std::vector<DeclaredCallInfo>(1025, DeclaredCallInfo{"x", {}, 0})}) {
    EXPECT_FALSE(dag_.Declare(Key("p"), "t", bad).ok());
    EXPECT_EQ(dag_.nodes(), 1U);
    dag_.CheckInvariants();
  }
  EXPECT_FALSE(Arrive(1, "p", "a", {}));
  EXPECT_THAT(Unknown(1), ElementsAre("z"));
}

TEST_F(DagTest, NamesAreUsedOnceAtATime) {
  EXPECT_TRUE(Arrive(1, "p", "a", {}));
  EXPECT_THAT(std::string(Try(2, "p", "a", {}).status().message()), HasSubstr("is running"));
  EXPECT_THAT(End(1), IsEmpty());
  EXPECT_TRUE(Arrive(2, "p", "a", {}));
  EXPECT_FALSE(Arrive(3, "p", "", {"a"})) << "the live call of that name counts, not the ended one";
}

TEST_F(DagTest, BoundsAreKept) {
  Dag small({.nodes = 3, .ended = 2, .waiting = 1});
  const auto arrive = [&](uint64_t r, const std::string& call, std::vector<std::string> needs) {
    AgentInfo a;
    a.tenant_id = "t";
    a.call_id = call;
    a.depends_on = std::move(needs);
    return small.Arrive(RequestKey(r), Key("p"), a);
  };
  EXPECT_FALSE(*arrive(1, "a", {"z"}));
  EXPECT_EQ(arrive(2, "b", {"z"}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(*arrive(2, "b", {}));
  EXPECT_TRUE(*arrive(3, "c", {}));
  EXPECT_EQ(arrive(4, "d", {}).status().code(), absl::StatusCode::kResourceExhausted);
  std::vector<RequestKey> out;
  for (uint64_t r : {1, 2, 3}) small.EndCall(RequestKey(r), &out);
  EXPECT_EQ(small.ended(), 2U);
  small.CheckInvariants();
}

// Random graphs, sent in random order, ended in random order: every call is released exactly when its last dependency
// has ended, and nothing stays behind. Compared with a plain table of what needs what.
TEST_F(DagTest, RandomGraphsReleaseEveryCallExactlyOnce) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    base::SplitMix64 rng(seed);
    Dag dag{Dag::Limits{}};
    const int n = 2 + static_cast<int>(rng.Next() % 12);
    std::vector<std::vector<int>> needs(static_cast<size_t>(n));
    for (int i = 1; i < n; ++i) {
      for (int j = 0; j < i; ++j) {
        if (rng.Next() % 3 == 0) needs[static_cast<size_t>(i)].push_back(j);
      }
    }
    std::vector<int> order(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.Next() % i]);
    std::set<int> running, ended, arrived;
    size_t next = 0;
    while (ended.size() < static_cast<size_t>(n)) {
      if (next < order.size() && (running.empty() || rng.Next() % 2 == 0)) {
        const int i = order[next++];
        AgentInfo a;
        a.tenant_id = "t";
        a.call_id = "c" + std::to_string(i);
        bool ready = true;
        for (int d : needs[static_cast<size_t>(i)]) {
          a.depends_on.push_back("c" + std::to_string(d));
          ready = ready && ended.count(d) > 0;
        }
        const auto r = dag.Arrive(RequestKey(static_cast<uint64_t>(i) + 1), Key("p"), a);
        ASSERT_TRUE(r.ok()) << "seed " << seed << ": " << r.status();
        ASSERT_EQ(*r, ready) << "seed " << seed << " call " << i;
        arrived.insert(i);
        if (ready) running.insert(i);
      } else {
        ASSERT_FALSE(running.empty()) << "seed " << seed;
        auto it = running.begin();
        std::advance(it, rng.Next() % running.size());
        const int i = *it;
        running.erase(it);
        ended.insert(i);
        std::vector<RequestKey> released;
        dag.EndCall(RequestKey(static_cast<uint64_t>(i) + 1), &released);
        for (RequestKey r : released) {
          const int c = static_cast<int>(r.value) - 1;
          ASSERT_TRUE(arrived.count(c) > 0 && running.insert(c).second) << "seed " << seed;
          for (int d : needs[static_cast<size_t>(c)]) ASSERT_EQ(ended.count(d), 1U) << "seed " << seed;
        }
      }
      dag.CheckInvariants();
    }
    EXPECT_EQ(dag.nodes(), 0U) << "seed " << seed;
    EXPECT_EQ(dag.waiting(), 0U) << "seed " << seed;
  }
}

}  // namespace
}  // namespace agentserve::router
