#include <gtest/gtest.h>

#include <thread>

#include "worker/convert.h"
#include "worker/mailbox.h"
#include "worker/pool_sizing.h"
#include "worker/session_table.h"

namespace agentserve::worker {
namespace {

using engine::SeqId;

TEST(SessionTable, MapsAttemptsAndForgets) {
  SessionTable table;
  std::optional<SeqId> replaced;
  const SeqId a = table.Add({1, 7, 1}, &replaced);
  EXPECT_FALSE(replaced);
  EXPECT_EQ(table.Find({1, 7, 1}), a);
  EXPECT_FALSE(table.Find({1, 7, 2})) << "another attempt";
  EXPECT_FALSE(table.Find({2, 7, 1})) << "another stream";
  const SeqId b = table.Add({1, 7, 2}, &replaced);
  EXPECT_EQ(replaced, a);
  EXPECT_EQ(table.WireOf(a), nullptr) << "its events go nowhere";
  ASSERT_NE(table.WireOf(b), nullptr);
  EXPECT_EQ(table.WireOf(b)->attempt, 2u);
  table.Erase(a);
  table.Erase(b);
  EXPECT_FALSE(table.Find({1, 7, 2}));
  EXPECT_EQ(table.FindOrRemembered({1, 7, 2}), b);
  const SeqId c = table.Add({1, 8, 1}, &replaced);
  table.Add({2, 8, 1}, &replaced);
  EXPECT_EQ(table.DropSession(1), std::vector<SeqId>{c});
  EXPECT_EQ(table.size(), 1u);
}

TEST(PoolSizing, ArithmeticAndLimits) {
  PoolSizingInput in;
  in.layout = {.num_layers = 2, .num_kv_heads = 2, .head_dim = 64, .block_tokens = 16};  // 16 KiB a block
  in.model_context = 8192;
  in.available_bytes = 64 << 20;
  EXPECT_EQ(SizePool(in)->num_blocks, 1024u) << "a quarter of 64 MiB";
  in.available_bytes = uint64_t{1} << 40;
  EXPECT_EQ(SizePool(in)->num_blocks, 4096u) << "8 sequences of 8192 tokens";
  in.model_context = 131072;
  EXPECT_EQ(SizePool(in)->num_blocks, 65536u) << "1 GiB";
  in.model_context = 8192;
  EXPECT_EQ(SizePool(in)->context_length, 8192u);
  in.memory_mib = 1;
  EXPECT_EQ(SizePool(in)->num_blocks, 64u);
  EXPECT_EQ(SizePool(in)->context_length, 1025u) << "the last token needs no KV";
  in.blocks = 8;
  EXPECT_EQ(SizePool(in)->num_blocks, 8u);
  in.blocks = 3;
  EXPECT_EQ(SizePool(in).status().code(), absl::StatusCode::kInvalidArgument);
  in.blocks = -1;
  EXPECT_FALSE(SizePool(in).ok());
  EXPECT_GT(AvailableMemoryBytes(), 0u);
}

TEST(PoolSizing, OnAGpu) {
  constexpr uint64_t kMib = 1 << 20, kGib = 1 << 30;
  PoolSizingInput in;
  in.layout = {.num_layers = 16, .num_kv_heads = 8, .head_dim = 64, .block_tokens = 16};  // 512 KiB a block
  in.model_context = 131072;
  in.max_batch = 256;
  in.available_bytes = 1;  // of no matter
  in.device = DeviceBudget{"GPU", 140 * kGib, 136 * kGib, 3 * kGib, 1 * kGib, 0.9};
  auto sized = SizePool(in);
  ASSERT_TRUE(sized.ok()) << sized.status();
  EXPECT_EQ(sized->num_blocks, (126 - 3 - 1) * 2048u) << "90 % less weights and workspaces";
  EXPECT_EQ(sized->context_length, 131072u);
  EXPECT_NE(sized->explanation.find("90 % of 143360 MiB - weights 3072 MiB - workspaces 1024 MiB"), std::string::npos)
      << sized->explanation;
  in.device->free_bytes = 60 * kGib;  // somebody else is there
  EXPECT_EQ(SizePool(in)->num_blocks, (60 - 1 - 1) * 2048u);
  in.layout.num_layers = 1;
  in.layout.num_kv_heads = 1;
  in.model_context = 2048;
  EXPECT_EQ(SizePool(in)->num_blocks, 4 * 256 * 2048u / 16) << "more is of no use";
  in.layout.num_layers = 16;
  in.layout.num_kv_heads = 8;
  in.memory_mib = 100;
  EXPECT_EQ(SizePool(in)->num_blocks, 200u);
  in.memory_mib = 100 * 1024;
  absl::Status status = SizePool(in).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("43008 MiB are missing"), std::string::npos) << status.message();
  EXPECT_NE(std::string(status.message()).find("--kv-memory-mib"), std::string::npos);
  in.memory_mib = 0;
  in.blocks = 10 * 2048;
  EXPECT_EQ(SizePool(in)->num_blocks, 10 * 2048u);
  in.blocks = 70 * 2048;
  EXPECT_EQ(SizePool(in).status().code(), absl::StatusCode::kResourceExhausted);
  in.blocks = 0;
  in.device->utilization = 0.02;  // 2.8 GiB: less than the weights
  status = SizePool(in).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("raise --gpu-memory-utilization"), std::string::npos)
      << status.message();
  in.device->utilization = 0.9;
  in.device->free_bytes = 500 * kMib;
  status = SizePool(in).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("end what else uses the GPU"), std::string::npos) << status.message();
}

TEST(Convert, AbsentFieldsTakeDefaults) {
  agentserve::common::v1::SamplingParams wire;
  const engine::SamplingParams s = FromWire(wire, 77);
  EXPECT_EQ(s.temperature, 1.0f);
  EXPECT_EQ(s.max_tokens, 77u);
  EXPECT_EQ(s.top_logprobs, -1);
  wire.set_temperature(0);
  wire.set_max_tokens(3);
  wire.set_top_logprobs(0);
  const engine::SamplingParams t = FromWire(wire, 77);
  EXPECT_TRUE(t.greedy());
  EXPECT_EQ(t.max_tokens, 3u);
  EXPECT_EQ(t.top_logprobs, 0);
  EXPECT_GT(BudgetNs(~0ull), 0);
}

TEST(Mailbox, WakesAndKeepsOrder) {
  Mailbox<int> mailbox;
  EXPECT_TRUE(mailbox.Wait(1000).empty());
  std::thread t([&] {
    for (int i = 0; i < 100; ++i) mailbox.Post(i);
  });
  std::vector<int> got;
  while (got.size() < 100) {
    for (int v : mailbox.Wait(1'000'000'000)) got.push_back(v);
  }
  t.join();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(got[static_cast<size_t>(i)], i);
}

}  // namespace
}  // namespace agentserve::worker
