#include "router/core/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace agentserve::router {
namespace {

constexpr TimeNs kSecond = base::kNsPerSecond;

std::vector<base::Hash128> Chain(uint64_t salt, size_t n) {
  std::vector<base::Hash128> chain;
  for (size_t i = 0; i < n; ++i) chain.push_back({salt, i + 1});
  return chain;
}

class RetentionTest : public ::testing::Test {
 protected:
  // A worker of 1000 blocks of 16 tokens (32 KiB each token) that prefills 10,000 tokens a second.
  WorkerId AddWorker(const std::string& name, uint32_t host_blocks) {
    WorkerInfo info;
    info.name = name;
    info.incarnation = next_++;
    info.address = "x";
    info.model_fingerprint = "m";
    info.num_blocks = 1000;
    info.block_bytes = 16 * 32 * 1024;
    info.prefill_tokens_per_s = 10'000;
    info.max_batch = 8;
    const WorkerId id = workers_.Register(info, now_)->id;
    Worker* w = workers_.Find(id);
    w->phase = WorkerPhase::kReady;
    w->linked = w->has_load = true;
    w->load.total_blocks = w->load.available_blocks = 1000;
    w->load.host_total_blocks = host_blocks;
    return id;
  }
  RetentionView View() const { return {workers_, tools_, queued_, now_}; }
  Retention::Turn Turn(std::string_view program, WorkerId w, uint64_t seq, uint32_t tokens = 1600) {
    Retention::Turn t;
    t.program = program;
    t.tenant = "t";
    t.workflow_class = "react";
    t.tool = "search";
    t.worker = w;
    t.seq = SeqId(seq);
    t.attempt = 1;
    t.tokens = tokens;
    return t;
  }
  void Gaps(double ms, int n = 100) {
    for (int i = 0; i < n; ++i) tools_.OnReturn("react", "search", ms * (0.8 + 0.4 * (i % 10) / 10));
  }
  RetainAction One() {
    const std::vector<RetainAction> actions = retention_.TakeActions();
    EXPECT_EQ(actions.size(), 1u);
    retention_.CheckInvariants();
    return actions.empty() ? RetainAction{} : actions.front();
  }

