// The queue, the learned quantities and the agent policy's promises, on generated cases.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/rng.h"
#include "router/core/call_queue.h"
#include "router/core/policy_cluster.h"
#include "router/core/predictor.h"
#include "router/core/program_size.h"

namespace agentserve::router {
namespace {

constexpr TimeNs kSecond = base::kNsPerSecond;

TEST(GapHistogramTest, ProbabilitiesFollowTheSamples) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    base::SplitMix64 rng(seed);
    GapHistogram h;
    std::vector<double> gaps;
    for (int i = 0; i < 2000; ++i) gaps.push_back(std::exp(4 + 4 * rng.Uniform()));
    for (double g : gaps) h.Add(g);
    for (int i = 0; i < 500; ++i) h.AddGone();
    for (double elapsed : {0.0, 50.0, 200.0, 1000.0}) {
      for (double within : {10.0, 100.0, 2000.0}) {
        const auto late = [&](double t) {
          return std::count_if(gaps.begin(), gaps.end(), [&](double g) { return g > t; });
        };
        const auto here = static_cast<double>(late(elapsed) - late(elapsed + within));
        const double want = here / (static_cast<double>(late(elapsed)) + 500);
        EXPECT_NEAR(h.ProbWithin(elapsed, within), want, 0.05) << elapsed << " " << within;
      }
    }
    std::sort(gaps.begin(), gaps.end());
    EXPECT_NEAR(std::log(h.Median()), std::log(gaps[1000]), 0.2);
    EXPECT_NEAR(h.Survival(0), 1, 1e-6);
  }
}

TEST(GapHistogramTest, EmptyAndForgottenSamplesSayNothing) {
  GapHistogram h;
  EXPECT_EQ(h.ProbWithin(0, 1e9), 0);
  EXPECT_EQ(h.Quantile(0.5, 7), 7);
  for (int i = 0; i < 100'000; ++i) h.Add(10);
  EXPECT_LE(h.weight(), GapHistogram::kMostWeight);
}

TEST(SizeHistogramTest, DecreasingHazardGivesGrowingResiduals) {
  base::SplitMix64 rng(3);
  SizeHistogram h;
  for (int i = 0; i < 1500; ++i) {
    const double total = 200 * std::pow(1 - rng.Uniform(), -1 / 1.5);  // Pareto: E[residual | a] = 2a
    for (double at = 0; at < total;) {
      const double to = std::min(total, at + 50);
      h.OnProgress(at, to);
      at = to;
    }
    h.OnEnd(total);
  }
  double before = 0;
  for (double attained : {400.0, 800.0, 1600.0}) {
    const double r = h.Residual(attained, 1);
    EXPECT_GT(r, before);
    EXPECT_GT(r, attained * 0.8);
    EXPECT_LT(r, attained * 5);
    before = r;
  }
}

TEST(OutputPredictorTest, LearnsProgramsToolsAndHintsAndBeatsTheMean) {
  base::SplitMix64 rng(5);
  OutputPredictor p(128);
  std::map<uint64_t, LengthSummary> programs;
  for (int i = 0; i < 4000; ++i) {
    const uint64_t program = rng.Below(100);
    const bool search = rng.Below(2) == 0;
    CallFeatures f;
    f.tenant = "t";
    f.workflow_class = "c";
    f.tool_name = search ? "search" : "edit";
    f.tool_turn = true;
    f.max_tokens = 8192;
    f.prompt_tokens = 1000;
    f.new_tokens = 100;
    f.program = programs[program];
    const double noise = std::exp(0.3 * (rng.Uniform() + rng.Uniform() - 1));
    const double base = (search ? 30.0 : 300.0) * static_cast<double>(1 + program % 4);
    const auto output = static_cast<uint32_t>(base * noise) + 1;
    const Prediction q = p.Predict(f);
    p.Learn(f, q, output);
    programs[program].Add(std::log1p(output), 0.2);
  }
  const PredictorStats& s = p.stats();
  EXPECT_LT(s.abs_error, 0.5 * s.abs_error_mean);
  EXPECT_LT(s.sq_log_error, 0.25 * s.sq_log_error_mean);
  EXPECT_NEAR(static_cast<double>(s.within_q90) / static_cast<double>(s.calls), 0.9, 0.08);
  p.CheckInvariants();
}

TEST(OutputPredictorTest, LyingHintsLoseTheirWeightForTheirTenantOnly) {
  base::SplitMix64 rng(6);
  OutputPredictor p(128);
  CallFeatures liar, honest;
  liar.tenant = "liar", honest.tenant = "honest";
  liar.max_tokens = honest.max_tokens = 8192;
  for (int i = 0; i < 400; ++i) {
    const auto out = static_cast<uint32_t>(50 + rng.Below(1000));
    liar.osl_hint = static_cast<uint32_t>(1 + rng.Below(5000));
    p.Learn(liar, p.Predict(liar), out);
    honest.osl_hint = out;
    p.Learn(honest, p.Predict(honest), out);
  }
  honest.osl_hint = 700;
  EXPECT_NEAR(p.Predict(honest).Median(), 700, 70);
  CallFeatures none = liar;
  none.osl_hint.reset();
  liar.osl_hint = 5;
  const double without = p.Predict(none).log_mean, with = p.Predict(liar).log_mean;
  EXPECT_LT(without - with, 0.5 * (without - std::log1p(5))) << "hints that never held count for less than half";
}

TEST(CallQueueTest, TenantsShareByWeightWhateverTheirBacklog) {
  CoreConfig config;
  config.policy = "agent";
  config.tenant_share = {{"b", 3.0}};
  CallQueue q(config);
  uint64_t next = 1;
  auto add = [&](const std::string& tenant) {
    QueuePlace p;
    p.lane = q.LaneOf(tenant);
    p.arrival = static_cast<int64_t>(next);
    p.order.key = {1, p.arrival};
    q.Add(SeqId(next++), p);
  };
  for (int i = 0; i < 5000; ++i) add("a");
  for (int i = 0; i < 400; ++i) add("b");
  std::map<std::string, int> served;
  std::vector<CallQueue::Pick> picks;
  for (int i = 0; i < 400; ++i) {
    q.Candidates(0, config.agent, &picks);
    ASSERT_FALSE(picks.empty());
    ++served[q.lane(picks[0].lane).name];
    q.Remove(picks[0].seq);
    q.Taken(picks[0], 10);
    q.CheckInvariants();
  }
  EXPECT_NEAR(served["b"], 300, 3);
}

// ---- whole clusters ----

using policy_test::Cluster;
using policy_test::ClusterOptions;

TEST(AgentPolicyTest, SameSeedSameOrder) {
  for (const Policy& p : Policies()) {
    ClusterOptions o;
    o.core.policy = std::string(p.name);
    Cluster a(o), b(o);
    a.Run();
    b.Run();
    EXPECT_EQ(a.log(), b.log()) << p.name;
    EXPECT_EQ(a.done(), o.programs * o.calls) << p.name;
  }
}

TEST(AgentPolicyTest, NoIdleWorkerBesideRunnableWork) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    ClusterOptions o;
    o.seed = seed;
    o.core.policy = "agent";
    o.check_idle = true;
    Cluster c(o);
    c.Run();
    EXPECT_EQ(c.idle_beside_work(), 0u) << "seed " << seed;
  }
}

