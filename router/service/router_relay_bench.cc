// What relaying costs: tokens per second through the core and its text edge, through real gRPC with fake workers and
// clients in the same process, and the price of one placement decision with a long queue.
//
//   build/bench/router_relay_bench
#include <benchmark/benchmark.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "base/rng.h"
#include "router/service/convert.h"
#include "router/service/fake_worker.h"
#include "router/service/router_server.h"

namespace agentserve::router {
namespace {

WorkerInfo Info(const std::string& name, uint32_t max_batch) {
  WorkerInfo w;
  w.name = name;
  w.incarnation = 1;
  w.address = "a:1";
  w.model_fingerprint = "f";
  w.layout_fingerprint = 7;
  w.num_blocks = 1'000'000;
  w.context_length = 1 << 20;
  w.max_batch = max_batch;
  return w;
}

Submission Sub(uint64_t i, uint32_t prompt) {
  Submission s;
  s.request_id = "r";
  auto tokens = std::make_shared<std::vector<TokenId>>(prompt, static_cast<TokenId>(i % 1000 + 1));
  s.prompt = tokens;
  base::SplitMix64 hash(i);
  for (uint64_t b = 0; b < prompt / 16; ++b) s.chain.push_back({hash.Next(), hash.Next()});
  s.digest = {i, 1};
  s.sampling.max_tokens = 1 << 19;
  s.deadline = int64_t{1} << 60;
  s.bytes = 100;
  return s;
}

// Argument: sequences per step.
void BM_CoreStep(benchmark::State& state) {
  RouterCore core(CoreConfig{}, 0);
  const auto batch = static_cast<uint32_t>(state.range(0));
  const WorkerId w = *core.RegisterWorker(Info("d0", batch), 0);
  core.OnLinkUp(w, 0);
  for (uint32_t i = 0; i < batch; ++i) core.Submit(Sub(i, 16), 0);
  Effects e;
  core.TakeEffects(&e);
  std::vector<StepToken> tokens;
  for (const Command& c : e.commands) {
    if (c.kind == CommandKind::kReserve) tokens.push_back({c.seq, 1, 5, nullptr, FinishReason::kNone});
  }
  uint64_t step = 0;
  for (auto _ : state) {
    core.OnStep(w, ++step, tokens, 1000);
    e.clear();
    core.TakeEffects(&e);
    benchmark::DoNotOptimize(e.tokens.data());
  }
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK(BM_CoreStep)->Arg(1)->Arg(16)->Arg(64)->Arg(256);

// One decision with 10,000 calls queued, 16 decode workers and prompts of range(0) tokens: a sequence ends, the next
// one is placed, a new one arrives.
void BM_PlacementWithLongQueue(benchmark::State& state) {
  CoreConfig config;
  config.max_queued = 20'000;
  config.max_queued_tokens = int64_t{1} << 40;
  RouterCore core(config, 0);
  const auto prompt = static_cast<uint32_t>(state.range(0));
  for (int i = 0; i < 16; ++i) core.OnLinkUp(*core.RegisterWorker(Info("d" + std::to_string(i), 16), 0), 0);
  uint64_t n = 0;
  for (; n < 10'256; ++n) core.Submit(Sub(n, prompt), 0);
  Effects e;
  core.TakeEffects(&e);
  std::deque<std::pair<WorkerId, SeqId>> running;
  auto note = [&] {
    for (const Command& c : e.commands) {
      if (c.kind == CommandKind::kReserve) running.emplace_back(c.worker, c.seq);
    }
  };
  note();
  std::map<WorkerId, uint64_t> steps;
  for (auto _ : state) {
    state.PauseTiming();
    Submission next = Sub(n++, prompt);
    state.ResumeTiming();
    const auto [w, seq] = running.front();
    running.pop_front();
    core.OnStep(w, ++steps[w], {{seq, 1, 5, nullptr, FinishReason::kStop}}, 1000);
    core.OnFinished(w, seq, 1, {}, 1000);
    core.Submit(std::move(next), 1000);
    e.clear();
    core.TakeEffects(&e);
    note();
  }
  state.counters["queued"] = core.queued_sequences();
}
BENCHMARK(BM_PlacementWithLongQueue)->Arg(128)->Arg(2048)->Unit(benchmark::kMicrosecond);

std::string ModelDir() {
  const std::string to = std::filesystem::temp_directory_path() / ("router_bench_" + std::to_string(getpid()));
  std::filesystem::create_directories(to);
  const char* source = std::getenv("AGENTSERVE_SOURCE");
  std::filesystem::copy_file(std::string(source == nullptr ? "." : source) + "/text/testdata/tiny/tokenizer.json",
                             to + "/tokenizer.json", std::filesystem::copy_options::overwrite_existing);
  std::ofstream(to + "/config.json") << R"({"max_position_embeddings":100000,"vocab_size":1212,"eos_token_id":957})";
  return to;
}

constexpr uint32_t kTokens = 2'000;  // of each stream

// A router and one fake decode worker that steps every `step_us`.
struct RelayRig {
  explicit RelayRig(int step_us) {
    base::InitLog("bench", base::LogLevel::kError, false);
    ServiceConfig config;
    config.model_dir = ModelDir();
    config.model_id = "tiny";
    config.metrics_port = -1;
    router = std::move(*RouterServer::Start(config));
    FakeWorkerOptions o;
    o.router = address = "127.0.0.1:" + std::to_string(router->port());
    o.step_us = step_us;
    o.max_batch = 4096;
    o.blocks = 1'000'000;
    worker = std::make_unique<FakeWorker>(o);
  }
  std::unique_ptr<RouterServer> router;
  std::string address;
  std::unique_ptr<FakeWorker> worker;  // after the router: ends before it
};

// Real gRPC on loopback: range(0) streams of 2,000 tokens from one fake decode worker that steps every range(1) us.
// Worker, router and clients share the machine, so this is a lower bound for the router.
void BM_RelayOverGrpc(benchmark::State& state) {
  RelayRig rig(static_cast<int>(state.range(1)));
  if (!rig.worker->Join().ok()) state.SkipWithError("the worker could not join");
  const auto streams = static_cast<int>(state.range(0));
  std::atomic<uint64_t> messages{0};
  std::atomic<int> failures{0};
  for (auto _ : state) {
    std::vector<std::thread> clients;
    for (int i = 0; i < streams; ++i) {
      clients.emplace_back([&] {
        static thread_local std::shared_ptr<grpc::Channel> channel =
            grpc::CreateChannel(rig.address, grpc::InsecureChannelCredentials());
        auto stub = v1::RouterService::NewStub(channel);
        grpc::ClientContext context;
        v1::GenerateRequest req;
        req.set_text("hello");
        req.mutable_sampling()->set_max_tokens(kTokens);
        auto reader = stub->Generate(&context, req);
        v1::GenerateResponse e;
        while (reader->Read(&e)) ++messages;
        if (!reader->Finish().ok()) ++failures;
      });
    }
    for (auto& t : clients) t.join();
  }
  if (failures > 0) state.SkipWithError("streams failed");
  state.SetItemsProcessed(state.iterations() * streams * kTokens);
  state.counters["tokens_per_message"] =
      static_cast<double>(state.iterations()) * streams * kTokens / static_cast<double>(messages.load());
  rig.worker->Kill();
}
BENCHMARK(BM_RelayOverGrpc)
    ->Args({1, 0})
    ->Args({16, 0})
    ->Args({64, 0})
    ->Args({64, 2000})
    ->Args({256, 0})
    ->Iterations(3)
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);

// The same through one Session: all streams' tokens of a step share a message.
void BM_RelayOverSession(benchmark::State& state) {
  RelayRig rig(static_cast<int>(state.range(1)));
  if (!rig.worker->Join().ok()) state.SkipWithError("the worker could not join");
  const auto streams = static_cast<uint64_t>(state.range(0));
  auto stub = v1::RouterService::NewStub(grpc::CreateChannel(rig.address, grpc::InsecureChannelCredentials()));
  uint64_t messages = 0, failures = 0;
  for (auto _ : state) {
    grpc::ClientContext context;
    auto session = stub->Session(&context);
    for (uint64_t i = 1; i <= streams; ++i) {
      v1::SessionRequest m;
      m.set_call(i);
      m.mutable_generate()->set_text("hello");
      m.mutable_generate()->mutable_sampling()->set_max_tokens(kTokens);
      session->Write(m);
    }
    session->WritesDone();
    v1::SessionResponse events;
    while (session->Read(&events)) {
      ++messages;
      for (const v1::SessionEvent& e : events.events()) failures += e.has_end() && e.end().code() != 0;
    }
    failures += session->Finish().ok() ? 0 : 1;
  }
  if (failures > 0) state.SkipWithError("streams failed");
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(streams) * kTokens);
  state.counters["tokens_per_message"] =
      static_cast<double>(state.iterations()) * static_cast<double>(streams) * kTokens / static_cast<double>(messages);
  rig.worker->Kill();
}
BENCHMARK(BM_RelayOverSession)
    ->Args({1, 0})
    ->Args({16, 0})
    ->Args({64, 0})
    ->Args({64, 2000})
    ->Args({256, 0})
    ->Iterations(3)
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace agentserve::router