  CoreConfig config_;
  WorkerTable workers_{config_};
  ToolStats tools_;
  Retention retention_{RetentionOptions{}};
  TimeNs now_ = 1;
  uint32_t queued_ = 0;
  uint64_t next_ = 1;
};

TEST_F(RetentionTest, WhileNobodyWaitsItIsCacheOfItsWorth) {
  const WorkerId bare = AddWorker("d0", 0), with_host = AddWorker("d1", 5000);
  Gaps(3000);
  for (int i = 0; i < 100; ++i) tools_.OnReturn("react", "build", 600'000);
  retention_.OnTurnEnd(Turn("p", bare, 1), View());
  const RetainAction soon = One();
  EXPECT_EQ(soon.keep, KeepWhere::kDevice);
  EXPECT_EQ(soon.ttl_ms, 0u) << "a pin would only keep others' KV away";
  EXPECT_EQ(soon.reason, RetainReason::kCacheOnly);
  EXPECT_GT(soon.worth, 8);
  retention_.OnTurnEnd(Turn("q", with_host, 2), View());
  EXPECT_EQ(One().reason, RetainReason::kHostCopy);
  Retention::Turn late = Turn("r", bare, 3);
  late.tool = "build";
  retention_.OnTurnEnd(late, View());
  EXPECT_LT(One().worth, 1);
}

TEST_F(RetentionTest, ALongToolUnderALongQueueGoesToTheHost) {
  const WorkerId w = AddWorker("d0", 5000);
  Gaps(60'000);
  queued_ = 20;
  retention_.OnTurnEnd(Turn("p", w, 1), View());
  // Saved: loading 50 MiB takes 5 ms; price: 20 * 100/1000 for each of ~60 s.
  const RetainAction a = One();
  EXPECT_EQ(a.keep, KeepWhere::kHost);
  EXPECT_EQ(a.reason, RetainReason::kHostPrice);
  EXPECT_EQ(retention_.pinned(w, "t"), 0u);
  // At the median of the wait it is brought back.
  const TimeNs wake = retention_.NextWake();
  EXPECT_GT(wake, 40 * kSecond);
  EXPECT_LT(wake, 80 * kSecond);
  now_ = wake;
  retention_.Tick(View());
  const RetainAction back = One();
  EXPECT_EQ(back.kind, CommandKind::kPrefetch);
  EXPECT_EQ(back.reason, RetainReason::kPrefetchMedian);
}

TEST_F(RetentionTest, AShortToolIsWorthItsRoomEvenUnderAQueue) {
  const WorkerId w = AddWorker("d0", 0);
  Gaps(100);
  queued_ = 4;
  // Computing 8,000 tokens again takes 0.8 s; half of the pool for a tenth of a second costs the four 0.2 s.
  RetentionOptions whole;
  whole.tenant_share = 1;
  Retention own{whole};
  own.OnTurnEnd(Turn("p", w, 1, 8'000), View());
  const auto actions = own.TakeActions();
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(actions[0].reason, RetainReason::kPinWorth);
  EXPECT_LE(actions[0].ttl_ms, 1'000u);
}

TEST_F(RetentionTest, ATenantMayHaveAPinShareOfItsOwn) {
  const WorkerId w = AddWorker("d0", 0);
  Gaps(3000);
  Retention::Turn asks = Turn("p", w, 1);
  asks.retain_ms = 30'000;
  Retention none{RetentionOptions{.tenant_share = 1, .tenant_shares = {{"t", 0.0}}}};
  none.OnTurnEnd(asks, View());
  none.TakeActions();
  EXPECT_EQ(none.pinned(w, "t"), 0u);
  Retention all{RetentionOptions{.tenant_share = 0, .tenant_shares = {{"t", 1.0}}}};
  all.OnTurnEnd(asks, View());
  EXPECT_EQ(all.TakeActions().size(), 1u);
  EXPECT_EQ(all.pinned(w, "t"), 100u);
}

TEST_F(RetentionTest, WithoutHostMemoryItStaysOrdinaryCache) {
  const WorkerId w = AddWorker("d0", 0);
  Gaps(600'000);
  queued_ = 50;
  retention_.OnTurnEnd(Turn("p", w, 1), View());
  const RetainAction a = One();
  EXPECT_EQ(a.keep, KeepWhere::kDevice);
  EXPECT_EQ(a.ttl_ms, 0u);
  EXPECT_EQ(a.reason, RetainReason::kCacheOnly);
}

TEST_F(RetentionTest, PressureTakesPinsBack) {
  const WorkerId w = AddWorker("d0", 0);
  Gaps(500);
  queued_ = 1;
  // Computing 1,600 tokens again takes 0.16 s; a tenth of the pool for half a second costs the one that waits 0.05 s.
  retention_.OnTurnEnd(Turn("p", w, 1), View());
  EXPECT_EQ(One().reason, RetainReason::kPinWorth);
  EXPECT_EQ(retention_.pinned(w, "t"), 100u);
  queued_ = 30;
  now_ += base::kNsPerMs;
  retention_.OnPressure(View());
  EXPECT_EQ(One().reason, RetainReason::kCacheOnly);
  EXPECT_EQ(retention_.pinned(w, "t"), 0u);
  retention_.OnPressure(View());
  EXPECT_TRUE(retention_.TakeActions().empty());
}

TEST_F(RetentionTest, TheToolsNameDecidesAgain) {
  const WorkerId w = AddWorker("d0", 0);
  Gaps(500);
  for (int i = 0; i < 50; ++i) tools_.OnReturn("react", "build", 300'000);
  queued_ = 1;
  retention_.OnTurnEnd(Turn("p", w, 1), View());
  EXPECT_EQ(One().reason, RetainReason::kPinWorth);
  retention_.OnToolStart("p", "search", View());
  EXPECT_TRUE(retention_.TakeActions().empty()) << "as expected";
  retention_.OnToolStart("p", "build", View());
  EXPECT_EQ(One().reason, RetainReason::kCacheOnly);
  now_ += 10 * kSecond;
  retention_.OnToolEnd("p", View());
  EXPECT_EQ(One().reason, RetainReason::kPrefetchToolEnd);
  retention_.OnToolEnd("p", View());
  EXPECT_TRUE(retention_.TakeActions().empty()) << "once";
}

TEST_F(RetentionTest, TheMedianIsThatOfTheRightTool) {
  const WorkerId w = AddWorker("d0", 5000);
  Gaps(500);
  for (int i = 0; i < 50; ++i) tools_.OnReturn("react", "build", 300'000);
  retention_.OnTurnEnd(Turn("p", w, 1), View());
  EXPECT_EQ(One().keep, KeepWhere::kHost);
  EXPECT_LT(retention_.NextWake(), 2 * kSecond);
  retention_.OnToolStart("p", "build", View());
  EXPECT_GT(retention_.NextWake(), 200 * kSecond);
}

TEST_F(RetentionTest, ATenantPinsItsShareOnly) {
  const WorkerId w = AddWorker("d0", 5000);
  Gaps(3000);
  const auto asks = [&](const std::string& program, const std::string& tenant, uint64_t seq) {
    Retention::Turn t = Turn(program, w, seq);
    t.tenant = tenant;
    t.retain_ms = 60'000;
    retention_.OnTurnEnd(t, View());
    return One();
  };
  EXPECT_EQ(asks("p0", "t", 1).reason, RetainReason::kPinAsked);
  const RetainAction second = asks("p1", "t", 2);
  EXPECT_EQ(second.keep, KeepWhere::kDevice);
  EXPECT_EQ(second.ttl_ms, 60'000u);
  EXPECT_EQ(asks("p2", "t", 3).reason, RetainReason::kHostQuota);
  EXPECT_EQ(asks("q", "another", 4).keep, KeepWhere::kDevice);
  EXPECT_EQ(retention_.pinned(w, "t"), 200u);
}

TEST_F(RetentionTest, EndsAndRewritesGiveItUp) {
  const WorkerId w = AddWorker("d0", 5000), v = AddWorker("d1", 0);
  Gaps(3000);
  const auto history = Chain(1, 8);
  Retention::Turn t = Turn("p", w, 1);
  t.chain = history;
  retention_.OnTurnEnd(t, View());
  One();
  // The client cut its history after block 6.
  auto cut = history;
  cut.resize(6);
  cut.push_back({9, 9});
  retention_.OnCall("p", cut, View());
  EXPECT_TRUE(retention_.TakeActions().empty()) << "the two part where the new call's blocks begin";
  t = Turn("p", w, 2);
  t.chain = cut;
  retention_.OnTurnEnd(t, View());
  auto actions = retention_.TakeActions();
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(actions[0].reason, RetainReason::kDropReplaced);
  EXPECT_EQ(actions[0].seq, SeqId(1));
  EXPECT_EQ(actions[1].seq, SeqId(2));
  // It goes on on another worker.
  auto longer = cut;
  longer.push_back({9, 10});
  retention_.OnCall("p", longer, View());
  t = Turn("p", v, 3);
  t.chain = longer;
  retention_.OnTurnEnd(t, View());
  actions = retention_.TakeActions();
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(actions[0].reason, RetainReason::kDropMoved);
  EXPECT_EQ(actions[0].worker, w);
  // A conversation beside it shares only its beginning: nothing is given up.
  retention_.OnCall("p", Chain(7, 4), View());
  t = Turn("p", w, 4);
  retention_.OnTurnEnd(t, View());
  actions = retention_.TakeActions();
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_NE(actions[0].keep, KeepWhere::kDrop);
  retention_.OnProgramEnd("p", View());
  EXPECT_EQ(One().reason, RetainReason::kDropEnded);
  t = Turn("f", w, 5);
  t.final = true;
  retention_.OnTurnEnd(t, View());
  EXPECT_EQ(One().reason, RetainReason::kDropFinal);
  EXPECT_EQ(retention_.size(), 0u);
}

TEST_F(RetentionTest, AQueuedCallBringsItBack) {
  const WorkerId w = AddWorker("d0", 5000);
  Gaps(60'000);
  queued_ = 20;
  retention_.OnTurnEnd(Turn("p", w, 1), View());
  One();
  retention_.OnCall("p", {}, View());
  retention_.OnQueued("p", View());
  EXPECT_EQ(One().reason, RetainReason::kPrefetchQueued);
  EXPECT_EQ(retention_.LastReason("p"), "prefetch_queued");
}

// A random history of events.
struct RandomRun {
  explicit RandomRun(uint64_t seed) : rng(seed), options(Options(&rng)), retention(options) {
    for (int i = 0; i < 3; ++i) {
      WorkerInfo info;
      info.name = "d" + std::to_string(i);
      info.incarnation = 1;
      info.address = "x";
      info.model_fingerprint = "m";
      info.num_blocks = 64;
      info.block_bytes = rng.Below(2) ? 1 << 16 : 0;
      info.max_batch = 8;
      ids.push_back(workers.Register(info, now)->id);
      Worker* w = workers.Find(ids.back());
      w->phase = WorkerPhase::kReady;
      w->has_load = true;
      w->load.total_blocks = 64;
      w->load.host_total_blocks = rng.Below(2) ? 100 : 0;
    }
  }
  static RetentionOptions Options(base::SplitMix64* rng) {
    RetentionOptions o;
    o.most = 1 + rng->Below(20);
    return o;
  }
  void EndTurn(const std::string& program, std::span<const base::Hash128> chain, const RetentionView& view) {
    Retention::Turn t;
    t.program = program;
    t.tenant = rng.Below(2) ? "a" : "b";
    t.tool = rng.Below(2) ? "x" : "y";
    t.worker = ids[rng.Below(3)];
    t.seq = SeqId(++seq);
    t.attempt = 1;
    t.tokens = static_cast<uint32_t>(1 + rng.Below(600));
    t.chain = chain;
    if (rng.Below(4) == 0) t.retain_ms = rng.Below(1'000'000);
    if (rng.Below(4) == 0) t.gap_hint_ms = rng.Below(100'000);
    t.final = rng.Below(10) == 0;
    known[{t.worker, seq}] = true;
    retention.OnTurnEnd(t, view);
  }
  void Step() {
    now += static_cast<TimeNs>(rng.Below(3 * kSecond));
    const std::string program = "p" + std::to_string(rng.Below(25));
    const RetentionView view{workers, tools, static_cast<uint32_t>(rng.Below(3) ? 0 : rng.Below(40)), now};
    const auto chain = Chain(rng.Below(3), rng.Below(6));
    const uint64_t what = rng.Below(9);
    if (what < 3) EndTurn(program, chain, view);
    if (what == 3) retention.OnCall(program, chain, view);
    if (what == 3 && rng.Below(2)) retention.OnQueued(program, view);
    if (what == 4) retention.OnToolStart(program, rng.Below(2) ? "x" : "z", view);
    if (what == 5) tools.OnReturn("", "x", static_cast<double>(rng.Below(50'000)));
    if (what == 5) retention.OnToolEnd(program, view);
    if (what == 6) retention.OnPressure(view);
    if (what == 7 && rng.Below(10) == 0) retention.OnProgramEnd(program, view);
    if (what == 7 && rng.Below(40) == 0) retention.OnWorkerGone(ids[rng.Below(3)]);
    if (what == 8) retention.Tick(view);
  }
  void Check() {
    for (const RetainAction& a : retention.TakeActions()) {
      EXPECT_TRUE(known.contains({a.worker, a.seq.value}));
      EXPECT_LE(a.ttl_ms, options.most_ttl_ms);
    }
    for (WorkerId w : ids) {
      for (const char* tenant : {"a", "b"}) EXPECT_LE(retention.pinned(w, tenant), 64 * options.tenant_share);
    }
    EXPECT_LE(retention.size(), options.most);
    retention.CheckInvariants();
  }

  base::SplitMix64 rng;
  const RetentionOptions options;
  CoreConfig config;
  WorkerTable workers{config};
  ToolStats tools;
  Retention retention;
  TimeNs now = 1;
  std::vector<WorkerId> ids;
  std::map<std::pair<WorkerId, uint64_t>, bool> known;
  uint64_t seq = 0;
};

// Any order of events: tables are consistent and bounded, no tenant pins more than its share, words go to known
// sequences only, and all timers run out.
TEST(Retention, RandomEvents) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    RandomRun run(seed);
    for (int step = 0; step < 400; ++step) {
      run.Step();
      run.Check();
      ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed << " step " << step;
    }
    for (int i = 0; i < 10'000 && run.retention.NextWake() != std::numeric_limits<TimeNs>::max(); ++i) {
      run.now = std::max(run.now + 1, run.retention.NextWake());
      run.retention.Tick({run.workers, run.tools, 0, run.now});
    }
    EXPECT_EQ(run.retention.NextWake(), std::numeric_limits<TimeNs>::max()) << "timers for ever, seed " << seed;
    for (WorkerId w : run.ids) EXPECT_EQ(run.retention.pinned(w, "a") + run.retention.pinned(w, "b"), 0u);
  }
}

}  // namespace
}  // namespace agentserve::router
