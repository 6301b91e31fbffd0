// What only the stream path has: its service, its several connections.
#include <gtest/gtest.h>

#include "kvstore/transport/call_pool.h"
#include "kvstore/transport/peer_pool.h"
#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

using engine::BlockId;
using namespace std::chrono_literals;

TEST(StreamPeerTest, ServiceRefusesBadRequests) {
  Owner owner(TinyLayout());
  const PeerEndpoint e = owner.endpoint();
  auto channel = grpc::CreateChannel(e.grpc_address, grpc::InsecureChannelCredentials());
  auto stub = v1::KvTransferService::NewStub(channel);
  const auto read = [&](auto change) {
    v1::ReadRequest r;
    r.set_incarnation(e.incarnation);
    r.set_layout_fingerprint(e.layout_fingerprint);
    r.add_blocks()->set_index(0);
    r.set_probe(true);
    change(r);
    grpc::ClientContext context;
    auto reader = stub->Read(&context, r);
    v1::ReadResponse chunk;
    while (reader->Read(&chunk)) {
    }
    return reader->Finish().error_code();
  };
  EXPECT_EQ(read([](auto&) {}), grpc::StatusCode::OK);
  EXPECT_EQ(read([](auto& r) { r.mutable_blocks(0)->set_index(64); }), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(read([](auto& r) { r.set_first_layer(4); }), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(read([](auto& r) { r.set_layer_count(0xffffffff); }), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(read([](auto& r) { r.set_incarnation(1); }), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(read([](auto& r) { r.set_layout_fingerprint(1); }), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(read([](auto& r) {
              for (int i = 0; i < kMaxReadBlocks; ++i) r.add_blocks();
            }),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(read([](auto& r) {
              for (int i = 0; i < 9000; ++i) r.add_blocks();
            }),
            grpc::StatusCode::INVALID_ARGUMENT)
      << "probes are bounded in bytes";
}

// Large reads are cut over several connections; every block comes to its place, and one part's failure is the read's.
TEST(StreamPeerTest, SeveralConnectionsShareARead) {
  const engine::KvLayout layout = OneBLayout();
  Owner owner(layout, 24);
  std::vector<BlockRef> refs;
  for (uint32_t b = 0; b < 23; ++b) refs.push_back(owner.Write((b * 7) % 24, 1, b, b == 22 ? 3 : 0));
  auto pool =
      PeerPool::Connect(owner.endpoint(), {.layout = layout, .mode = TransportMode::kStream, .stream_connections = 5});
  ASSERT_TRUE(pool.ok()) << pool.status().message();
  LocalPool local(layout, 23);
  std::vector<uint64_t> sums(23, 0);
  ASSERT_TRUE((*pool)->ReadLayers(refs, 0, 9, local.view(), BlockIds(0, 23), sums).ok());
  ASSERT_TRUE((*pool)->ReadLayers(refs, 9, 7, local.view(), BlockIds(0, 23), sums).ok());
  EXPECT_TRUE((*pool)->Validate(refs, local.view(), BlockIds(0, 23), sums).ok());
  EXPECT_TRUE((*pool)->Validate(refs, local.view(), BlockIds(0, 23)).ok());
  owner.Write(refs[21].index, 2, 99);
  EXPECT_EQ((*pool)->ReadBlocks(refs, local.view(), BlockIds(0, 23)).code(), absl::StatusCode::kAborted);
}

TEST(CallPoolTest, MakesEveryCallOnce) {
  CallPool calls(4);
  EXPECT_EQ(calls.width(), 4u);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; ++t) {  // they get in each other's way
    threads.emplace_back([&] {
      for (size_t round = 0; round < 200; ++round) {
        std::vector<std::atomic<int>> made(round % 9);
        calls.Run(made.size(), [&](size_t i) { ++made[i]; });
        for (const auto& m : made) wrong += m != 1;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

// The owner stops while readers wait: they end with an error, nothing hangs.
TEST(StreamPeerTest, StopEndsWaiters) {
  auto owner = std::make_unique<Owner>(TinyLayout());
  auto connected = PeerPool::Connect(owner->endpoint(), {.layout = TinyLayout(), .mode = TransportMode::kStream});
  ASSERT_TRUE(connected.ok()) << connected.status().message();
  const std::unique_ptr<PeerPool> peer = *std::move(connected);
  const ProgressRef ref = *owner->pool().AcquireProgress();
  ASSERT_TRUE(peer->LoadProgress(ref.slot, ref.tag).ok());
  std::thread stopper([&] {
    std::this_thread::sleep_for(30ms);
    owner->service().Stop();
  });
  EXPECT_EQ(peer->WaitProgress(ref.slot, ref.tag, {}, 5s).status().code(), absl::StatusCode::kUnavailable);
  stopper.join();
  const BlockRef block = owner->Write(0, 1, 1);
  owner.reset();
  LocalPool local(TinyLayout(), 1);
  EXPECT_EQ(peer->ReadBlocks({&block, 1}, local.view(), BlockIds(0, 1)).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace agentserve::kvstore
