#include "kvstore/core/kv_store_core.h"

#include <gtest/gtest.h>

#include "kvstore/core/core_test_util.h"

namespace agentserve::kvstore {
namespace {

using absl::StatusCode;
constexpr TimeNs kS = base::kNsPerSecond;

class CoreTest : public testing::Test {
 protected:
  CoreTest() : core_(CoreLimits{}) {}
  ~CoreTest() override { core_.CheckInvariants(now_); }

  void Register(const std::string& id, uint64_t incarnation, uint32_t blocks = 16) {
    ASSERT_TRUE(core_.RegisterPool(Spec(id, incarnation, blocks), now_).ok());
  }
  uint32_t Publish(const std::string& id, uint64_t incarnation, std::vector<SealedBlock> sealed,
                   std::vector<BlockRef> dropped = {}) {
    auto n = core_.Publish({id, incarnation}, sealed, dropped, now_);
    EXPECT_TRUE(n.ok()) << n.status().message();
    return n.value_or(0);
  }
  // "worker:blocks" of all places.
  std::string Found(std::initializer_list<uint64_t> chain) {
    std::string out;
    const std::vector<Hash128> hashes = Chain(chain);
    const auto places = core_.Locate(hashes, 16);
    for (const Place& p : *places) {
      out += p.pool.worker_id + ":" + std::to_string(p.blocks.size()) + " ";
    }
    return out;
  }
  TicketRequest Ticket(const std::string& key, std::vector<BlockRef> blocks = {{1, 1, 16, 5}}) {
    return {{"reader", 7}, {"a", 1}, std::move(blocks), 5 * kS, key};
  }

  TimeNs now_ = 1000;
  KvStoreCore core_;
};

TEST_F(CoreTest, LongestPrefixFirst) {
  Register("a", 1);
  Register("b", 2);
  Publish("a", 1, {Sealed(0, 1, 10), Sealed(1, 1, 11)});
  Publish("b", 2, {Sealed(5, 1, 10), Sealed(6, 1, 11), Sealed(7, 1, 12), Sealed(8, 1, 14)});
  EXPECT_EQ(Found({10, 11, 12, 13, 14}), "b:3 a:2 ");
  EXPECT_EQ(Found({10}), "a:1 b:1 ");
  EXPECT_EQ(Found({11}), "a:1 b:1 ");  // chains are looked up by hash; a hash names its whole prefix
  EXPECT_EQ(Found({12}), "b:1 ");
  EXPECT_EQ(Found({99, 10}), "");
  const std::vector<Hash128> chain = Chain({10, 11, 12});
  const auto one = core_.Locate(chain, 0);
  ASSERT_EQ(one->size(), 1u);
  EXPECT_EQ((*one)[0].blocks[2], (BlockRef{7, 1, 16, 1012}));
  EXPECT_EQ(core_.Locate({}, 1).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(CoreTest, EpochsOrderWhatArrives) {
  Register("a", 1);
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 5, 10)}), 1u);
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 5, 10)}), 0u) << "repeated";
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 4, 9)}), 0u) << "late";
  EXPECT_EQ(Publish("a", 1, {}, {Dropped(3, 4)}), 0u) << "late drop";
  EXPECT_EQ(Found({10}), "a:1 ");
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 6, 11)}), 1u) << "implies the drop of epoch 5";
  EXPECT_EQ(Found({10}), "");
  EXPECT_EQ(Found({11}), "a:1 ");
  EXPECT_EQ(Publish("a", 1, {}, {Dropped(3, 6)}), 1u);
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 6, 11)}), 0u) << "a repeated seal must not resurrect a dropped block";
  EXPECT_EQ(Found({11}), "");
  EXPECT_EQ(core_.blocks(), 0u);
}

TEST_F(CoreTest, EpochsWrap) {
  Register("a", 1);
  Publish("a", 1, {Sealed(3, 0xffffffff, 10)});
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 0, 11)}), 1u);
  EXPECT_EQ(Publish("a", 1, {Sealed(3, 0xffffffff, 10)}), 0u);
  EXPECT_EQ(Found({11}), "a:1 ");
}

