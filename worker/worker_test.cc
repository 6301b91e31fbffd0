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
