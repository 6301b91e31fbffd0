// KV in host memory below a decode worker's pool: what comes back from there gives the tokens of the offline reference.
#include "base/failpoint.h"
#include "tests/workers/worker_fixture.h"

namespace agentserve {
namespace {

worker::NodeOptions SmallPool(int64_t host_kv_mib = 64) {
  worker::NodeOptions options;
  options.kv_blocks = 16;  // 256 tokens: two turns of different programs do not fit
  options.host_kv_mib = host_kv_mib;
  options.step_tokens = 64;
  options.max_batch = 8;
  return options;
}

// A worker and its router, and the first turn of a program with 150 tokens.
struct Rig {
  explicit Rig(const worker::NodeOptions& options)
      : d(worker::Role::kDecode, options),
        router("", d.node->address(), TheFixture().model().end_tokens()),
        turn(LongPrompt(1)) {}

  static TestRequest LongPrompt(uint64_t seed, size_t tokens = 150) {
    base::SplitMix64 rng(seed);
    TestRequest r;
    for (size_t i = 0; i < tokens; ++i) {
      r.tokens.push_back(static_cast<uint32_t>(rng.Below(TheFixture().model().config().vocab_size)));
    }
    r.sampling.set_temperature(0);
    r.sampling.set_max_tokens(6);
    r.sampling.set_ignore_eos(true);
    return r;
  }
  // The program's next turn: what it has, and what a tool said.
  TestRequest NextTurn() const {
    TestRequest next = turn;
    next.tokens.insert(next.tokens.end(), turn.out.begin(), turn.out.end());
    for (uint32_t i = 0; i < 10; ++i) next.tokens.push_back(40 + i);
    next.out.clear();
    next.prompt_tokens = next.cached_tokens = next.host_tokens = 0;
    return next;
  }
  void RunAndCheck(TestRequest* r) {
    ASSERT_TRUE(router.RunAll({r}));
    EXPECT_EQ(r->failure, "");
    EXPECT_EQ(r->out, TheFixture().Reference(*r));
  }
  bool WaitStored() {
    return router.WaitLoad([](const auto& load) { return load.host_blocks() >= 9; });
  }
  // Another program fills the pool.
  void Evict() {
    TestRequest other = LongPrompt(2, 240);
    RunAndCheck(&other);
  }

  Running<decode_worker::Worker> d;
  MiniRouter router;
  TestRequest turn;
};

TEST(HostTier, ATurnThatWasEvictedComesBackFromHostMemory) {
  Rig rig(SmallPool());
  rig.RunAndCheck(&rig.turn);
  rig.router.Retain(rig.turn, dwire::KEEP_WHERE_HOST);
  ASSERT_TRUE(rig.WaitStored());
  rig.Evict();
  TestRequest next = rig.NextTurn();
  rig.RunAndCheck(&next);
  EXPECT_GE(next.cached_tokens, 144u);
  EXPECT_GE(next.host_tokens, 140u) << "its blocks had been evicted from the pool";
}

TEST(HostTier, WithoutOneItIsComputedAgain) {
  Rig rig(SmallPool(0));
  rig.RunAndCheck(&rig.turn);
  rig.router.Retain(rig.turn, dwire::KEEP_WHERE_HOST);
  rig.Evict();
  TestRequest next = rig.NextTurn();
  rig.RunAndCheck(&next);
  EXPECT_LT(next.cached_tokens, 32u);
  EXPECT_EQ(next.host_tokens, 0u);
}

TEST(HostTier, ABlockThatChangedInHostMemoryIsComputedAgain) {
  Rig rig(SmallPool());
  rig.RunAndCheck(&rig.turn);
  ASSERT_TRUE(base::ArmFailpoints("hk.corrupt=1").ok());
  rig.router.Retain(rig.turn, dwire::KEEP_WHERE_HOST);
  ASSERT_TRUE(rig.WaitStored());
  rig.Evict();
  TestRequest next = rig.NextTurn();
  rig.RunAndCheck(&next);
  EXPECT_EQ(next.host_tokens, 0u) << "the first block is the bad one";
  ASSERT_TRUE(base::ArmFailpoints("").ok());
  ASSERT_TRUE(rig.router.WaitLoad([](const auto& load) { return load.host_blocks() == 0; }))
      << "what follows a bad block is of no use";
}

TEST(HostTier, PrefetchBringsItBackBeforeItIsAskedFor) {
  Rig rig(SmallPool());
  rig.RunAndCheck(&rig.turn);
  rig.router.Retain(rig.turn, dwire::KEEP_WHERE_HOST);
  ASSERT_TRUE(rig.WaitStored());
  rig.Evict();
  rig.router.Prefetch(rig.turn, 60'000);
  ASSERT_TRUE(rig.router.WaitLoad([](const auto& load) { return load.parked_blocks() > 0; }));
  TestRequest next = rig.NextTurn();
  rig.RunAndCheck(&next);
  EXPECT_GE(next.cached_tokens, 100u);
  EXPECT_LT(next.host_tokens, next.cached_tokens) << "most of it was on the device again";
}

TEST(HostTier, DropFreesIt) {
  Rig rig(SmallPool());
  rig.RunAndCheck(&rig.turn);
  rig.router.Retain(rig.turn, dwire::KEEP_WHERE_HOST);
  ASSERT_TRUE(rig.WaitStored());
  rig.router.Retain(rig.turn, dwire::KEEP_WHERE_DROP);
  EXPECT_TRUE(rig.router.WaitLoad([](const auto& load) { return load.host_blocks() == 0; }));
}

// Many programs in a pool for two of them, in turns, parked wherever: tokens are always those of the reference.
TEST(HostTier, RandomTurnsEqualReference) {
  Rig rig(SmallPool());
  base::SplitMix64 rng(5);
  std::vector<TestRequest> programs;
  for (uint64_t i = 0; i < 5; ++i) programs.push_back(Rig::LongPrompt(10 + i, 40 + rng.Below(60)));
  uint64_t from_host = 0;
  for (int round = 0; round < 6; ++round) {
    std::vector<TestRequest*> all;
    for (TestRequest& p : programs) {
      p.sampling.set_max_tokens(static_cast<uint32_t>(1 + rng.Below(8)));
      p.prompt_tokens = p.cached_tokens = 0;
      if (rng.Below(2) && round > 0) rig.router.Prefetch(p, 1000);
      all.push_back(&p);
    }
    ASSERT_TRUE(rig.router.RunAll(all));
    for (TestRequest& p : programs) {
      EXPECT_EQ(p.failure, "");
      EXPECT_EQ(p.out, TheFixture().Reference(p)) << "round " << round;
      from_host += p.host_tokens;
      constexpr dwire::KeepWhere kPlaces[] = {dwire::KEEP_WHERE_HOST, dwire::KEEP_WHERE_DEVICE};
      rig.router.Retain(p, kPlaces[rng.Below(2)], 500);
      p.tokens.insert(p.tokens.end(), p.out.begin(), p.out.end());
      p.tokens.push_back(static_cast<uint32_t>(50 + round));
      p.out.clear();
    }
  }
  EXPECT_GT(from_host, 200u);
}

}  // namespace
}  // namespace agentserve

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const auto device = agentserve::kvstore::ResolveDevice(agentserve::TestDevice()); !device.ok()) {
    std::printf("SKIPPED: %s\n", std::string(device.status().message()).c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
