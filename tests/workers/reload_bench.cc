// How long the first token of a program's next turn takes on a CPU decode worker with models/tiny-agent, by where the
// KV of its history is: on the device, in host memory, or gone (computed again). Run in the repository's root.
//
//   build/bench/kv_reload_bench
//
// Arguments: tokens of history; place (0 gone, 1 host memory, 2 device). The turn adds 16 tokens.
#include <benchmark/benchmark.h>

#include <chrono>

#include "base/check.h"
#include "base/rng.h"
#include "decode_worker/worker.h"
#include "model/model.h"
#include "tests/workers/mini_router.h"

namespace agentserve {
namespace {

constexpr uint32_t kAppend = 16;

struct Rig {
  explicit Rig(uint32_t history, bool host) {
    model::LoadOptions load;
    load.threads = 0;
    auto loaded = model::LoadModel("models/tiny-agent", load);
    AS_CHECK(loaded.ok()) << loaded.status();
    model = *std::move(loaded);
    worker::NodeOptions options;
    options.metrics_port = -1;
    options.kv_blocks = history / 16 + 8;  // one program at a time
    options.host_kv_mib = host ? 512 : 0;
    auto made = worker::Node::Create(options, *worker::MakeModelInfo(model, 16), worker::Role::kDecode);
    AS_CHECK(made.ok()) << made.status();
    node = *std::move(made);
    worker = std::make_unique<decode_worker::Worker>(node.get());
    AS_CHECK(node->Listen(worker->service()).ok());
    worker->Start();
    router = std::make_unique<MiniRouter>("", node->address(), std::vector<uint32_t>());
  }
  ~Rig() {
    router.reset();
    worker->Stop();
    worker->Wait();
    node->Shutdown();
  }
  TestRequest Prompt(uint64_t seed, uint32_t tokens) const {
    base::SplitMix64 rng(seed);
    TestRequest r;
    for (uint32_t i = 0; i < tokens; ++i) r.tokens.push_back(static_cast<uint32_t>(rng.Below(4000)));
    r.sampling.set_temperature(0);
    r.sampling.set_max_tokens(1);
    return r;
  }
  void Run(TestRequest* r) { AS_CHECK(router->RunAll({r})); }

  std::shared_ptr<model::Model> model;
  std::unique_ptr<worker::Node> node;
  std::unique_ptr<decode_worker::Worker> worker;
  std::unique_ptr<MiniRouter> router;
};

void FirstTokenOfTheNextTurn(benchmark::State& state) {
  const auto history = static_cast<uint32_t>(state.range(0));
  const int64_t place = state.range(1);
  Rig rig(history, place == 1);
  uint64_t seed = 1, cached = 0, host = 0, turns = 0;
  for (auto _ : state) {
    TestRequest turn = rig.Prompt(seed, history);
    rig.Run(&turn);
    if (place == 1) {
      rig.router->Retain(turn, dwire::KEEP_WHERE_HOST);
      const uint32_t want = history / 16 - 1;
      AS_CHECK(rig.router->WaitLoad([&](const auto& load) { return load.host_blocks() >= want; }));
    }
    if (place != 2) {
      TestRequest other = rig.Prompt(seed + 1000, history);
      rig.Run(&other);
    }
    TestRequest next = turn;
    next.out.clear();
    next.prompt_tokens = 0;
    const TestRequest append = rig.Prompt(seed + 2000, kAppend);
    next.tokens.insert(next.tokens.end(), append.tokens.begin(), append.tokens.end());
    const auto started = std::chrono::steady_clock::now();
    rig.Run(&next);
    state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    cached += next.cached_tokens;
    host += next.host_tokens;
    ++turns;
    if (place == 1) {
      rig.router->Retain(next, dwire::KEEP_WHERE_DROP);
      rig.router->Retain(turn, dwire::KEEP_WHERE_DROP);
      AS_CHECK(rig.router->WaitLoad([](const auto& load) { return load.host_blocks() == 0; }));
    }
    ++seed;
  }
  state.counters["cached_tokens"] = static_cast<double>(cached) / static_cast<double>(turns);
  state.counters["host_tokens"] = static_cast<double>(host) / static_cast<double>(turns);
}
BENCHMARK(FirstTokenOfTheNextTurn)
    ->ArgsProduct({{256, 1024, 4096}, {0, 1, 2}})
    ->ArgNames({"history", "place"})
    ->UseManualTime()
    ->Iterations(7)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace agentserve
