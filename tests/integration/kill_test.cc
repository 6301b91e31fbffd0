// Processes are killed under load; no request is lost, none ends twice, resumed streams are token-exact, and nothing is
// left behind.
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "base/rng.h"
#include "base/strings.h"
#include "tests/integration/cluster.h"

namespace agentserve::testing {
namespace {

namespace rv1 = agentserve::router::v1;

constexpr uint32_t kOutputTokens = 48;
constexpr int kClients = 8;

uint64_t Seed() {
  const char* text = std::getenv("AGENTSERVE_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 1;
}

rv1::GenerateRequest RequestFor(int i, uint32_t vocab) {
  rv1::GenerateRequest r =
      RandomRequest(static_cast<uint64_t>(i), vocab, 20 + (i * 37) % 300, kOutputTokens, i % 2 == 0);
  r.mutable_sampling()->set_ignore_eos(true);
  return r;
}

// Runs requests [0, n) from several clients at once; calls `mid` on the main thread while they run.
std::vector<Outcome> RunLoad(Cluster& cluster, int n, uint32_t vocab, const std::function<void()>& mid) {
  std::vector<Outcome> outcomes(static_cast<size_t>(n));
  std::atomic<int> next{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&] {
      for (int i = next++; i < n; i = next++)
        outcomes[static_cast<size_t>(i)] = Generate(cluster.router(), RequestFor(i, vocab));
    });
  }
  if (mid) mid();
  for (std::thread& t : clients) t.join();
  return outcomes;
}

class KillTest : public ::testing::Test {
 protected:
  void StartCluster(int prefill, int decode) {
    ClusterOptions options;
    options.prefill = prefill;
    options.decode = decode;
    options.prefill_threshold = 100;  // a mix of local and remote prefill
    options.kv_blocks = 400;
    auto started = Cluster::Start(options);
    ASSERT_TRUE(started.ok()) << started.status();
    cluster_ = std::move(*started);
    grpc::ClientContext context;
    rv1::GetModelResponse info;
    ASSERT_TRUE(cluster_->router().GetModel(&context, rv1::GetModelRequest(), &info).ok());
    vocab_ = info.vocab_size();
  }

  // Kills `victim` after a seeded delay, checks that it is really gone, and starts it again.
  void KillAndRestart(const std::string& victim, int delay_ms) {
    std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
    ASSERT_TRUE(cluster_->process(victim).Running()) << victim << " was dead before it was killed";
    const pid_t old = cluster_->process(victim).pid();
    cluster_->process(victim).Signal(SIGKILL);
    ASSERT_FALSE(cluster_->process(victim).Running());
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_TRUE(cluster_->Restart(victim).ok());
    ASSERT_NE(cluster_->process(victim).pid(), old);
  }

  void ExpectCleanEnd() {
    absl::Status idle = cluster_->WaitIdle(20000);
    EXPECT_TRUE(idle.ok()) << idle << cluster_->Logs();
    idle = cluster_->WaitPoolsAtBaseline(10000);
    EXPECT_TRUE(idle.ok()) << idle;
    const absl::Status down = cluster_->Shutdown();
    EXPECT_TRUE(down.ok()) << down;
  }

