#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "tools/sim/jobs.h"
#include "tools/sim/prefix_tree.h"
#include "tools/sim/simulation.h"
#include "tools/workload/generate.h"

namespace agentserve::sim {
namespace {

workload::Workload Mix(uint32_t programs, const std::string& shape = "mix", uint64_t seed = 1) {
  workload::GenerateOptions o;
  o.shape = shape;
  o.programs = programs;
  o.seed = seed;
  return *workload::Generate(o);
}

Calibration Small() {
  Calibration c = *BuiltinCalibration("h200-1b");
  c.kv_gib = 1;  // 2,048 blocks of 16
  c.max_batch = 16;
  c.step_tokens = 512;
  c.prefill_step_tokens = 2048;
  c.residual_sigma = 0;
  return c;
}

SimOptions Short() {
  SimOptions o;
  o.duration_s = 60;
  o.warmup_s = 10;
  o.rate = 4;
  return o;
}

TEST(StepModel, FitsItsOwnPoints) {
  for (const char* name : {"h200-1b", "h200-3b"}) {
    const StepModel m = *StepModel::Make(*BuiltinCalibration(name));
    EXPECT_LT(m.fit_error().decode, 0.03) << name;
    EXPECT_LT(m.fit_error().prefill, 0.12) << name;
    EXPECT_GT(m.StepMs({64, 64 * 1024, 512, 512 * 256.0}), m.StepMs({64, 64 * 1024, 0, 0}));
  }
}

TEST(StepModel, CalibrationRoundTripsAndBadOnesAreRefused) {
  const Calibration c = *BuiltinCalibration("h200-3b");
  const absl::StatusOr<Calibration> again = ParseCalibration(CalibrationJson(c));
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(CalibrationJson(*again), CalibrationJson(c));
  EXPECT_FALSE(ParseCalibration("{}").ok());
  EXPECT_FALSE(ParseCalibration("nonsense").ok());
  EXPECT_FALSE(BuiltinCalibration("x").ok());
}

// Random prefixes against a list of blocks.
TEST(PrefixTree, AgreesWithBlocks) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    base::SplitMix64 rng(seed);
    PrefixTree tree;
    struct Chain {
      std::vector<workload::Span> spans;
      uint32_t blocks;
    };
    std::vector<Chain> chains;
    std::vector<PrefixTree::Node> locked;
    for (int step = 0; step < 200; ++step) {
      Chain c;
      if (!chains.empty() && rng.Below(4) > 0) {
        c = chains[rng.Below(chains.size())];
        const auto keep = static_cast<uint32_t>(rng.Below(c.blocks + 1));
        std::vector<workload::Span> head;
        for (const workload::Span& s : c.spans) {
          if (!head.empty() && head.back().end >= keep * 4) break;
          head.push_back({std::min(s.end, keep * 4), s.origin});
        }
        if (keep == 0) head.clear();
        c.spans = head;
        c.blocks = keep;
      } else {
        c.blocks = 0;
      }
      const auto more = static_cast<uint32_t>(1 + rng.Below(20));
      c.blocks += more;
      c.spans.push_back({c.blocks * 4, rng.Next() | 1});
      chains.push_back(c);
      PrefixTree::Node node = 0;
      const uint32_t have = tree.Match(c.spans, 4, c.blocks, &node);
      ASSERT_LE(have, c.blocks);
      node = tree.Insert(c.spans, 4, have, c.blocks, node);
      ASSERT_EQ(tree.Match(c.spans, 4, c.blocks, &node), c.blocks);
      tree.Lock(node);
      locked.push_back(node);
      if (locked.size() > 5) {
        const size_t k = rng.Below(locked.size());
        tree.Unlock(locked[k]);
        locked.erase(locked.begin() + static_cast<ptrdiff_t>(k));
      }
      if (tree.cached() > 0 && rng.Below(3) == 0) tree.Evict(static_cast<uint32_t>(1 + rng.Below(tree.cached())));
      tree.CheckInvariants();
    }
    for (PrefixTree::Node n : locked) tree.Unlock(n);
    EXPECT_EQ(tree.locked(), 0u);
    tree.Evict(tree.total());
    EXPECT_EQ(tree.total(), 0u);
  }
}