TEST_F(CoreTest, OrderInsideABatchDoesNotMatter) {
  Register("a", 1);
  Publish("a", 1, {Sealed(0, 1, 10)});
  // Dropped e1, sealed e2, dropped e2, sealed e3 of one block, as one message.
  Publish("a", 1, {Sealed(0, 2, 20), Sealed(0, 3, 30)}, {Dropped(0, 1), Dropped(0, 2)});
  EXPECT_EQ(Found({30}), "a:1 ");
  EXPECT_EQ(Found({20}), "");
}

TEST_F(CoreTest, LeasesEndAndRenew) {
  Register("a", 1);
  Publish("a", 1, {Sealed(0, 1, 10)});
  now_ += 2 * kS;
  EXPECT_TRUE(core_.Renew({"a", 1}, now_).ok());
  now_ += 2 * kS;
  core_.Tick(now_);
  EXPECT_EQ(Found({10}), "a:1 ");
  now_ += kS;
  core_.Tick(now_);
  EXPECT_EQ(Found({10}), "");
  EXPECT_EQ(core_.pools(), 0u);
  EXPECT_EQ(core_.counters().lease_expiries, 1u);
  EXPECT_EQ(core_.Renew({"a", 1}, now_).code(), StatusCode::kNotFound);
  EXPECT_EQ(core_.Publish({"a", 1}, {}, {}, now_).status().code(), StatusCode::kNotFound);
  Register("a", 1);  // the same process comes back after a pause
  EXPECT_EQ(Publish("a", 1, {Sealed(0, 1, 10)}), 1u);
}

