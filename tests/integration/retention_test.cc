// Agents that call tools, more of them than the pool of the one decode worker holds: with host memory below the pool a
// program's next turn finds its KV again, without it the prompt is computed again; tokens are those of offline
// generation either way.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/rng.h"
#include "model/generate.h"
#include "model/model.h"
#include "tests/integration/cluster.h"

namespace agentserve::testing {
namespace {

namespace rv1 = agentserve::router::v1;
using Tokens = std::vector<uint32_t>;

constexpr int kPrograms = 5;
constexpr int kTurns = 4;
constexpr uint32_t kOutputTokens = 8;
constexpr uint32_t kToolTokens = 60;  // what a tool's result adds to the prompt
constexpr int kPoolBlocks = 48;       // 768 tokens: two programs near their end

struct Totals {
  uint64_t prompt = 0, reusable = 0, cached = 0, host = 0;
};

Tokens RandomTokens(base::SplitMix64* rng, uint32_t vocab, size_t n) {
  Tokens tokens;
  for (size_t i = 0; i < n; ++i) tokens.push_back(static_cast<uint32_t>(rng->Below(vocab)));
  return tokens;
}

class Offline {
 public:
  Offline() {
    model::LoadOptions load;
    load.threads = 2;
    auto loaded = model::LoadModel(SourcePath("models/tiny-agent"), load);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model_ = *std::move(loaded);
  }
  uint32_t vocab() const { return model_->config().vocab_size; }
  Tokens Next(const Tokens& prompt) {
    engine::SamplingParams sampling;
    sampling.temperature = 0;
    sampling.max_tokens = kOutputTokens;
    sampling.ignore_eos = true;
    auto result = model::Generate(*model_, prompt, sampling, {}, {});
    EXPECT_TRUE(result.ok()) << result.status();
    Tokens out;
    for (const engine::SampledToken& t : result->tokens) out.push_back(t.token);
    return out;
  }

 private:
  std::shared_ptr<model::Model> model_;
};

rv1::GenerateRequest TurnOf(int program, int turn, const Tokens& prompt) {
  rv1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.set_return_token_ids(true);
  auto* sampling = request.mutable_sampling();
  sampling->set_temperature(0);
  sampling->set_max_tokens(kOutputTokens);
  sampling->set_ignore_eos(true);
  auto* agent = request.mutable_agent();
  agent->set_program_id("react-" + std::to_string(program));
  agent->set_workflow_class("react");
  if (turn > 0) agent->set_tool_name("search");
  agent->set_final(turn + 1 == kTurns);
  return request;
}

void ReportTool(Cluster& cluster, int program, bool start) {
  grpc::ClientContext context;
  rv1::ReportToolRequest request;
  rv1::ReportToolResponse response;
  request.set_program_id("react-" + std::to_string(program));
  request.set_tool_name("search");
  request.set_phase(start ? rv1::ReportToolRequest::PHASE_START : rv1::ReportToolRequest::PHASE_END);
  const grpc::Status status = cluster.router().ReportTool(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

Totals RunPrograms(const std::vector<std::string>& worker_args, Offline* offline) {
  Totals totals;
  ClusterOptions options;
  options.prefill = 0;
  options.kv_blocks = kPoolBlocks;
  options.worker_args = worker_args;
  auto cluster = Cluster::Start(options);
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  if (!cluster.ok()) return totals;
  base::SplitMix64 rng(4);
  std::vector<Tokens> history;
  for (int p = 0; p < kPrograms; ++p) history.push_back(RandomTokens(&rng, offline->vocab(), 100 + rng.Below(30)));
  for (int turn = 0; turn < kTurns; ++turn) {
    for (int p = 0; p < kPrograms; ++p) {
      Tokens& prompt = history[static_cast<size_t>(p)];
      if (turn > 0) {
        if (p % 2 == 0) ReportTool(**cluster, p, false);  // these are prefetched, the others loaded when they call
        const Tokens result = RandomTokens(&rng, offline->vocab(), kToolTokens);
        prompt.insert(prompt.end(), result.begin(), result.end());
      }
      const Outcome out = Generate((*cluster)->router(), TurnOf(p, turn, prompt));
      EXPECT_TRUE(out.status.ok()) << out.status.error_message();
      EXPECT_EQ(out.tokens, offline->Next(prompt)) << "program " << p << " turn " << turn;
      totals.prompt += prompt.size();
      if (turn > 0) totals.reusable += prompt.size() - kToolTokens;
      totals.cached += out.done.cached_tokens();
      totals.host += out.done.timeline().host_cached_tokens();
      prompt.insert(prompt.end(), out.tokens.begin(), out.tokens.end());
      if (turn + 1 < kTurns && p % 2 == 0) ReportTool(**cluster, p, true);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the tool runs
    }
  }
  const absl::Status idle = (*cluster)->WaitPoolsAtBaseline(5000);
  EXPECT_TRUE(idle.ok()) << idle;
  const absl::Status down = (*cluster)->Shutdown();
  EXPECT_TRUE(down.ok()) << down;
  return totals;
}

TEST(Retention, TheNextTurnFindsItsKvInHostMemory) {
  Offline offline;
  const Totals without = RunPrograms({"--host-kv-mib", "0"}, &offline);
  const Totals with = RunPrograms({"--host-kv-mib", "256"}, &offline);
  std::printf(
      "prompt tokens %llu, of which sent before %llu; found: %llu without host memory, %llu with (%llu there)\n",
      static_cast<unsigned long long>(with.prompt), static_cast<unsigned long long>(with.reusable),
      static_cast<unsigned long long>(without.cached), static_cast<unsigned long long>(with.cached),
      static_cast<unsigned long long>(with.host));
  EXPECT_EQ(without.host, 0u);
  EXPECT_LT(without.cached * 2, without.reusable) << "the pool is too large for this test";
  // All but the tails of blocks (at most 16 tokens each turn) and what was not copied in time.
  EXPECT_GT(with.cached, with.reusable * 8 / 10);
  EXPECT_GT(with.host, 0u);
}

}  // namespace
}  // namespace agentserve::testing