TEST(Jobs, DagAlone) {
  workload::Workload w;
  w.classes = {"x"};
  w.tools = {"", "t"};
  workload::Program p;
  p.id = "p";
  p.calls.resize(4);
  p.calls[1].wait_for = p.calls[2].wait_for = {0};
  p.calls[1].wait_ms = 5000;
  p.calls[3].wait_for = {1, 2};
  w.programs = {p};
  const StepModel m = *StepModel::Make(*BuiltinCalibration("h200-1b"));
  const ProgramPlan plan = MakePlan(w, 0, m, 2048, 16);
  ASSERT_EQ(plan.jobs.size(), 1u);
  EXPECT_NEAR(plan.jobs[0].alone_jct_s, 5 + plan.jobs[0].alone_serving_s - 0.0, 0.01);
  EXPECT_EQ(plan.jobs[0].calls, 4u);
  EXPECT_THAT(plan.calls[0].dependents, testing::ElementsAre(1, 2));
}

class Modes : public testing::TestWithParam<bool> {};

TEST_P(Modes, SameSeedSameEventsAndInvariantsHold) {
  const workload::Workload w = Mix(60);
  SimOptions o = Short();
  o.core_workers = GetParam();
  o.duration_s = 20, o.warmup_s = 2;
  o.check_every = GetParam() ? 500 : 1;
  for (uint32_t prefill : {0u, 1u}) {
    o.prefill_workers = prefill;
    o.decode_workers = 2;
    const auto a = Simulate(w, Small(), o), b = Simulate(w, Small(), o);
    ASSERT_TRUE(a.ok()) << a.status().message();
    EXPECT_EQ(a->event_hash, b->event_hash);
    EXPECT_FALSE(a->gave_up);
    EXPECT_GT(a->figures.jobs, 20u);
    o.seed = 2;
    EXPECT_NE(Simulate(w, Small(), o)->event_hash, a->event_hash);
    o.seed = 1;
  }
}

TEST_P(Modes, WorkersDieAndNothingIsLost) {
  const workload::Workload w = Mix(80);
  SimOptions o = Short();
  o.core_workers = GetParam();
  o.decode_workers = 3;
  o.prefill_workers = 1;
  o.duration_s = 30, o.warmup_s = 1;
  o.kill_at_s = {5, 6.5, 12, 20};
  const auto r = Simulate(w, Small(), o);
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r->figures.failed, 0u);
  EXPECT_FALSE(r->gave_up);
  EXPECT_GT(r->migrations, 0u);
}

INSTANTIATE_TEST_SUITE_P(Workers, Modes, testing::Bool(), [](const auto& p) { return p.param ? "Core" : "Fast"; });

double Off(double a, double b) { return std::abs(a - b) / std::max(1e-9, b); }

// The fast model against the production cores, over light, loaded and block-starved clusters.
TEST(Fidelity, FastAgreesWithCores) {
  struct Case {
    const char* shape;
    double rate, kv_gib;
    uint32_t decode, prefill;
  };
  for (const Case& c : {Case{"react", 4, 4, 1, 0}, Case{"mix", 5, 4, 2, 0}, Case{"mix", 4, 1, 1, 0},
                        Case{"fanout", 3, 4, 2, 1}, Case{"chat", 20, 0.5, 1, 0}}) {
    const workload::Workload w = Mix(400, c.shape);
    Calibration k = Small();
    k.kv_gib = c.kv_gib;
    SimOptions o = Short();
    o.rate = c.rate;
    o.decode_workers = c.decode;
    o.prefill_workers = c.prefill;
    const auto fast = Simulate(w, k, o);
    o.core_workers = true;
    const auto core = Simulate(w, k, o);
    ASSERT_TRUE(fast.ok() && core.ok());
    const Figures &f = fast->figures, &g = core->figures;
    const std::string what =
        testing::PrintToString(c.shape) + " rate " + std::to_string(c.rate) + " kv " + std::to_string(c.kv_gib);
    std::printf(
        "%s: core/fast TPOT %.3f/%.3f ms TTFT %.4f/%.4f s JCT %.3f/%.3f s p99 %.2f/%.2f hit %.3f/%.3f "
        "preempted %llu/%llu jobs %zu/%zu\n",
        what.c_str(), g.tpot_ms.mean, f.tpot_ms.mean, g.ttft_s.mean, f.ttft_s.mean, g.all.jct.mean, f.all.jct.mean,
        g.all.jct.p99, f.all.jct.p99, g.hit_rate, f.hit_rate, static_cast<unsigned long long>(core->preemptions),
        static_cast<unsigned long long>(fast->preemptions), g.jobs, f.jobs);
    EXPECT_LT(Off(f.tpot_ms.mean, g.tpot_ms.mean), 0.05) << what;
    EXPECT_LT(Off(f.ttft_s.mean, g.ttft_s.mean), 0.10) << what;
    EXPECT_LT(Off(f.all.jct.mean, g.all.jct.mean), 0.05) << what;
    EXPECT_LT(std::abs(f.hit_rate - g.hit_rate), 0.03) << what;
  }
}