TEST_F(CoreTest, NewIncarnationFencesTheOld) {
  Register("a", 1);
  Publish("a", 1, {Sealed(0, 1, 10)});
  ASSERT_TRUE(core_.OpenTicket(Ticket("k"), H(1), now_).ok());
  Register("a", 2);
  EXPECT_EQ(Found({10}), "");
  EXPECT_EQ(core_.tickets().tickets(), 0u);
  EXPECT_EQ(core_.Publish({"a", 1}, {}, {}, now_).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(core_.RegisterPool(Spec("a", 1), now_).code(), StatusCode::kFailedPrecondition) << "a late message";
  core_.Release({"a", 1});
  EXPECT_EQ(core_.pools(), 1u);
  core_.Release({"a", 2});
  core_.Release({"a", 2});
  EXPECT_EQ(core_.pools(), 0u);
}

TEST_F(CoreTest, RegisterChecksItsInput) {
  const auto code = [&](auto change) {
    PoolSpec s = Spec("w", 1);
    change(s);
    return core_.RegisterPool(s, now_).code();
  };
  EXPECT_EQ(code([](PoolSpec& s) { s.worker_id = ""; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec& s) { s.worker_id = std::string(64, 'x'); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec& s) { s.incarnation = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec& s) { s.num_blocks = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec& s) { s.num_blocks = 0xffffffff; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec& s) { s.block_tokens = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec& s) { s.grpc_address = std::string(256, 'x'); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](PoolSpec&) {}), StatusCode::kOk);
  EXPECT_EQ(code([](PoolSpec&) {}), StatusCode::kOk) << "repeated";
  EXPECT_EQ(code([](PoolSpec& s) { s.num_blocks = 17; }), StatusCode::kFailedPrecondition);
}

TEST_F(CoreTest, PublishRefusesBadEntriesWhole) {
  Register("a", 1);
  const auto code = [&](SealedBlock bad) {
    const std::vector<SealedBlock> batch = {Sealed(0, 1, 10), bad};
    return core_.Publish({"a", 1}, batch, {}, now_).status().code();
  };
  EXPECT_EQ(code(Sealed(16, 1, 11)), StatusCode::kInvalidArgument);
  SealedBlock b = Sealed(1, 1, 11);
  b.ref.tokens = 17;
  EXPECT_EQ(code(b), StatusCode::kInvalidArgument);
  b = Sealed(1, 1, 11);
  b.ref.digest = 0;
  EXPECT_EQ(code(b), StatusCode::kInvalidArgument);
  b = Sealed(1, 1, 11);
  b.hash = {};
  EXPECT_EQ(code(b), StatusCode::kInvalidArgument);
  const std::vector<BlockRef> dropped = {Dropped(16, 1)};
  EXPECT_EQ(core_.Publish({"a", 1}, {}, dropped, now_).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(core_.blocks(), 0u);
  const std::vector<SealedBlock> many(4097, Sealed(0, 1, 10));
  EXPECT_EQ(core_.Publish({"a", 1}, many, {}, now_).status().code(), StatusCode::kInvalidArgument);
}

TEST(CoreLimitsTest, CapsAreRefusals) {
  CoreLimits limits;
  limits.max_pools = 2;
  limits.max_blocks = 4;
  limits.max_retired = 1;
  limits.max_log = 3;
  KvStoreCore core(limits);
  ASSERT_TRUE(core.RegisterPool(Spec("a", 1, 4), 0).ok());
  ASSERT_TRUE(core.RegisterPool(Spec("b", 1, 4), 0).ok());
  EXPECT_EQ(core.RegisterPool(Spec("c", 1, 4), 0).code(), StatusCode::kResourceExhausted);
  const std::vector<SealedBlock> three = {Sealed(0, 1, 1), Sealed(1, 1, 2), Sealed(2, 1, 3)};
  ASSERT_TRUE(core.Publish({"a", 1}, three, {}, 0).ok());
  EXPECT_EQ(core.Publish({"b", 1}, three, {}, 0).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(core.blocks(), 4u);
  EXPECT_EQ(core.log().Read(0, 10).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(core.log().Read(1, 10)->size(), 3u);
  EXPECT_EQ(core.log().Read(5, 10).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(core.log().Read(4, 10)->size(), 0u);
  for (uint64_t i = 2; i < 6; ++i) ASSERT_TRUE(core.RegisterPool(Spec("a", i, 4), 0).ok());
  EXPECT_EQ(core.RegisterPool(Spec("a", 4, 4), 0).code(), StatusCode::kFailedPrecondition);
  core.CheckInvariants(0);
}

TEST_F(CoreTest, TicketsAreIdempotentBoundedAndEnd) {
  Register("a", 1);
  Publish("a", 1, {Sealed(1, 3, 10)});
  EXPECT_EQ(core_.OpenTicket(Ticket("k", {{1, 2, 16, 5}}), H(1), now_).status().code(),
            StatusCode::kFailedPrecondition);
  const auto first = core_.OpenTicket(Ticket("k", {{1, 3, 16, 5}, {2, 1, 16, 5}}), H(1), now_);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->ttl, 5 * kS);
  now_ += kS;
  const auto again = core_.OpenTicket(Ticket("k", {{1, 3, 16, 5}, {2, 1, 16, 5}}), H(2), now_);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->ticket, first->ticket);
  EXPECT_EQ(again->ttl, 4 * kS);
  EXPECT_EQ(core_.OpenTicket(Ticket("k", {{2, 1, 16, 5}}), H(3), now_).status().code(), StatusCode::kAlreadyExists);
  EXPECT_TRUE(core_.tickets().Covers({"a", 1}, 2));
  EXPECT_FALSE(core_.tickets().Covers({"a", 1}, 3));
  EXPECT_EQ(core_.Audit(now_).ticketed_blocks, 2u);
  core_.CloseTicket(first->ticket);
  core_.CloseTicket(first->ticket);
  EXPECT_EQ(core_.Audit(now_).ticketed_blocks, 0u);
  ASSERT_TRUE(core_.OpenTicket(Ticket("k", {{2, 1, 16, 5}}), H(4), now_).ok());
  for (int i = 0; i < 3; ++i) {  // the lease must outlive the ticket
    now_ += 2 * kS;
    ASSERT_TRUE(core_.Renew({"a", 1}, now_).ok());
    core_.Tick(now_);
  }
  EXPECT_EQ(core_.tickets().tickets(), 0u);
  EXPECT_EQ(core_.counters().tickets_expired, 1u);
}

TEST(TicketTableTest, OneReaderCannotUseUpTheTable) {
  CoreLimits limits;
  limits.max_tickets = 4;
  limits.max_tickets_per_reader = 2;
  limits.max_ticket_blocks = 10;
  TicketTable table(limits);
  const auto open = [&](const std::string& reader, size_t blocks, uint64_t id) {
    return table.Open({{reader, 1}, {"a", 1}, std::vector<BlockRef>(blocks, BlockRef{1, 1, 1, 1}), 0, ""}, H(id), 0)
        .status()
        .code();
  };
  EXPECT_EQ(open("r", 1, 1), StatusCode::kOk);
  EXPECT_EQ(open("r", 1, 1), StatusCode::kUnavailable) << "id collision";
  EXPECT_EQ(open("r", 1, 2), StatusCode::kOk);
  EXPECT_EQ(open("r", 1, 3), StatusCode::kResourceExhausted);
  EXPECT_EQ(open("s", 9, 3), StatusCode::kResourceExhausted) << "blocks";
  EXPECT_EQ(open("s", 8, 3), StatusCode::kOk);
  EXPECT_EQ(open("t", 0, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(open("", 1, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(table.next_expiry(), limits.default_ticket_ttl);
  EXPECT_EQ(table.DropOwner({"a", 1}), 3u);
  std::vector<std::string> violations;
  table.CheckInvariants(&violations);
  EXPECT_TRUE(violations.empty());
}

TEST_F(CoreTest, BlocksInHostMemoryFollowThePools) {
  PoolSpec spec = Spec("a", 1, 8);
  spec.host_blocks = 4;
  ASSERT_TRUE(core_.RegisterPool(spec, now_).ok());
  Publish("a", 1, {Sealed(0, 1, 10), Sealed(9, 1, 10), Sealed(10, 1, 11)});
  EXPECT_EQ(core_.Audit(now_).blocks, 3u);
  EXPECT_EQ(core_.Audit(now_).host_blocks, 2u);
  // Peers can read the first block only; who follows the log knows that the worker has both.
  const auto places = *core_.Locate(Chain({10, 11}), 4);
  ASSERT_EQ(places.size(), 1u);
  EXPECT_EQ(places[0].blocks.size(), 1u);
  EXPECT_EQ(places[0].blocks[0].index, 0u);
  const std::vector<SealedBlock> beyond = {Sealed(12, 1, 13)};
  EXPECT_EQ(core_.Publish({"a", 1}, beyond, {}, now_).status().code(), StatusCode::kInvalidArgument);
  Publish("a", 1, {}, {Dropped(9, 1)});
  EXPECT_EQ(core_.Audit(now_).host_blocks, 1u);
  core_.CheckInvariants(now_);
}

TEST_F(CoreTest, SnapshotInParts) {
  Register("a", 1);
  Register("b", 1);
  Register("c", 1);
  Publish("a", 1, {Sealed(0, 1, 10), Sealed(4, 1, 11), Sealed(9, 1, 12)});
  Publish("c", 1, {Sealed(1, 1, 10)});
  SnapshotCursor cursor;
  std::string seen;
  while (!cursor.done) {
    const SnapshotPart part = core_.Snapshot(&cursor, 2);
    if (part.pool == nullptr) continue;
    EXPECT_LE(part.sealed.size(), 2u);
    for (const SealedBlock& b : part.sealed) seen += part.pool->worker_id + std::to_string(b.ref.index) + " ";
  }
  EXPECT_EQ(seen, "a0 a4 a9 c1 ");
}

}  // namespace
}  // namespace agentserve::kvstore
