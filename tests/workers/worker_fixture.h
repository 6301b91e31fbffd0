// For tests: prefill and decode workers in one process, over real gRPC and a real (random, tiny) Llama, and the offline
// reference that tokens are compared with.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/rng.h"
#include "base/strings.h"
#include "decode_worker/worker.h"
#include "kvstore/transport/device_memory.h"
#include "model/generate.h"
#include "model/model.h"
#include "model/random_model.h"
#include "prefill_worker/worker.h"
#include "tests/workers/mini_router.h"

namespace agentserve {

// "cpu" or, in the test's second run, "cuda".
inline std::string TestDevice() {
  const char* device = std::getenv("AGENTSERVE_TEST_DEVICE");
  return device == nullptr ? "cpu" : device;
}

// One model for all tests.
class Fixture {
 public:
  Fixture() {
    char name[] = "/tmp/agentserve_pd_XXXXXX";
    dir_ = mkdtemp(name);
    model::RandomModelOptions random;
    random.config = *model::NamedShape("tiny");
    const absl::Status written = model::WriteRandomModel(dir_, random);
    EXPECT_TRUE(written.ok()) << written;
    model::LoadOptions load;
    load.threads = 1;
    load.device = TestDevice();
    load.batch_invariant = true;
    auto loaded = model::LoadModel(dir_, load);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model_ = *std::move(loaded);
  }
  ~Fixture() { std::filesystem::remove_all(dir_); }

  worker::ModelInfo Info(uint32_t block_tokens) const {
    auto info = worker::MakeModelInfo(model_, block_tokens);
    EXPECT_TRUE(info.ok()) << info.status();
    return *std::move(info);
  }
  std::vector<uint32_t> Reference(const TestRequest& r) {
    const engine::SamplingParams sampling = worker::FromWire(r.sampling, 0);
    auto result = model::Generate(*model_, r.tokens, sampling, {}, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    std::vector<uint32_t> out;
    for (const auto& t : result->tokens) out.push_back(t.token);
    return out;
  }
  model::Model& model() { return *model_; }
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
  std::shared_ptr<model::Model> model_;
};

inline Fixture& TheFixture() {
  static auto* fixture = new Fixture;
  static const int registered = std::atexit([] { delete fixture; });
  (void)registered;
  return *fixture;
}

template <typename Worker>
struct Running {
  Running(worker::Role role, worker::NodeOptions options) {
    options.metrics_port = -1;
    options.model_id = "tiny";
    auto made = worker::Node::Create(options, TheFixture().Info(static_cast<uint32_t>(options.block_tokens)), role);
    EXPECT_TRUE(made.ok()) << made.status();
    node = *std::move(made);
    worker = std::make_unique<Worker>(node.get());
    const absl::Status listening = node->Listen(worker->service());
    EXPECT_TRUE(listening.ok()) << listening;
    worker->Start();
  }
  ~Running() {
    worker->Stop();
    worker->Wait();
    node->Shutdown();
  }
  std::unique_ptr<worker::Node> node;
  std::unique_ptr<Worker> worker;
};

struct Pair {
  explicit Pair(worker::NodeOptions options = {}) {
    static int counter = 0;
    options.run_dir = TheFixture().dir();
    options.worker_id = base::StrCat("p", ++counter);
    if (options.kv_blocks == 0) options.kv_blocks = 256;
    p = std::make_unique<Running<prefill_worker::Worker>>(worker::Role::kPrefill, options);
    options.worker_id = base::StrCat("d", counter);
    d = std::make_unique<Running<decode_worker::Worker>>(worker::Role::kDecode, options);
    router = std::make_unique<MiniRouter>(p->node->address(), d->node->address(), TheFixture().model().end_tokens());
    peer = router->Connect(p->node->Endpoint());
  }
  ~Pair() { router.reset(); }
  std::unique_ptr<Running<prefill_worker::Worker>> p;
  std::unique_ptr<Running<decode_worker::Worker>> d;
  std::unique_ptr<MiniRouter> router;
  dwire::PeerConnected peer;
};

inline std::vector<TestRequest> RandomRequests(uint64_t seed, size_t n, double remote_share) {
  base::SplitMix64 rng(seed);
  const uint32_t vocab = TheFixture().model().config().vocab_size;
  std::vector<uint32_t> stem;
  for (int i = 0; i < 70; ++i) stem.push_back(static_cast<uint32_t>(rng.Below(vocab)));
  std::vector<TestRequest> requests(n);
  for (TestRequest& r : requests) {
    if (rng.Below(2)) r.tokens.assign(stem.begin(), stem.begin() + static_cast<long>(rng.Below(stem.size())));
    for (uint64_t i = 1 + rng.Below(90); i > 0; --i) r.tokens.push_back(static_cast<uint32_t>(rng.Below(vocab)));
    r.remote = rng.Uniform() < remote_share;
    r.sampling.set_max_tokens(static_cast<uint32_t>(1 + rng.Below(24)));
    r.sampling.set_seed(rng.Next());
    if (rng.Below(2)) {
      r.sampling.set_temperature(0);
    } else {
      r.sampling.set_temperature(0.9f);
      r.sampling.set_top_p(0.95f);
      r.sampling.set_repetition_penalty(1.1f);
    }
  }
  return requests;
}

// `recomputed`: KV of the first output token comes from a prompt chunk here, from a decode step in the reference. On
// the CPU that is bit for bit the same; on a GPU these are different kernels, and what a random model with its nearly
// equal logits says next depends on the last bit.
inline void RunAndCompare(MiniRouter* router, std::vector<TestRequest>* requests, bool recomputed = false) {
  std::vector<TestRequest*> all;
  for (TestRequest& r : *requests) all.push_back(&r);
  ASSERT_TRUE(router->RunAll(all)) << "not all requests ended";
  for (size_t i = 0; i < requests->size(); ++i) {
    const TestRequest& r = (*requests)[i];
    EXPECT_EQ(r.failure, "") << "request " << i;
    std::vector<uint32_t> expected = TheFixture().Reference(r), got = r.out;
    if (recomputed && TestDevice() != "cpu") {
      ASSERT_FALSE(got.empty());
      got.resize(1);
      expected.resize(1);
    }
    EXPECT_EQ(got, expected) << "request " << i << (r.remote ? " remote" : " local") << " prompt of "
                             << r.tokens.size();
  }
}

}  // namespace agentserve