// Host memory behind a small pool: loads instead of computing, in both worker models alike.
TEST(Fidelity, HostTier) {
  const workload::Workload w = Mix(300);
  Calibration k = Small();
  SimOptions o = Short();
  o.policy = "agent";
  o.host_gib = 8;
  o.check_every = 1000;
  const auto fast = Simulate(w, k, o);
  o.core_workers = true;
  const auto core = Simulate(w, k, o);
  ASSERT_TRUE(fast.ok() && core.ok());
  std::printf("host tier: core/fast hit %.3f/%.3f (bound %.3f) TTFT %.4f/%.4f s\n", core->figures.hit_rate,
              fast->figures.hit_rate, core->figures.hit_rate_bound, core->figures.ttft_s.mean,
              fast->figures.ttft_s.mean);
  EXPECT_LT(std::abs(fast->figures.hit_rate - core->figures.hit_rate), 0.03);
  EXPECT_LT(Off(fast->figures.all.jct.mean, core->figures.all.jct.mean), 0.05);
  EXPECT_GT(fast->figures.hit_rate, fast->figures.hit_rate_bound - 0.1);
}

// Jobs end, whatever the policy: nobody is left behind for good.
TEST(Simulate, EveryPolicyServesAll) {
  const workload::Workload w = Mix(100);
  SimOptions o = Short();
  o.duration_s = 20, o.warmup_s = 1, o.rate = 6;
  o.tenants = 0;
  size_t jobs = 0;
  for (const char* policy : {"fifo", "program-fifo", "priority", "plas", "hrrn", "justitia", "srpt-oracle", "agent"}) {
    o.policy = policy;
    const auto r = Simulate(w, Small(), o);
    ASSERT_TRUE(r.ok()) << r.status().message();
    EXPECT_EQ(r->figures.failed, 0u) << policy;
    EXPECT_FALSE(r->gave_up) << policy;
    EXPECT_GT(r->figures.jobs, 50u) << policy;
    jobs = std::max(jobs, r->figures.jobs);
  }
  EXPECT_GT(jobs, 0u);
}

TEST(Simulate, ManyWorkers) {
  const workload::Workload w = Mix(2000);
  SimOptions o = Short();
  o.decode_workers = 1000;
  o.prefill_workers = 24;
  o.duration_s = 2, o.warmup_s = 0.5, o.rate = 300;
  o.limit_s = 60;
  const auto r = Simulate(w, Small(), o);
  ASSERT_TRUE(r.ok()) << r.status().message();
  EXPECT_GT(r->calls_ended, 500u);
}

TEST(Simulate, RefusesNonsense) {
  const workload::Workload w = Mix(3);
  SimOptions o = Short();
  o.policy = "no-such";
  EXPECT_THAT(std::string(Simulate(w, Small(), o).status().message()), testing::HasSubstr("known are"));
  o = Short();
  o.rate = 0;
  EXPECT_FALSE(Simulate(w, Small(), o).ok());
}

}  // namespace
}  // namespace agentserve::sim
