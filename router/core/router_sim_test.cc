// Property tests: whatever dies, repeats or comes late, each request ends once and its tokens are those of the
// undisturbed run.
#include <gtest/gtest.h>

#include "router/core/sim_cluster.h"

namespace agentserve::router::sim {
namespace {

SimOptions Base(uint64_t seed) {
  SimOptions o;
  o.seed = seed;
  o.core.prefill_threshold = 30;
  o.core.expected_output_tokens = 16;
  o.core.poison_limit = 1000;
  o.core.max_attempts = 1000;
  o.core.no_worker_grace = 60 * base::kNsPerSecond;
  o.core.max_queue_wait = 300 * base::kNsPerSecond;
  o.core.policy = std::string(Policies()[seed % Policies().size()].name);
  return o;
}

// Finished sequences equal the reference; others are a prefix of it.
void CheckStreams(const SimCluster& sim, uint64_t seed) {
  for (const SimCluster::Client& c : sim.clients()) {
    if (c.refused) continue;
    SCOPED_TRACE(::testing::Message() << "seed " << seed << " request " << c.sub.request_id << " " << c.message);
    EXPECT_EQ(c.ends, 1u);
    for (uint32_t i = 0; i < c.sub.n; ++i) {
      std::vector<TokenId> want = Reference(c.sub, i);
      const bool complete = c.reason == EndReason::kDone && !(i == 0 && c.stop_after > 0);
      if (c.reason == EndReason::kDone) {
        EXPECT_TRUE(c.seq_ended[i]);
      }
      if (complete) {
        EXPECT_EQ(c.tokens[i], want);
      } else {
        ASSERT_LE(c.tokens[i].size(), want.size());
        want.resize(c.tokens[i].size());
        EXPECT_EQ(c.tokens[i], want);
      }
    }
  }
}

TEST(RouterSimTest, QuietClusterServesEverything) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SimCluster sim(Base(seed));
    sim.Run();
    CheckStreams(sim, seed);
    for (const auto& c : sim.clients()) EXPECT_EQ(c.reason, EndReason::kDone) << c.message;
    EXPECT_EQ(sim.held_by_workers(), 0u) << "seed " << seed;
    EXPECT_GT(sim.core().stats().placed_local, 0u);
    EXPECT_GT(sim.core().stats().placed_remote, 0u);
  }
}

TEST(RouterSimTest, NoPrefillWorkerIsTheAggregatedBaseline) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SimOptions o = Base(seed);
    o.prefill_workers = 0;
    SimCluster sim(o);
    sim.Run();
    CheckStreams(sim, seed);
    for (const auto& c : sim.clients()) EXPECT_EQ(c.reason, EndReason::kDone);
    EXPECT_EQ(sim.core().stats().placed_remote, 0u);
  }
}

TEST(RouterSimTest, StreamsSurviveCrashesExactly) {
  uint32_t kills = 0;
  uint64_t migrations = 0, late = 0;
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SimOptions o = Base(seed);
    o.kill_every_s = 0.15;
    o.repeat_share = 0.1;
    o.stop_share = 0.1;
    o.prefill_workers = static_cast<uint32_t>(seed % 4);
    SimCluster sim(o);
    sim.Run();
    CheckStreams(sim, seed);
    for (const auto& c : sim.clients()) EXPECT_EQ(c.reason, EndReason::kDone) << "seed " << seed << ": " << c.message;
    EXPECT_EQ(sim.held_by_workers(), 0u) << "seed " << seed;
    kills += sim.kills();
    migrations += sim.core().stats().migrations;
    late += sim.core().stats().late_messages;
  }
  // The faults took effect.
  EXPECT_GT(kills, 1000u);
  EXPECT_GT(migrations, 200u);
  EXPECT_GT(late, 1000u);
}

TEST(RouterSimTest, EverythingAtOnce) {
  uint64_t cancelled = 0, deadline = 0, poison = 0;
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SimOptions o = Base(seed);
    o.kill_every_s = 0.2;
    o.repeat_share = 0.1;
    o.cancel_share = 0.2;
    o.deadline_share = 0.2;
    o.fail_share = 0.1;
    o.stop_share = 0.1;
    o.core.poison_limit = 2;
    o.core.max_attempts = 6;
    o.prefill_workers = static_cast<uint32_t>(seed % 3);
    SimCluster sim(o);
    sim.Run();
    CheckStreams(sim, seed);
    for (const auto& c : sim.clients()) {
      cancelled += c.reason == EndReason::kCancelled;
      deadline += c.reason == EndReason::kDeadline || c.reason == EndReason::kQueueTimeout;
      poison += c.reason == EndReason::kPoison;
    }
    EXPECT_EQ(sim.core().live_requests(), 0u);
    EXPECT_EQ(sim.held_by_workers(), 0u) << "seed " << seed;
  }
  EXPECT_GT(cancelled, 500u);
  EXPECT_GT(deadline, 100u);
  EXPECT_GT(poison, 1u);
}

TEST(RouterSimTest, SmallPoolsMakeProgress) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SimOptions o = Base(seed);
    o.blocks = 32;  // one long prompt and its output at a time
    o.max_batch = 8;
    SimCluster sim(o);
    sim.Run();
    CheckStreams(sim, seed);
    for (const auto& c : sim.clients()) EXPECT_EQ(c.reason, EndReason::kDone) << c.message;
  }
}

}  // namespace
}  // namespace agentserve::router::sim