  std::unique_ptr<Cluster> cluster_;
  uint32_t vocab_ = 0;
};

// Workers and the kvstore may die at any time without a client noticing more than a pause.
TEST_F(KillTest, WorkersAndKvstoreDieUnderLoad) {
  StartCluster(2, 2);
  constexpr int kRequests = 160;
  const std::vector<Outcome> calm = RunLoad(*cluster_, kRequests, vocab_, {});
  for (const Outcome& o : calm) ASSERT_TRUE(o.status.ok()) << o.status.error_message();
  base::SplitMix64 rng(Seed());
  std::vector<std::string> victims = {"prefill-0", "decode-1", "kvstore", "decode-0", "prefill-1"};
  int resumed = 0;
  for (const std::string& victim : victims) {
    SCOPED_TRACE(base::StrCat("victim ", victim, ", AGENTSERVE_SEED=", Seed()));
    const int delay_ms = 50 + static_cast<int>(rng.Below(400));
    const std::vector<Outcome> rough = RunLoad(*cluster_, kRequests, vocab_, [&] { KillAndRestart(victim, delay_ms); });
    for (size_t i = 0; i < rough.size(); ++i) {
      EXPECT_TRUE(rough[i].OneEnd()) << "request " << i;
      EXPECT_TRUE(rough[i].status.ok()) << "request " << i << ": " << rough[i].status.error_message();
      EXPECT_EQ(rough[i].tokens, calm[i].tokens) << "request " << i;
      EXPECT_EQ(rough[i].text, calm[i].text) << "request " << i;
      resumed += rough[i].done.timeline().migrations() > 0 ? 1 : 0;
    }
    const absl::Status idle = cluster_->WaitIdle(20000);
    ASSERT_TRUE(idle.ok()) << idle << cluster_->Logs();
  }
  EXPECT_GT(resumed, 0) << "no kill interrupted a request: the test proved nothing";
  ExpectCleanEnd();
}

// A dead router ends its streams with an error, and everything works again once it is back.
TEST_F(KillTest, RouterDiesUnderLoad) {
  StartCluster(1, 1);
  int failed = 0;
  const std::vector<Outcome> rough = RunLoad(*cluster_, 120, vocab_, [&] { KillAndRestart("router", 200); });
  for (size_t i = 0; i < rough.size(); ++i) {
    EXPECT_TRUE(rough[i].OneEnd()) << "request " << i;
    if (!rough[i].status.ok()) {
      ++failed;
      EXPECT_EQ(rough[i].status.error_code(), grpc::StatusCode::UNAVAILABLE) << rough[i].status.error_message();
    }
  }
  EXPECT_GT(failed, 0) << "the kill interrupted nothing";
  const absl::Status idle = cluster_->WaitIdle(20000);
  ASSERT_TRUE(idle.ok()) << idle << cluster_->Logs();
  for (const Outcome& o : RunLoad(*cluster_, 20, vocab_, {})) EXPECT_TRUE(o.status.ok()) << o.status.error_message();
  ExpectCleanEnd();
}

// A client that goes away gets its blocks back to the pool at once.
TEST_F(KillTest, CancelledClientsLeaveNoBlocks) {
  StartCluster(1, 1);
  std::vector<std::thread> clients;
  for (int i = 0; i < 24; ++i) {
    clients.emplace_back([this, i] {
      rv1::GenerateRequest request = RequestFor(i, vocab_);
      request.mutable_sampling()->set_max_tokens(2000);
      const Outcome out = Generate(cluster_->router(), request, [i](size_t tokens) { return tokens < 1 + i * 3u; });
      EXPECT_EQ(out.status.error_code(), grpc::StatusCode::CANCELLED);
    });
  }
  for (std::thread& t : clients) t.join();
  const absl::Status idle = cluster_->WaitPoolsAtBaseline(2000);
  EXPECT_TRUE(idle.ok()) << idle;
  ExpectCleanEnd();
}

// Corrupted KV is recomputed, never served.
TEST_F(KillTest, CorruptedBlocksAreRecomputed) {
  ClusterOptions options;
  options.prefill_threshold = 0;
  auto calm_cluster = Cluster::Start(options);
  ASSERT_TRUE(calm_cluster.ok()) << calm_cluster.status();
  cluster_ = std::move(*calm_cluster);
  grpc::ClientContext context;
  rv1::GetModelResponse info;
  ASSERT_TRUE(cluster_->router().GetModel(&context, rv1::GetModelRequest(), &info).ok());
  vocab_ = info.vocab_size();
  const std::vector<Outcome> calm = RunLoad(*cluster_, 40, vocab_, {});
  ASSERT_TRUE(cluster_->Shutdown().ok());
  options.env["decode-0"] = {"AGENTSERVE_FAILPOINTS=xf.corrupt=3"};
  auto rough_cluster = Cluster::Start(options);
  ASSERT_TRUE(rough_cluster.ok()) << rough_cluster.status();
  cluster_ = std::move(*rough_cluster);
  const std::vector<Outcome> rough = RunLoad(*cluster_, 40, vocab_, {});
  int recomputed = 0;
  for (size_t i = 0; i < rough.size(); ++i) {
    EXPECT_TRUE(rough[i].status.ok()) << rough[i].status.error_message();
    EXPECT_EQ(rough[i].tokens, calm[i].tokens) << "request " << i;
    recomputed += rough[i].done.timeline().transfer_path() == "recompute" ? 1 : 0;
  }
  EXPECT_GT(recomputed, 0) << "the fault did not take effect";
  ExpectCleanEnd();
}

}  // namespace
}  // namespace agentserve::testing
