// What a scheduling decision costs on one core: range(0) calls queued, 64 decode workers of 16 slots, all full. One
// iteration of Decide is a call that ends, the learning from it, and the pick, placement and hand-out of the next one;
// one of Arrive is the estimate and queueing of a new call. Both keep the queue's length.
#include <benchmark/benchmark.h>
#include <time.h>

#include <deque>

#include "base/rng.h"
#include "router/core/router_core.h"

namespace agentserve::router {
namespace {

constexpr uint32_t kWorkers = 64, kSlots = 16, kPrompt = 2048;

// Of this thread: the machine's other work does not count.
double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class Cluster {
 public:
  Cluster(const std::string& policy, uint32_t queued, uint32_t prompt)
      : prompt_(prompt), programs_(std::max(4096u, queued)) {
    CoreConfig config;
    config.policy = policy;
    config.max_programs = 2'000'000;
    config.max_queued = 2'000'000;
    config.max_live = 3'000'000;
    config.max_queued_bytes = config.max_queued_tokens = uint64_t{1} << 50;
    core_ = std::make_unique<RouterCore>(config, 0);
    for (uint32_t i = 0; i < kWorkers; ++i) {
      WorkerInfo w;
      w.name = "d" + std::to_string(i);
      w.incarnation = 1;
      w.address = "a:1";
      w.model_fingerprint = "f";
      w.num_blocks = 100'000;
      w.context_length = 1 << 17;
      w.max_batch = kSlots;
      core_->OnLinkUp(*core_->RegisterWorker(w, 0), 0);
    }
    for (uint64_t i = 0; i < 16; ++i) tokens_.push_back(std::make_shared<std::vector<TokenId>>(prompt, TokenId(i + 1)));
    for (uint64_t i = 0; i < queued + kWorkers * kSlots; ++i) Arrive();
    Note();
  }

  // A program's turns share their beginning; 8 tenants, 4 classes.
  Submission Next() {
    const uint64_t i = next_++;
    const uint64_t program = rng_.Below(programs_);
    Submission s;
    s.request_id = "r" + std::to_string(i);
    s.prompt = tokens_[i % 16];
    s.block_tokens = 16;
    base::SplitMix64 h(program);
    for (uint64_t b = 0; b < prompt_ / 16; ++b) {
      if (b == prompt_ / 32) h = base::SplitMix64(i + (uint64_t{1} << 40));
      s.chain.push_back({h.Next(), h.Next()});
    }
    s.digest = {i, 1};
    s.sampling.max_tokens = 1 << 12;
    s.arrival = now_;
    s.deadline = int64_t{1} << 60;
    s.bytes = 100;
    s.agent.tenant_id = "tenant" + std::to_string(program % 8);
    s.agent.program_id = "p" + std::to_string(program);
    s.agent.workflow_class = "class" + std::to_string(program % 4);
    s.agent.identity = Identity::kOwn;
    return s;
  }

  double Arrive() {
    Submission s = Next();
    now_ += 1000;
    const double from = CpuSeconds();
    core_->Submit(std::move(s), now_);
    return CpuSeconds() - from;
  }

  double Decide() {
    const auto [w, seq] = running_.front();
    running_.pop_front();
    now_ += 1000;
    const double from = CpuSeconds();
    core_->OnStep(w, ++steps_[w], {{seq, 1, 5, nullptr, FinishReason::kStop}}, now_);
    core_->OnFinished(w, seq, 1, {}, now_);
    const double took = CpuSeconds() - from;
    Note();
    return took;
  }

 private:
  void Note() {
    effects_.clear();
    core_->TakeEffects(&effects_);
    for (const Command& c : effects_.commands) {
      if (c.kind == CommandKind::kReserve) running_.emplace_back(c.worker, c.seq);
    }
  }

  const uint32_t prompt_, programs_;
  std::unique_ptr<RouterCore> core_;
  base::SplitMix64 rng_{1};
  std::vector<std::shared_ptr<const std::vector<TokenId>>> tokens_;
  uint64_t next_ = 0;
  TimeNs now_ = base::kNsPerSecond;
  Effects effects_;
  std::deque<std::pair<WorkerId, SeqId>> running_;
  std::map<WorkerId, uint64_t> steps_;
};

void Run(benchmark::State& state, const std::string& policy, uint32_t prompt, bool decide) {
  Cluster cluster(policy, static_cast<uint32_t>(state.range(0)), prompt);
  for (auto _ : state) {
    const double d = cluster.Decide(), a = cluster.Arrive();
    state.SetIterationTime(decide ? d : a);
  }
}

void BM_DecideAgent(benchmark::State& s) { Run(s, "agent", kPrompt, true); }
void BM_ArriveAgent(benchmark::State& s) { Run(s, "agent", kPrompt, false); }
void BM_DecideAgentShort(benchmark::State& s) { Run(s, "agent", 128, true); }
void BM_DecideFifo(benchmark::State& s) { Run(s, "fifo", kPrompt, true); }
void BM_DecideHrrn(benchmark::State& s) { Run(s, "hrrn", kPrompt, true); }
void BM_DecideRelative(benchmark::State& s) { Run(s, "relative", kPrompt, true); }
void BM_DecidePlas(benchmark::State& s) { Run(s, "plas", kPrompt, true); }

#define QUEUES Arg(100)->Arg(10'000)->UseManualTime()->Unit(benchmark::kMicrosecond)
BENCHMARK(BM_DecideAgent)->QUEUES;
BENCHMARK(BM_ArriveAgent)->QUEUES;
BENCHMARK(BM_DecideAgentShort)->QUEUES->Arg(1'000'000)->Iterations(5'000);
BENCHMARK(BM_DecideFifo)->QUEUES;
BENCHMARK(BM_DecidePlas)->QUEUES;
BENCHMARK(BM_DecideHrrn)->QUEUES;
BENCHMARK(BM_DecideRelative)->QUEUES;

}  // namespace
}  // namespace agentserve::router