// Past its aging bound a call goes before all others on every other pick, so it waits for at most two hand-outs for
// each older aged call, and a queue's worth of them.
TEST(AgentPolicyTest, NoCallWaitsPastItsAgingBound) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    ClusterOptions o;
    o.seed = seed;
    o.core.policy = "agent";
    o.core.agent.aging_bound = 2 * kSecond;
    o.programs = 60;
    o.long_share = 0.2;
    Cluster c(o);
    c.Run();
    EXPECT_LE(c.most_younger_after_bound(), 2 * c.most_queued() + 2) << "seed " << seed;
    EXPECT_EQ(c.done(), o.programs * o.calls);
  }
}

TEST(AgentPolicyTest, HostileHintsDoNotMoveAnotherTenantsTail) {
  double worst = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    ClusterOptions o;
    o.seed = seed;
    o.core.policy = "agent";
    o.tenants = 2;
    o.programs = 300;
    Cluster honest(o);
    honest.Run();
    o.hostile = true;
    Cluster hostile(o);
    hostile.Run();
    const double before = honest.LatencyMs(1, 0.99), after = hostile.LatencyMs(1, 0.99);
    worst = std::max(worst, after / before - 1);
    EXPECT_LE(after, before * 1.05) << "seed " << seed;
  }
  RecordProperty("worst_p99_change_percent", static_cast<int>(100 * worst));
}

TEST(AgentPolicyTest, ExplainsWhyACallWaitsAndWhereItWent) {
  ClusterOptions o;
  o.core.policy = "agent";
  o.programs = 40;
  Cluster c(o);
  c.Run();
  ASSERT_GT(c.core().decisions().size(), 0u);
  uint64_t waited = 0;
  for (const DecisionRecord& d : c.core().decisions().all()) {
    ASSERT_FALSE(d.candidates.empty());
    EXPECT_EQ(d.candidates[0].verdict, Verdict::kChosen);
    EXPECT_EQ(d.candidates[0].name, d.decode_worker);
    EXPECT_LE(d.candidates.size(), DecisionRecord::kMostCandidates);
    EXPECT_EQ(d.policy, "agent");
    EXPECT_GT(d.call_cost, 0);
    if (d.last_wait) ++waited;
    EXPECT_EQ(c.core().FindDecision(d.request_id)->decided_at, d.decided_at);
  }
  EXPECT_GT(waited, 0u);
  uint64_t picks = 0;
  for (uint64_t n : c.core().decision_stats().pick) picks += n;
  EXPECT_EQ(picks, o.programs * o.calls);
}

TEST(PolicyTest, OverflowAndPreemptionFavourEasyCalls) {
  ClusterOptions o;
  o.core.batch_cap = 3;
  o.long_share = 0.5;
  o.programs = 60;
  o.tell_length = true;
  std::map<std::string, double> easy;
  for (const char* name : {"fifo", "priority", "priority-overflow", "priority-preempt"}) {
    o.core.policy = name;
    Cluster c(o);
    c.Run();
    EXPECT_EQ(c.done(), o.programs * o.calls) << name;
    easy[name] = c.ShortLatencyMs();
    EXPECT_EQ(c.core().decision_stats().preemptions > 0, std::string(name) == "priority-preempt") << name;
  }
  EXPECT_LT(easy["priority"], easy["fifo"]);
  EXPECT_LE(easy["priority-overflow"], easy["priority"] * 1.02);
  EXPECT_LT(easy["priority-preempt"], easy["priority"]);
}

}  // namespace
}  // namespace agentserve::router
