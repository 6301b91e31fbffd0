// Pools on a device, with a pretended device whose addresses fault when the host touches them: which path is taken,
// what it says about itself, and that everything goes through the memory's interface. cuda/device_pool_test.cc is the
// same on a GPU.
#include <gtest/gtest.h>

#include "kvstore/transport/device_memory.h"
#include "kvstore/transport/fake_memory_for_test.h"
#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

using engine::BlockId;

constexpr uint32_t kBlocks = 16;

// A pool on a device, and its blocks' bytes.
struct DeviceOwner {
  DeviceOwner() : owner(TinyLayout(), kBlocks, 11, "prefill-0", 8, Make()) {}
  std::unique_ptr<BlockMemory> Make() {
    auto made = std::make_unique<FakeMemory>(&device, TinyLayout(), kBlocks);
    memory = made.get();
    return made;
  }
  FakeDevice device;
  FakeMemory* memory = nullptr;
  Owner owner;
};

class Reader {
 public:
  explicit Reader(Owner& owner, TransportMode mode = TransportMode::kAuto, FakeDevice device = {})
      : device_(device), memory_(&device_, TinyLayout(), kBlocks) {
    PeerOptions options;
    options.layout = TinyLayout();
    options.memory = &memory_;
    options.mode = mode;
    auto peer = PeerPool::Connect(owner.endpoint(), options);
    status = peer.status();
    if (peer.ok()) peer_ = *std::move(peer);
  }
  PeerPool* operator->() { return peer_.get(); }
  // Pulls, by two ranges of layers, and validates; blocks of the pool are 1, 3, 5, ..
  ValidateResult Pull(const std::vector<BlockRef>& refs) {
    std::vector<BlockId> to;
    for (uint32_t i = 0; i < refs.size(); ++i) to.emplace_back(2 * i + 1);
    EXPECT_TRUE(peer_->ReadLayers(refs, 0, 3, memory_.view(), to).ok());
    EXPECT_TRUE(peer_->ReadLayers(refs, 3, 1, memory_.view(), to).ok());
    return peer_->Validate(refs, memory_.view(), to);
  }
  FakeMemory& memory() { return memory_; }
  FakeDevice& device() { return device_; }
  absl::Status status;

 private:
  FakeDevice device_;
  FakeMemory memory_;
  std::unique_ptr<PeerPool> peer_;
};

std::vector<BlockRef> WriteThree(Owner& owner) {
  return {owner.Write(7, 3, 70), owner.Write(2, 4, 71), owner.Write(9, 5, 72, 5)};
}

TEST(DevicePool, FileHoldsTheControlPageOnly) {
  DeviceOwner d;
  EXPECT_EQ(d.owner.pool().file_bytes(), 4096u);
  EXPECT_EQ(d.owner.pool().view().base, d.memory->view().base);
  EXPECT_EQ(d.owner.pool().control().header().memory_kind, static_cast<uint32_t>(MemoryKind::kCuda));
}

