// A prefill and a decode worker in one process, over real gRPC and a real (random, tiny) Llama: whatever path a request
// takes, its tokens are those of the offline reference.
#include "base/failpoint.h"
#include "tests/workers/worker_fixture.h"

namespace agentserve {
namespace {

size_t CountTransport(const std::vector<TestRequest>& requests, const std::string& transport) {
  return static_cast<size_t>(
      std::count_if(requests.begin(), requests.end(), [&](const TestRequest& r) { return r.transport == transport; }));
}

TEST(Workers, AggregatedEqualsReference) {
  Pair pair;
  auto requests = RandomRequests(1, 24, 0.0);
  RunAndCompare(pair.router.get(), &requests);
  EXPECT_TRUE(pair.router->WaitIdle());
}

TEST(Workers, MappedPullsEqualReference) {
  Pair pair;
  EXPECT_EQ(pair.peer.transport(), "mapped") << pair.peer.problem();
  EXPECT_GT(pair.peer.gb_per_s(), 0);
  auto requests = RandomRequests(2, 32, 0.8);
  RunAndCompare(pair.router.get(), &requests);
  EXPECT_GT(CountTransport(requests, "mapped"), 15u);
  EXPECT_EQ(CountTransport(requests, "recompute"), 0u);
  EXPECT_TRUE(pair.router->WaitIdle());
  // The same prompts again: now from the caches.
  auto again = RandomRequests(2, 32, 0.8);
  RunAndCompare(pair.router.get(), &again);
  EXPECT_TRUE(std::any_of(again.begin(), again.end(), [](const auto& r) { return r.cached_tokens > 0; }));
}

TEST(Workers, StreamedPullsEqualReference) {
  worker::NodeOptions options;
  options.kv_transport = "stream";
  options.prefix_cache = false;
  Pair pair(options);
  EXPECT_EQ(pair.peer.transport(), "stream") << pair.peer.problem();
  auto requests = RandomRequests(3, 24, 0.8);
  RunAndCompare(pair.router.get(), &requests);
  EXPECT_GT(CountTransport(requests, "stream"), 10u);
  EXPECT_TRUE(pair.router->WaitIdle());
}

TEST(Workers, StagedPullsEqualReference) {
  if (TestDevice() == "cpu") GTEST_SKIP() << "staging is between GPUs";
  worker::NodeOptions options;
  options.kv_transport = "staged";
  Pair pair(options);
  EXPECT_EQ(pair.peer.transport(), "staged") << pair.peer.problem();
  auto requests = RandomRequests(11, 24, 0.8);
  RunAndCompare(pair.router.get(), &requests);
  EXPECT_GT(CountTransport(requests, "staged"), 10u);
  EXPECT_TRUE(pair.router->WaitIdle());
}

TEST(Workers, SmallBlocksChunksAndPoolsEqualReference) {
  if (TestDevice() != "cpu") GTEST_SKIP() << "blocks of 4 tokens are for the CPU";
  worker::NodeOptions options;
  options.block_tokens = 4;
  options.kv_blocks = 72;  // one long sequence and a bit: preemption is certain
  options.max_batch = 8;
  options.step_tokens = 24;
  Pair pair(options);
  auto requests = RandomRequests(4, 32, 0.5);
  RunAndCompare(pair.router.get(), &requests);
  EXPECT_TRUE(pair.router->WaitIdle());
  EXPECT_GT(pair.router->d_load->preemptions(), 0u);
}

TEST(Workers, ACorruptCopyIsRecomputed) {
  Pair pair;
  ASSERT_TRUE(base::ArmFailpoints("xf.corrupt=0").ok());
  auto requests = RandomRequests(5, 8, 1.0);
  for (TestRequest& r : requests) r.sampling.set_max_tokens(8);
  RunAndCompare(pair.router.get(), &requests, /*recomputed=*/true);
  ASSERT_TRUE(base::ArmFailpoints("").ok());
  EXPECT_GT(CountTransport(requests, "recompute"), 3u);
  EXPECT_EQ(CountTransport(requests, "mapped"), 0u);
  EXPECT_NE(pair.d->node->metrics()->Render().find("agentserve_kv_validation_failures_total"), std::string::npos);
  EXPECT_TRUE(pair.router->WaitIdle());
}

TEST(Workers, ALostPrefillWorkerIsReplacedByLocalPrefill) {
  Pair pair;
  pair.router->lose_prefill = true;
  auto requests = RandomRequests(6, 8, 1.0);
  RunAndCompare(pair.router.get(), &requests, /*recomputed=*/true);
}

TEST(Workers, AnUnknownPeerIsRecomputed) {
  Pair pair;
  worker::NodeOptions options;
  options.worker_id = "stranger";
  options.kv_blocks = 64;
  Running<prefill_worker::Worker> stranger(worker::Role::kPrefill, options);
  MiniRouter router(stranger.node->address(), pair.d->node->address(), TheFixture().model().end_tokens());
  auto requests = RandomRequests(7, 4, 1.0);
  for (TestRequest& r : requests) r.sampling.set_max_tokens(6);
  RunAndCompare(&router, &requests, /*recomputed=*/true);
  EXPECT_EQ(CountTransport(requests, "mapped"), 0u);
}

TEST(Workers, RefusesBadRequestsAndServesOn) {
  Pair pair;
  auto good = RandomRequests(8, 1, 0.0);
  TestRequest bad_token = good[0], too_long = good[0], nothing_left = good[0], late = good[0];
  bad_token.tokens = {TheFixture().model().config().vocab_size};
  too_long.tokens.assign(100'000, 1);
  nothing_left.sampling.set_max_tokens(0);
  late.budget_ms = 0;
  for (TestRequest* r : {&bad_token, &too_long, &nothing_left, &late}) ASSERT_TRUE(pair.router->RunAll({r}));
  EXPECT_EQ(bad_token.failure, "INVALID");
  EXPECT_EQ(too_long.failure, "TOO_LONG");
  EXPECT_EQ(nothing_left.failure, "INVALID");
  EXPECT_EQ(late.failure, "DEADLINE");
  RunAndCompare(pair.router.get(), &good);
}

TEST(Workers, FencesIncarnationsAndStreams) {
  Pair pair;
  const std::string address = pair.d->node->address();
  DecodeLink wrong(address, [](dwire::RunResponse) {});
  wrong.Hello(pair.d->node->incarnation() + 1);
  EXPECT_EQ(wrong.Join().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  DecodeLink rude(address, [](dwire::RunResponse) {});
  dwire::RunRequest request;
  request.mutable_cancel();
  rude.Send(request);
  EXPECT_EQ(rude.Join().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  // The same router again: its old stream ends.
  DecodeLink first(address, [](dwire::RunResponse) {});
  first.Hello(pair.d->node->incarnation(), 77);
  DecodeLink second(address, [](dwire::RunResponse) {});
  second.Hello(0, 77);
  EXPECT_EQ(first.Join().error_code(), grpc::StatusCode::ABORTED);
}

TEST(Workers, ABrokenStreamGivesAllBlocksBack) {
  Pair pair;
  {
    MiniRouter doomed(pair.p->node->address(), pair.d->node->address(), {});
    auto requests = RandomRequests(9, 6, 0.5);
    for (TestRequest& r : requests) {
      dwire::RunRequest reserve;
      reserve.set_seq(static_cast<uint64_t>(&r - requests.data()) + 1);
      reserve.set_attempt(1);
      reserve.mutable_reserve()->mutable_tokens()->Add(r.tokens.begin(), r.tokens.end());
      reserve.mutable_reserve()->set_prompt_tokens(static_cast<uint32_t>(r.tokens.size()));
      reserve.mutable_reserve()->set_budget_ms(60'000);
      doomed.d()->Send(reserve);
      reserve.clear_reserve();
      reserve.mutable_prefill_local();
      doomed.d()->Send(reserve);
    }
  }
  // It greets again as the same router, so the first router's stream is replaced too.
  MiniRouter after(pair.p->node->address(), pair.d->node->address(), TheFixture().model().end_tokens());
  EXPECT_TRUE(after.WaitIdle());
  auto requests = RandomRequests(10, 4, 0.0);
  RunAndCompare(&after, &requests);
}

// Fails one step with a code of choice.
class FaultyExecutor final : public engine::Executor {
 public:
  FaultyExecutor(std::unique_ptr<engine::Executor> inner, absl::StatusCode code)
      : inner_(std::move(inner)), code_(code) {}
  absl::Status Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) override {
    if (++steps_ == 3) return absl::Status(code_, "planned failure");
    return inner_->Run(plan, observer, out);
  }

 private:
  std::unique_ptr<engine::Executor> inner_;
  const absl::StatusCode code_;
  int steps_ = 0;
};

// Returns the exit code the worker would have, after one failed step and one more request.
int RunWithFailingStep(absl::StatusCode code, TestRequest* first, TestRequest* second) {
  worker::NodeOptions options;
  options.kv_blocks = 64;
  options.metrics_port = -1;
  worker::ModelInfo info = TheFixture().Info(16);
  const auto make = info.new_executor;
  info.new_executor = [=](const engine::KvPoolView& pool) {
    return std::make_unique<FaultyExecutor>(*make(pool), code);
  };
  auto node = worker::Node::Create(options, info, worker::Role::kDecode);
  EXPECT_TRUE(node.ok()) << node.status();
  decode_worker::Worker worker(node->get());
  EXPECT_TRUE((*node)->Listen(worker.service()).ok());
  worker.Start();
  {
    MiniRouter router("", (*node)->address(), TheFixture().model().end_tokens());
    EXPECT_TRUE(router.RunAll({first}));
    if (code != absl::StatusCode::kInternal) {
      EXPECT_TRUE(router.RunAll({second}));
      worker.Stop();
    }
  }
  const int exit_code = worker.Wait();
  (*node)->Shutdown();
  return exit_code;
}

TEST(Workers, AFailedStepEndsItsRequestsAndAnInternalOneTheProcess) {
  auto requests = RandomRequests(12, 2, 0.0);
  for (TestRequest& r : requests) {
    r.sampling.set_max_tokens(8);
    r.sampling.set_ignore_eos(true);
  }
  auto again = requests;
  EXPECT_EQ(RunWithFailingStep(absl::StatusCode::kUnavailable, &requests[0], &requests[1]), 0);
  EXPECT_EQ(requests[0].failure, "EXECUTOR");
  EXPECT_EQ(requests[1].failure, "");
  EXPECT_EQ(requests[1].out, TheFixture().Reference(requests[1]));
  EXPECT_EQ(RunWithFailingStep(absl::StatusCode::kInternal, &again[0], &again[1]), 1);
  EXPECT_EQ(again[0].failure, "EXECUTOR") << "told before the process leaves";
}

TEST(Workers, DrainFinishesWhatRuns) {
  Pair pair;
  auto requests = RandomRequests(11, 6, 0.0);
  for (TestRequest& r : requests) r.sampling.set_max_tokens(24);
  std::vector<TestRequest*> all;
  for (TestRequest& r : requests) all.push_back(&r);
  std::thread drain([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    pair.d->worker->Drain();
  });
  ASSERT_TRUE(pair.router->RunAll(all));
  drain.join();
  EXPECT_EQ(pair.d->worker->Wait(), 0);
  for (const TestRequest& r : requests) EXPECT_EQ(r.out, TheFixture().Reference(r));
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
