// Reader side against an owner in this process, over both transports.
#include "kvstore/transport/peer_pool.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "kvstore/transport/handshake.h"
#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

using engine::BlockId;
using engine::Epoch;
using engine::PrefillProgress;
using namespace std::chrono_literals;

std::unique_ptr<PeerPool> MustConnect(const PeerEndpoint& peer, const engine::KvLayout& layout, TransportMode mode) {
  auto pool = PeerPool::Connect(peer, {.layout = layout, .mode = mode});
  AS_CHECK(pool.ok()) << pool.status().message();
  return *std::move(pool);
}

class BothTransports : public testing::TestWithParam<TransportMode> {
 protected:
  std::unique_ptr<PeerPool> Connect(Owner& owner) {
    return MustConnect(owner.endpoint(), owner.pool().layout(), GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(Transport, BothTransports, testing::Values(TransportMode::kMapped, TransportMode::kStream),
                         [](const auto& param) { return param.param == TransportMode::kMapped ? "Mapped" : "Stream"; });

TEST_P(BothTransports, ProbeProvesThePath) {
  Owner owner(TinyLayout());
  auto peer = Connect(owner);
  EXPECT_EQ(peer->transport(), GetParam() == TransportMode::kMapped ? "mapped" : "stream");
  EXPECT_GT(peer->gb_per_s(), 0.0);
  EXPECT_EQ(peer->problem(), "");
  EXPECT_TRUE(peer->PeerAlive());
  EXPECT_EQ(peer->counters().bytes, 0u);
}

TEST_P(BothTransports, WholeBlocksArriveAndValidate) {
  Owner owner(TinyLayout());
  std::vector<BlockRef> refs;
  for (uint32_t b : {5u, 6u, 7u, 2u}) refs.push_back(owner.Write(b, b + 1, b));
  refs.push_back(owner.Write(40, 3, 99, 7));  // partial
  auto peer = Connect(owner);
  LocalPool local(TinyLayout(), 10);
  const std::vector<BlockId> dst = {BlockId(1), BlockId(2), BlockId(3), BlockId(9), BlockId(0)};
  ASSERT_TRUE(peer->ReadBlocks(refs, local.view(), dst).ok());
  for (size_t i = 0; i < refs.size(); ++i) {
    EXPECT_EQ(std::memcmp(local.view().Block(dst[i].value), owner.pool().view().Block(refs[i].index),
                          TinyLayout().BlockBytes()),
              0);
  }
  EXPECT_TRUE(peer->Validate(refs, local.view(), dst).ok());
  EXPECT_EQ(peer->counters().bytes, 5 * TinyLayout().BlockBytes());
  EXPECT_EQ(peer->counters().reads, 1u);
}

TEST_P(BothTransports, LayerRangesTouchOnlyTheirBytes) {
  Owner owner(TinyLayout());
  const BlockRef ref = owner.Write(4, 1, 8);
  auto peer = Connect(owner);
  LocalPool local(TinyLayout(), 2);
  const std::vector<BlockId> dst = {BlockId(1)};
  ASSERT_TRUE(peer->ReadLayers({&ref, 1}, 1, 2, local.view(), dst).ok());
  const size_t layer = TinyLayout().LayerBytes();
  const std::vector<std::byte> zeros(layer);
  const std::byte* got = local.view().Block(1);
  EXPECT_EQ(std::memcmp(got, zeros.data(), layer), 0);
  EXPECT_EQ(std::memcmp(got + layer, owner.pool().view().Block(4) + layer, 2 * layer), 0);
  EXPECT_EQ(std::memcmp(got + 3 * layer, zeros.data(), layer), 0);
  EXPECT_EQ(peer->Validate({&ref, 1}, local.view(), dst).outcome, ReadOutcome::kDigestMismatch);
  ASSERT_TRUE(peer->ReadLayers({&ref, 1}, 0, 1, local.view(), dst).ok());
  ASSERT_TRUE(peer->ReadLayers({&ref, 1}, 3, 1, local.view(), dst).ok());
  EXPECT_TRUE(peer->Validate({&ref, 1}, local.view(), dst).ok());
}

TEST_P(BothTransports, BlocksLargerThanAMessage) {
  const engine::KvLayout big{16, 8, 128, 32, engine::KvDtype::kFp32, 1};  // 4 MiB, 256 KiB a layer
  Owner owner(big, 4);
  const std::vector<BlockRef> refs = {owner.Write(0, 1, 1), owner.Write(3, 1, 2)};
  auto peer = Connect(owner);
  LocalPool local(big, 2);
  ASSERT_TRUE(peer->ReadLayers(refs, 0, 5, local.view(), BlockIds(0, 2)).ok());
  ASSERT_TRUE(peer->ReadLayers(refs, 5, 11, local.view(), BlockIds(0, 2)).ok());
  EXPECT_TRUE(peer->Validate(refs, local.view(), BlockIds(0, 2)).ok());
}

TEST_P(BothTransports, BadRangesAreRefused) {
  Owner owner(TinyLayout());
  const BlockRef ref = owner.Write(4, 1, 8);
  auto peer = Connect(owner);
  LocalPool local(TinyLayout(), 2);
  const auto read = [&](BlockRef r, uint32_t first, uint32_t count, uint32_t dst) {
    const std::vector<BlockId> ids = {BlockId(dst)};
    return peer->ReadLayers({&r, 1}, first, count, local.view(), ids).code();
  };
  EXPECT_EQ(read(ref, 0, 5, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(ref, 4, 0xffffffff, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(ref, 0, 4, 2), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read({64, 1, 1, 1}, 0, 4, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read({4, 1, 17, 1}, 0, 4, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(peer->ReadLayers({&ref, 1}, 0, 4, local.view(), {}).code(), absl::StatusCode::kInvalidArgument);
  LocalPool other(OneBLayout(), 2);
  EXPECT_EQ(peer->ReadBlocks({&ref, 1}, other.view(), BlockIds(0, 1)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(ref, 0, 4, 0), absl::StatusCode::kOk);
}

// A flip of any of a sample of bits, on the owner's side after the seal, is a digest mismatch.
TEST_P(BothTransports, FlippedBitsAreFound) {
  Owner owner(TinyLayout());
  const BlockRef ref = owner.Write(4, 1, 8, 9);
  auto peer = Connect(owner);
  LocalPool local(TinyLayout(), 1);
  base::SplitMix64 rng(5);
  for (int i = 0; i < 50; ++i) {
    const engine::KvLayout l = TinyLayout();
    const size_t at = l.Offset(static_cast<uint32_t>(rng.Below(4)), static_cast<uint32_t>(rng.Below(2)),
                               static_cast<uint32_t>(rng.Below(2))) +
                      rng.Below(9 * l.head_dim * 4);
    const auto mask = static_cast<std::byte>(1 << rng.Below(8));
    owner.pool().view().Block(4)[at] ^= mask;
    ASSERT_TRUE(peer->ReadBlocks({&ref, 1}, local.view(), BlockIds(0, 1)).ok());
    const ValidateResult bad = peer->Validate({&ref, 1}, local.view(), BlockIds(0, 1));
    EXPECT_EQ(bad.outcome, ReadOutcome::kDigestMismatch) << at;
    owner.pool().view().Block(4)[at] ^= mask;
  }
  ASSERT_TRUE(peer->ReadBlocks({&ref, 1}, local.view(), BlockIds(0, 1)).ok());
  EXPECT_TRUE(peer->Validate({&ref, 1}, local.view(), BlockIds(0, 1)).ok());
  BlockRef unknown = ref;
  unknown.digest = 0;
  EXPECT_EQ(peer->Validate({&unknown, 1}, local.view(), BlockIds(0, 1)).outcome, ReadOutcome::kDigestMismatch);
}

// Sums that were added up while layers were copied find what digests of the whole copies find.
TEST_P(BothTransports, SumsOfLayersDecide) {
  Owner owner(TinyLayout());
  const std::vector<BlockRef> refs = {owner.Write(4, 1, 8), owner.Write(9, 1, 9, 5), owner.Write(2, 1, 10)};
  auto peer = Connect(owner);
  LocalPool local(TinyLayout(), 3);
  const auto pull = [&](std::vector<uint32_t> layers, size_t flip) {
    std::vector<uint64_t> sums(3, 0);
    for (size_t i = 0; i < layers.size(); ++i) {
      if (i == flip) owner.pool().view().Block(9)[TinyLayout().LayerBytes() * layers[i]] ^= std::byte{64};
      EXPECT_TRUE(peer->ReadLayers(refs, layers[i], 1, local.view(), BlockIds(0, 3), sums).ok());
      if (i == flip) owner.pool().view().Block(9)[TinyLayout().LayerBytes() * layers[i]] ^= std::byte{64};
    }
    return peer->Validate(refs, local.view(), BlockIds(0, 3), sums);
  };
  EXPECT_TRUE(pull({0, 1, 2, 3}, 9).ok());
  EXPECT_TRUE(pull({3, 0, 2, 1}, 9).ok()) << "in any order";
  EXPECT_EQ(pull({0, 1, 2}, 9).outcome, ReadOutcome::kDigestMismatch) << "a layer is missing";
  EXPECT_EQ(pull({0, 1, 2, 3, 3}, 9).outcome, ReadOutcome::kDigestMismatch) << "a layer came twice";
  for (size_t flip = 0; flip < 4; ++flip) {
    const ValidateResult bad = pull({0, 1, 2, 3}, flip);
    EXPECT_EQ(bad.outcome, ReadOutcome::kDigestMismatch);
    EXPECT_EQ(bad.position, 1u);
  }
  owner.Write(2, 2, 11);
  std::vector<uint64_t> sums(3, 5);
  const absl::Status read = peer->ReadBlocks(refs, local.view(), BlockIds(0, 3));
  const ValidateResult stale = pull({}, 9);
  EXPECT_TRUE(!read.ok() || stale.outcome != ReadOutcome::kOk);
  if (!read.ok()) {  // the stream tells at once
    EXPECT_FALSE(peer->ReadLayers(refs, 0, 4, local.view(), BlockIds(0, 3), sums).ok());
    EXPECT_EQ(sums, std::vector<uint64_t>(3, 5)) << "as before";
  }
}

// The block is reused between the reference and the copy: both paths refuse, each in its way.
TEST_P(BothTransports, ReuseBeforeTheCopyIsFound) {
  Owner owner(TinyLayout());
  const BlockRef fine = owner.Write(3, 1, 7);
  const BlockRef old = owner.Write(4, 1, 8);
  owner.Write(4, 2, 9);
  auto peer = Connect(owner);
  LocalPool local(TinyLayout(), 2);
  const std::vector<BlockRef> refs = {fine, old};
  const absl::Status read = peer->ReadBlocks(refs, local.view(), BlockIds(0, 2));
  if (GetParam() == TransportMode::kStream) {
    EXPECT_EQ(read.code(), absl::StatusCode::kAborted) << read.message();
    EXPECT_EQ(peer->Validate(refs, local.view(), BlockIds(0, 2)).outcome, ReadOutcome::kDigestMismatch);
  } else {
    EXPECT_TRUE(read.ok());
    const ValidateResult v = peer->Validate(refs, local.view(), BlockIds(0, 2));
    EXPECT_EQ(v.outcome, ReadOutcome::kStaleEpoch);
    EXPECT_EQ(v.position, 1u);
  }
  owner.pool().FreeBlock(BlockId(3));
  const std::vector<BlockRef> freed = {fine};
  const absl::Status again = peer->ReadBlocks(freed, local.view(), BlockIds(0, 1));
  EXPECT_TRUE(!again.ok() || !peer->Validate(freed, local.view(), BlockIds(0, 1)).ok());
}

// A thread reuses the blocks without pause. Whatever validates must be the content of exactly the referenced epoch.
TEST_P(BothTransports, ReuseDuringCopiesNeverServesWrongContent) {
  Owner owner(TinyLayout(), 4);
  auto peer = Connect(owner);
  std::mutex mu;
  BlockRef latest = owner.Write(0, 1, 1);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint32_t epoch = 2; !stop; ++epoch) {
      const BlockRef r = owner.Write(0, epoch, epoch);
      std::lock_guard lock(mu);
      latest = r;
    }
  });
  LocalPool local(TinyLayout(), 1), expected(TinyLayout(), 1);
  int valid = 0, refused = 0;
  const auto until = std::chrono::steady_clock::now() + 400ms;
  while (std::chrono::steady_clock::now() < until) {
    BlockRef ref;
    {
      std::lock_guard lock(mu);
      ref = latest;
    }
    const absl::Status read = peer->ReadBlocks({&ref, 1}, local.view(), BlockIds(0, 1));
    if (!read.ok() || !peer->Validate({&ref, 1}, local.view(), BlockIds(0, 1)).ok()) {
      ++refused;
      continue;
    }
    ++valid;
    FillRandom(expected.view(), 0, ref.epoch);
    ASSERT_EQ(std::memcmp(local.view().Block(0), expected.view().Block(0), TinyLayout().BlockBytes()), 0);
  }
  stop = true;
  writer.join();
  EXPECT_GT(refused, 0) << "the fault did not take effect; valid=" << valid;
}

TEST_P(BothTransports, ProgressIsFollowedAndEnds) {
  Owner owner(TinyLayout());
  auto peer = Connect(owner);
  const ProgressRef ref = *owner.pool().AcquireProgress();
  EXPECT_EQ(*peer->LoadProgress(ref.slot, ref.tag), PrefillProgress{});
  EXPECT_EQ(peer->WaitProgress(ref.slot, ref.tag, {}, 5ms).status().code(), absl::StatusCode::kDeadlineExceeded);
  std::thread owner_thread([&] {
    for (uint32_t i = 1; i <= 50; ++i) {
      owner.pool().StoreProgress(ref, {0, 32, i});
      std::this_thread::sleep_for(200us);
    }
  });
  PrefillProgress last;
  while (last.layers < 50) {
    const auto p = peer->WaitProgress(ref.slot, ref.tag, last, 2s);
    ASSERT_TRUE(p.ok()) << p.status().message();
    ASSERT_GT(p->layers, last.layers);
    last = *p;
  }
  owner_thread.join();
  EXPECT_EQ(last, (PrefillProgress{0, 32, 50}));
  owner.pool().ReleaseProgress(ref);
  EXPECT_EQ(peer->WaitProgress(ref.slot, ref.tag, last, 2s).status().code(), absl::StatusCode::kNotFound);
  // The slot's next prompt is another tag.
  const ProgressRef next = *owner.pool().AcquireProgress();
  EXPECT_EQ(next.slot, ref.slot);
  EXPECT_FALSE(peer->WaitProgress(ref.slot, ref.tag, {}, 100ms).ok());
  owner.pool().StoreProgress(next, {7, 7, 0});
  EXPECT_EQ(*peer->WaitProgress(next.slot, next.tag, {}, 2s), (PrefillProgress{7, 7, 0}));
  peer->EndProgress(next.slot, next.tag);
}

TEST_P(BothTransports, BadProgressReferencesAreRefused) {
  Owner owner(TinyLayout());
  auto peer = Connect(owner);
  EXPECT_EQ(peer->WaitProgress(8, 1, {}, 2s).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(peer->WaitProgress(0, 0, {}, 2s).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(peer->WaitProgress(0, 12345, {}, 2s).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(BothTransports, ManyReadersAtOnce) {
  Owner owner(TinyLayout());
  std::vector<BlockRef> refs;
  for (uint32_t b = 0; b < 32; ++b) refs.push_back(owner.Write(b, 1, b));
  auto peer = Connect(owner);
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      LocalPool local(TinyLayout(), 32);
      for (int i = 0; i < 10; ++i) {
        if (peer->ReadBlocks(refs, local.view(), BlockIds(0, 32)).ok() &&
            peer->Validate(refs, local.view(), BlockIds(0, 32)).ok()) {
          ++good;
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(good, 40);
  EXPECT_EQ(peer->counters().bytes, 40u * 32 * TinyLayout().BlockBytes());
}

TEST_P(BothTransports, WrongIdentityIsNamed) {
  Owner owner(TinyLayout());
  const auto connect = [&](auto change) {
    PeerEndpoint e = owner.endpoint();
    change(e);
    auto pool = PeerPool::Connect(e, {.layout = TinyLayout(), .mode = GetParam(), .connect_timeout_ms = 300});
    return pool.ok() ? absl::OkStatus() : pool.status();
  };
  absl::Status s = connect([](PeerEndpoint& e) { e.incarnation = 12; });
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(s.message()).find("incarnation is 11"), std::string::npos) << s.message();
  s = connect([](PeerEndpoint& e) { e.layout_fingerprint = 1; });
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  s = connect([](PeerEndpoint& e) {
    e.unix_socket = "/nonexistent/x";
    e.grpc_address = "127.0.0.1:1";
  });
  EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable) << s.message();
  s = connect([](PeerEndpoint& e) { e.unix_socket = e.grpc_address = ""; });
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << s.message();
}

TEST(MappedPeerTest, WrongWorkerAndSizeAreNamed) {
  Owner owner(TinyLayout());
  PeerEndpoint e = owner.endpoint();
  e.worker_id = "prefill-1";
  auto pool = PeerPool::Connect(e, {.layout = TinyLayout(), .mode = TransportMode::kAuto});
  EXPECT_EQ(pool.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(pool.status().message()).find("belongs to worker prefill-0"), std::string::npos);
  e = owner.endpoint();
  e.num_blocks = 65;
  pool = PeerPool::Connect(e, {.layout = TinyLayout(), .mode = TransportMode::kAuto});
  EXPECT_EQ(pool.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(pool.status().message()).find("number of blocks is 64, expected 65"), std::string::npos);
}

TEST(FallbackTest, AutoFallsBackLoudlyAndMappedDoesNot) {
  Owner owner(TinyLayout());
  PeerEndpoint e = owner.endpoint();
  e.unix_socket = "/nonexistent/kv.sock";
  auto pool = PeerPool::Connect(e, {.layout = TinyLayout(), .mode = TransportMode::kAuto});
  ASSERT_TRUE(pool.ok()) << pool.status().message();
  EXPECT_EQ((*pool)->transport(), "stream");
  EXPECT_NE((*pool)->problem().find("/nonexistent/kv.sock"), std::string::npos);
  auto mapped = PeerPool::Connect(e, {.layout = TinyLayout(), .mode = TransportMode::kMapped});
  EXPECT_EQ(mapped.status().code(), absl::StatusCode::kUnavailable);
}

// An exporter that lies: a file that is smaller than said, not sealed, or with a damaged header.
class LyingExporter {
 public:
  LyingExporter(Owner& owner, bool seal, std::function<void(std::byte*)> damage, int64_t size_error = 0) {
    const PeerEndpoint e = owner.endpoint();
    KvPool& pool = owner.pool();
    const auto bytes = static_cast<size_t>(static_cast<int64_t>(pool.file_bytes()) + size_error);
    base::UniqueFd fd(memfd_create("liar", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    AS_CHECK_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
    std::string header(sizeof(PoolHeader), '\0');
    std::memcpy(header.data(), &pool.control().header(), header.size());
    damage(reinterpret_cast<std::byte*>(header.data()));
    AS_CHECK_EQ(pwrite(fd.get(), header.data(), header.size(), 0), 256);
    if (seal) AS_CHECK_EQ(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    path_ = dir_.path() + "/liar.sock";
    listener_ = *base::ListenUnix(path_);
    const std::string hello = EncodeHello({e.worker_id, e.incarnation, e.layout_fingerprint, pool.file_bytes(), {}});
    thread_ = std::thread([this, hello, fd = std::move(fd)] {
      base::UniqueFd peer(accept(listener_.get(), nullptr, nullptr));
      (void)base::SendFd(peer.get(), fd.get(), hello);
    });
  }
  ~LyingExporter() { thread_.join(); }
  const std::string& path() const { return path_; }

 private:
  TempDir dir_;
  std::string path_;
  base::UniqueFd listener_;
  std::thread thread_;
};

TEST(MappedPeerTest, LyingExportersAreRefused) {
  Owner owner(TinyLayout());
  const auto connect = [&](const LyingExporter& liar) {
    PeerEndpoint e = owner.endpoint();
    e.unix_socket = liar.path();
    return PeerPool::Connect(e, {.layout = TinyLayout(), .mode = TransportMode::kMapped}).status();
  };
  const auto keep = [](std::byte*) {};
  EXPECT_TRUE(connect(LyingExporter(owner, true, keep)).ok())
      << "the honest copy must work, or the rest proves nothing";
  EXPECT_NE(std::string(connect(LyingExporter(owner, false, keep)).message()).find("not sealed"), std::string::npos);
  EXPECT_FALSE(connect(LyingExporter(owner, true, keep, -4096)).ok());
  EXPECT_FALSE(connect(LyingExporter(owner, true, keep, 4096)).ok());
  for (size_t at : {0, 8, 12, 16, 24, 32, 40, 44, 48, 52, 56, 60, 61, 66, 72, 73, 80}) {
    const auto damage = [at](std::byte* header) { header[at] ^= std::byte{0x20}; };
    EXPECT_EQ(connect(LyingExporter(owner, true, damage)).code(), absl::StatusCode::kFailedPrecondition) << at;
  }
}

TEST(ExporterTest, BoundsPeersAndNoticesTheirEnd) {
  Owner owner(TinyLayout());
  std::vector<std::unique_ptr<PeerPool>> peers;
  for (int i = 0; i < 4; ++i) {
    peers.push_back(MustConnect(owner.endpoint(), TinyLayout(), TransportMode::kMapped));
  }
  const PeerOptions quick{.layout = TinyLayout(), .mode = TransportMode::kMapped, .connect_timeout_ms = 100};
  EXPECT_EQ(PeerPool::Connect(owner.endpoint(), quick).status().code(), absl::StatusCode::kDeadlineExceeded);
  peers.pop_back();
  EXPECT_TRUE(PeerPool::Connect(owner.endpoint(), {.layout = TinyLayout(), .mode = TransportMode::kMapped}).ok());
  EXPECT_TRUE(peers[0]->PeerAlive());
  owner.StopExporter();
  EXPECT_FALSE(peers[0]->PeerAlive());
  EXPECT_EQ(peers[0]->WaitProgress(0, (*owner.pool().AcquireProgress()).tag, {}, 2s).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(TransportModeTest, Parses) {
  EXPECT_EQ(*ParseTransportMode("auto"), TransportMode::kAuto);
  EXPECT_EQ(*ParseTransportMode("mapped"), TransportMode::kMapped);
  EXPECT_EQ(*ParseTransportMode("stream"), TransportMode::kStream);
  EXPECT_FALSE(ParseTransportMode("rdma").ok());
}

}  // namespace
}  // namespace agentserve::kvstore