TEST(DevicePool, SealsOfAStepAreOneCall) {
  DeviceOwner d;
  std::vector<engine::SealRequest> seals;
  for (uint32_t b = 0; b < 5; ++b) seals.push_back({engine::SeqId(1), BlockId(b), b, b + 1});
  const int before = d.memory->digest_calls();
  const auto digests = d.owner.pool().Digests(seals);
  ASSERT_TRUE(digests.ok());
  EXPECT_EQ(d.memory->digest_calls(), before + 1);
  for (uint32_t b = 0; b < 5; ++b) {
    EXPECT_EQ((*digests)[b], BlockDigest(TinyLayout(), d.memory->Real(b), b + 1));
  }
  d.device.broken = true;
  EXPECT_EQ(d.owner.pool().Digests(seals).status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(d.owner.pool().Digests({}).ok()) << "nothing to ask the device";
}

TEST(DevicePool, DeviceToDeviceIsMapped) {
  DeviceOwner d;
  const std::vector<BlockRef> refs = WriteThree(d.owner);
  Reader reader(d.owner, TransportMode::kMapped);
  ASSERT_TRUE(reader.status.ok()) << reader.status.message();
  EXPECT_EQ(reader->transport(), "mapped");
  EXPECT_EQ(reader->gb_per_s(), 123.0);
  EXPECT_EQ(reader->problem(), "");
  EXPECT_TRUE(reader.Pull(refs).ok());
  EXPECT_EQ(std::memcmp(reader.memory().Real(3), d.memory->Real(2), TinyLayout().BlockBytes()), 0);
  EXPECT_EQ(reader.memory().digest_calls(), 1);
}

TEST(DevicePool, CorruptionAndReuseAreFound) {
  DeviceOwner d;
  const std::vector<BlockRef> refs = WriteThree(d.owner);
  Reader reader(d.owner);
  d.memory->Real(2)[77] ^= std::byte{1};
  ValidateResult v = reader.Pull(refs);
  EXPECT_EQ(v.outcome, ReadOutcome::kDigestMismatch);
  EXPECT_EQ(v.position, 1u);
  d.memory->Real(2)[77] ^= std::byte{1};
  d.owner.Write(7, 4, 70);
  v = reader.Pull(refs);
  EXPECT_EQ(v.outcome, ReadOutcome::kStaleEpoch);
  EXPECT_EQ(v.position, 0u);
  reader.device().broken = true;
  const std::vector<BlockId> to = {BlockId(1)};
  EXPECT_EQ(reader->ReadLayers({refs.data() + 1, 1}, 0, 1, reader.memory().view(), to).code(),
            absl::StatusCode::kInternal);
  EXPECT_FALSE(reader->Validate({refs.data() + 1, 1}, reader.memory().view(), to).ok());
}

TEST(DevicePool, WithoutPeerAccessItIsStagedLoudly) {
  DeviceOwner d;
  const std::vector<BlockRef> refs = WriteThree(d.owner);
  Reader reader(d.owner, TransportMode::kAuto, {.number = 2, .reaches_peers = false});
  ASSERT_TRUE(reader.status.ok()) << reader.status.message();
  EXPECT_EQ(reader->transport(), "staged");
  EXPECT_NE(reader->problem().find("no peer access"), std::string::npos);
  EXPECT_TRUE(reader.Pull(refs).ok());
  const Reader insists(d.owner, TransportMode::kMapped, {.number = 2, .reaches_peers = false});
  EXPECT_EQ(insists.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(insists.status.message()).find("no peer access"), std::string::npos);
  Reader chosen(d.owner, TransportMode::kStaged);
  ASSERT_TRUE(chosen.status.ok());
  EXPECT_EQ(chosen->transport(), "staged");
  EXPECT_EQ(chosen->problem(), "") << "it is what was asked for";
}

TEST(DevicePool, HiddenPeersAreStreamedLoudly) {
  DeviceOwner d;
  const std::vector<BlockRef> refs = WriteThree(d.owner);
  Reader reader(d.owner, TransportMode::kAuto, {.number = 2, .sees_peers = false});
  ASSERT_TRUE(reader.status.ok()) << reader.status.message();
  EXPECT_EQ(reader->transport(), "stream");
  EXPECT_NE(reader->problem().find("hidden"), std::string::npos);
  EXPECT_TRUE(reader.Pull(refs).ok());
  EXPECT_EQ(std::memcmp(reader.memory().Real(1), d.memory->Real(7), TinyLayout().BlockBytes()), 0);
  const Reader insists(d.owner, TransportMode::kMapped, {.number = 2, .sees_peers = false});
  EXPECT_EQ(insists.status.code(), absl::StatusCode::kUnimplemented);
}

TEST(DevicePool, ReaderOnTheCpuStreams) {
  DeviceOwner d;
  const std::vector<BlockRef> refs = WriteThree(d.owner);
  auto peer = PeerPool::Connect(d.owner.endpoint(), {.layout = TinyLayout()});
  ASSERT_TRUE(peer.ok()) << peer.status().message();
  EXPECT_EQ((*peer)->transport(), "stream");
  EXPECT_NE((*peer)->problem().find("GPU"), std::string::npos);
  LocalPool local(TinyLayout(), 3);
  ASSERT_TRUE((*peer)->ReadBlocks(refs, local.view(), BlockIds(0, 3)).ok());
  EXPECT_TRUE((*peer)->Validate(refs, local.view(), BlockIds(0, 3)).ok());
}

TEST(DevicePool, OwnerOnTheCpuIsStagedIntoTheDevice) {
  Owner owner(TinyLayout(), kBlocks);
  const std::vector<BlockRef> refs = WriteThree(owner);
  Reader reader(owner);
  ASSERT_TRUE(reader.status.ok()) << reader.status.message();
  EXPECT_EQ(reader->transport(), "staged");
  EXPECT_NE(reader->problem().find("host memory"), std::string::npos);
  EXPECT_TRUE(reader.Pull(refs).ok());
  EXPECT_EQ(std::memcmp(reader.memory().Real(1), owner.pool().view().Block(7), TinyLayout().BlockBytes()), 0);
  EXPECT_EQ(Reader(owner, TransportMode::kMapped).status.code(), absl::StatusCode::kUnavailable);
  Reader streamed(owner, TransportMode::kStream);
  EXPECT_TRUE(streamed.Pull(refs).ok());
}

TEST(DevicePool, NothingToStageBetweenHosts) {
  Owner owner(TinyLayout(), kBlocks);
  const auto peer = PeerPool::Connect(owner.endpoint(), {.layout = TinyLayout(), .mode = TransportMode::kStaged});
  EXPECT_EQ(peer.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DevicePool, AnotherViewIsRefused) {
  DeviceOwner d;
  const std::vector<BlockRef> refs = WriteThree(d.owner);
  Reader reader(d.owner);
  LocalPool local(TinyLayout(), 3);
  EXPECT_EQ(reader->ReadBlocks(refs, local.view(), BlockIds(0, 3)).code(), absl::StatusCode::kInvalidArgument);
}

TEST(ResolveDevice, NamesAndErrors) {
  EXPECT_EQ(ResolveDevice("cpu")->ToString(), "cpu");
  for (const char* bad : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x"}) {
    EXPECT_EQ(ResolveDevice(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  std::string why;
  if (!ListDevices(&why).empty()) GTEST_SKIP() << "this machine has GPUs";
  EXPECT_NE(why, "");
  EXPECT_EQ(ResolveDevice("auto")->ToString(), "cpu");
  const auto cuda = ResolveDevice("cuda");
  EXPECT_EQ(cuda.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(cuda.status().message()).find(why), std::string::npos);
}

}  // namespace
}  // namespace agentserve::kvstore
