// The same prompt gives the same tokens whichever way the cluster is wired: offline, aggregated, disaggregated over the
// mapped and the stream path, several workers, with and without prefix reuse, one and two steps in flight. This is what
// "batch-invariant" promises.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "model/generate.h"
#include "model/model.h"
#include "tests/integration/cluster.h"

namespace agentserve::testing {
namespace {

namespace rv1 = agentserve::router::v1;

constexpr int kRequests = 200;
constexpr int kClients = 8;
constexpr uint32_t kOutputTokens = 12;

// Lengths around block and chunk edges, and prefixes shared between neighbours so that prefix hits happen.
rv1::GenerateRequest RequestFor(int i, uint32_t vocab) {
  const uint32_t lengths[] = {1, 15, 16, 17, 31, 33, 64, 100, 129, 255};
  const uint32_t length = lengths[i % 10];
  const int family = i / 20;  // 20 requests share a prefix family
  rv1::GenerateRequest request = RandomRequest(static_cast<uint64_t>(family), vocab, length, kOutputTokens, i % 2 == 0);
  if (i % 10 >= 5) {  // the later ones end differently, so the shared part is a true prefix
    auto* ids = request.mutable_token_ids();
    ids->set_ids(static_cast<int>(length) - 1, static_cast<uint32_t>(i));
  }
  request.mutable_sampling()->set_seed(static_cast<uint64_t>(i) + 1);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

std::vector<std::vector<uint32_t>> Reference(uint32_t vocab) {
  model::LoadOptions load;
  load.threads = 2;
  auto loaded = model::LoadModel(SourcePath("models/tiny-agent"), load);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  std::vector<std::vector<uint32_t>> out;
  for (int i = 0; i < kRequests; ++i) {
    const rv1::GenerateRequest request = RequestFor(i, vocab);
    engine::SamplingParams sampling;
    sampling.temperature = request.sampling().temperature();
    sampling.top_p = request.sampling().has_top_p() ? request.sampling().top_p() : 1.0f;
    sampling.seed = request.sampling().seed();
    sampling.max_tokens = kOutputTokens;
    sampling.ignore_eos = true;
    const std::vector<uint32_t> prompt(request.token_ids().ids().begin(), request.token_ids().ids().end());
    auto result = model::Generate(**loaded, prompt, sampling, {}, {});
    EXPECT_TRUE(result.ok()) << result.status();
    out.emplace_back();
    for (const engine::SampledToken& t : result->tokens) out.back().push_back(t.token);
  }
  return out;
}

struct Counts {
  std::atomic<int> transferred{0};
  std::atomic<int> cached{0};
};

void RunAll(Cluster& cluster, const std::string& mode, const std::vector<std::vector<uint32_t>>& reference,
            uint32_t vocab, Counts* counts) {
  std::atomic<int> next{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&] {
      for (int i = next++; i < kRequests; i = next++) {
        const Outcome out = Generate(cluster.router(), RequestFor(i, vocab));
        EXPECT_TRUE(out.status.ok()) << mode << " request " << i << ": " << out.status.error_message();
        EXPECT_TRUE(out.OneEnd()) << mode << " request " << i;
        EXPECT_EQ(out.tokens, reference[static_cast<size_t>(i)]) << mode << " request " << i;
        if (out.done.timeline().transfer_bytes() > 0) ++counts->transferred;
        if (out.done.cached_tokens() > 0) ++counts->cached;
      }
    });
  }
  for (std::thread& t : clients) t.join();
}

struct Mode {
  std::string name;
  int prefill, decode;
  std::string transport;
  bool prefix_cache;
  bool pipeline = false;
};

TEST(TokenEquality, AllWiringsAgreeWithOfflineGeneration) {
  const std::vector<Mode> modes = {
      {"aggregated", 0, 1, "auto", true},
      {"aggregated, no prefix cache", 0, 1, "auto", false},
      {"1P1D mapped", 1, 1, "mapped", true},
      {"1P1D mapped, no prefix cache", 1, 1, "mapped", false},
      {"1P1D stream", 1, 1, "stream", true},
      {"2P2D", 2, 2, "auto", true},
      {"aggregated, two steps in flight", 0, 1, "auto", true, true},
      {"1P1D mapped, two steps in flight", 1, 1, "mapped", true, true},
  };
  std::vector<std::vector<uint32_t>> reference;
  uint32_t vocab = 0;
  for (const Mode& mode : modes) {
    ClusterOptions options;
    options.prefill = mode.prefill;
    options.decode = mode.decode;
    options.kv_transport = mode.transport;
    options.prefix_cache = mode.prefix_cache;
    if (mode.pipeline) options.worker_args = {"--pipeline-steps", "on"};
    options.prefill_threshold = 0;  // always disaggregate where there is a prefill worker
    auto cluster = Cluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << mode.name << ": " << cluster.status();
    if (reference.empty()) {
      grpc::ClientContext context;
      rv1::GetModelResponse info;
      ASSERT_TRUE((*cluster)->router().GetModel(&context, rv1::GetModelRequest(), &info).ok());
      vocab = info.vocab_size();
      reference = Reference(vocab);
    }
    Counts counts;
    RunAll(**cluster, mode.name, reference, vocab, &counts);
    // The mode did what its name says.
    if (mode.prefill > 0) {
      EXPECT_GT(counts.transferred, kRequests * 8 / 10) << mode.name;
    } else {
      EXPECT_EQ(counts.transferred, 0) << mode.name;
    }
    if (mode.prefix_cache) {
      EXPECT_GT(counts.cached, 0) << mode.name;
    } else {
      EXPECT_EQ(counts.cached, 0) << mode.name;
    }
    const absl::Status idle = (*cluster)->WaitPoolsAtBaseline(5000);
    EXPECT_TRUE(idle.ok()) << mode.name << ": " << idle;
    const absl::Status down = (*cluster)->Shutdown();
    EXPECT_TRUE(down.ok()) << mode.name << ": " << down;
  }
}

}  // namespace
}  // namespace agentserve::testing
