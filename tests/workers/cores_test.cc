// Properties of the two worker cores together, in tiny pools and under faults: every request ends exactly once, every
// token is the one the plain rules give, no block is lost, no row of another sequence is ever read.
#include <gtest/gtest.h>

#include "tests/workers/toy_cluster.h"

namespace agentserve {
namespace {

std::vector<TokenId> Prompt(base::SplitMix64* rng, size_t n) {
  std::vector<TokenId> p;
  for (size_t i = 0; i < n; ++i) p.push_back(static_cast<TokenId>(8 + rng->Below(engine::kToyVocab - 8)));
  return p;
}

struct Totals {
  uint64_t finished = 0, failed = 0, cancelled = 0, invalid = 0, recomputes = 0, pulled = 0, preemptions = 0, hits = 0,
           planned_ahead = 0, host_hits = 0, stored = 0, prefetched = 0, corrupt_host = 0, p_loaded = 0;
};

void CheckEnds(ToyCluster* cluster, Totals* totals) {
  EXPECT_EQ(cluster->d.pool().available(), cluster->shape_.d_blocks);
  EXPECT_EQ(cluster->p.pool().available(), cluster->shape_.p_blocks);
  EXPECT_EQ(cluster->p_executor.bad_reads(), 0u);
  EXPECT_EQ(cluster->d_executor.bad_reads(), 0u);
  EXPECT_EQ(cluster->d_pipeline.orphans(), 0u);
  for (SeqId id : cluster->d_started) EXPECT_EQ(cluster->d_closed[id], 1) << "sequence " << id;
  for (SeqId id : cluster->p_started) EXPECT_EQ(cluster->p_closed[id], 1) << "sequence " << id;
  for (const auto& [id, r] : cluster->requests) {
    EXPECT_TRUE(r.ended) << "sequence " << id;
    if (r.failed || r.cancelled) {
      ASSERT_LE(r.got.size(), r.want.size());
      EXPECT_TRUE(std::equal(r.got.begin(), r.got.end(), r.want.begin())) << "sequence " << id;
      totals->failed += r.failed;
      totals->cancelled += r.cancelled;
      if (r.failed) {
        EXPECT_TRUE(r.failure == "DEADLINE" || r.failure == "TOO_LONG") << r.failure;
      }
    } else {
      EXPECT_EQ(r.got, r.want) << "sequence " << id;
      ++totals->finished;
    }
  }
}

void RunSeed(uint64_t seed, size_t steps_in_flight, bool host_tier, Totals* totals) {
  base::SplitMix64 rng(seed * 7919);
  ToyCluster::Shape shape;
  shape.block_tokens = static_cast<uint32_t>(1 + rng.Below(5));
  shape.p_blocks = static_cast<uint32_t>(4 + rng.Below(rng.Below(2) ? 12 : 60));
  shape.d_blocks = static_cast<uint32_t>(4 + rng.Below(rng.Below(2) ? 12 : 60));
  shape.batch = static_cast<uint32_t>(1 + rng.Below(6));
  shape.step_tokens = shape.batch + static_cast<uint32_t>(rng.Below(12));
  shape.cache = rng.Below(4) > 0;
  shape.remote_share = 0.25 * static_cast<double>(rng.Below(5));
  shape.steps_in_flight = steps_in_flight;
  ToyFaults faults;  // each kind of fault is absent in half of the seeds
  faults.corrupt_copies = rng.Below(2);
  faults.early_reuse = rng.Below(2);
  faults.cancels = rng.Below(2);
  faults.preempts = rng.Below(2);
  faults.deadlines = rng.Below(2);
  faults.prefill_loss = rng.Below(2);
  if (host_tier) {
    shape.cache = true;
    shape.d_blocks = static_cast<uint32_t>(4 + rng.Below(20));
    shape.host_slots = static_cast<uint32_t>(1 + rng.Below(60));
    shape.p_host_slots = static_cast<uint32_t>(rng.Below(40));
    faults.corrupt_host = rng.Below(2);
    faults.lost_copies = rng.Below(2);
  }
  ToyCluster cluster(seed, shape, faults);
  std::vector<std::vector<TokenId>> stems;
  for (int i = 0; i < 3; ++i) stems.push_back(Prompt(&rng, rng.Below(cluster.context())));

  for (int turn = 0; turn < 1500; ++turn) {
    if (turn < 1000 && rng.Below(30) == 0) {
      auto prompt = stems[rng.Below(stems.size())];
      for (TokenId t : Prompt(&rng, 1 + rng.Below(4))) prompt.push_back(t);
      const base::TimeNs budget = faults.deadlines && rng.Below(4) == 0 ? static_cast<base::TimeNs>(rng.Below(60'000))
                                                                        : 3'600 * base::kNsPerSecond;
      cluster.Submit(std::move(prompt), static_cast<uint32_t>(1 + rng.Below(20)), budget);
    }
    cluster.Move();
    if (testing::Test::HasFailure()) return;
  }
  // Faults stop: everything ends.
  cluster.calm = true;
  for (int turn = 0; turn < 40'000 && (cluster.p.size() > 0 || cluster.d.size() > 0 || cluster.d.pulling() > 0 ||
                                       cluster.d.copying() > 0 || cluster.p.copying() > 0);
       ++turn) {
    cluster.Move();
  }
  ASSERT_EQ(cluster.d.size(), 0u) << "the decode core still has sequences";
  for (int i = 0; i < 100 && cluster.p.size() > 0; ++i) {
    cluster.now += base::kNsPerSecond;  // holds that nobody will release expire
    cluster.Move();
  }
  ASSERT_EQ(cluster.p.size(), 0u) << "the prefill core still has sequences";
  for (int i = 0; i < 1000; ++i) cluster.Move();

  CheckEnds(&cluster, totals);
  totals->invalid += cluster.invalid_seen;
  totals->recomputes += cluster.recomputes;
  totals->pulled += cluster.pulled;
  totals->planned_ahead += cluster.planned_ahead;
  totals->host_hits += cluster.host_hits;
  totals->stored += cluster.d.tiers().stats().stored_blocks;
  totals->prefetched += cluster.d.tiers().stats().prefetched_blocks;
  totals->p_loaded += cluster.p.tiers().stats().loaded_blocks;
  totals->corrupt_host += cluster.d.tiers().stats().corrupt_blocks;
  totals->preemptions += cluster.d.stats().preemptions;
  totals->hits += cluster.d.stats().prefix_hits + cluster.p.stats().prefix_hits;
}

void RunClusters(size_t steps_in_flight, bool host_tier) {
  Totals totals;
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    RunSeed(seed, steps_in_flight, host_tier, &totals);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
  // Each path must really have been taken.
  EXPECT_GT(totals.finished, 1000u);
  EXPECT_GT(totals.failed, 50u);
  EXPECT_GT(totals.cancelled, 100u);
  EXPECT_GT(totals.pulled, 500u);
  EXPECT_GT(totals.invalid, 20u) << "corrupted copies must be noticed";
  EXPECT_GT(totals.recomputes, totals.invalid);
  EXPECT_GT(totals.preemptions, 100u);
  EXPECT_GT(totals.hits, 1000u);
  EXPECT_EQ(totals.planned_ahead > 1000u, steps_in_flight > 1);
  if (!host_tier) return;
  EXPECT_GT(totals.stored, 2000u);
  EXPECT_GT(totals.host_hits, 1000u);
  EXPECT_GT(totals.prefetched, 100u);
  EXPECT_GT(totals.p_loaded, 1000u);
  EXPECT_GT(totals.corrupt_host, 20u) << "blocks that changed in host memory must be noticed";
}

TEST(WorkerCores, RandomClustersUnderFaults) { RunClusters(1, false); }
TEST(WorkerCores, RandomClustersWithTwoStepsInFlight) { RunClusters(2, false); }
TEST(WorkerCores, RandomClustersWithHostTier) { RunClusters(1, true); }
TEST(WorkerCores, RandomClustersWithHostTierAndTwoStepsInFlight) { RunClusters(2, true); }

}  // namespace
}  // namespace agentserve
