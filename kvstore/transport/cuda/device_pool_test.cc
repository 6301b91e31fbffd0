// Pools in GPU memory, read by a second process: on the same GPU, and on another one where there are two.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/check.h"
#include "kvstore/transport/cuda/owner_process_for_test.h"
#include "kvstore/transport/device_memory.h"
#include "kvstore/transport/digest.h"
#include "kvstore/transport/layer_pull.h"
#include "kvstore/transport/peer_pool_impl.h"

namespace agentserve::kvstore::cuda {
namespace {

using engine::BlockId;

engine::KvLayout Tiny() { return {4, 2, 64, 16, engine::KvDtype::kBf16, 77}; }   // 32 KiB blocks
engine::KvLayout OneB() { return {16, 8, 64, 16, engine::KvDtype::kBf16, 78}; }  // 512 KiB
engine::KvLayout ThreeB() { return {28, 8, 128, 16, engine::KvDtype::kBf16, 79}; }

std::unique_ptr<BlockMemory> Memory(int device, const engine::KvLayout& layout, uint32_t blocks) {
  auto memory = NewDeviceMemory(device, layout, blocks);
  AS_CHECK(memory.ok()) << memory.status().message();
  return *std::move(memory);
}

std::vector<std::byte> ReadBlock(BlockMemory& memory, uint32_t block) {
  std::vector<std::byte> bytes(memory.view().layout.BlockBytes());
  const PieceOut piece{block, 0, bytes.size(), bytes.data()};
  AS_CHECK(memory.CopyOut({&piece, 1}).ok());
  return bytes;
}

TEST(DeviceMemory, IsZeroedAndKeepsWhatIsCopiedIn) {
  const auto memory = Memory(0, OneB(), 40);
  EXPECT_EQ(ReadBlock(*memory, 39), std::vector<std::byte>(OneB().BlockBytes()));
  std::vector<std::vector<std::byte>> content;
  std::vector<PieceIn> in;
  for (uint32_t b = 0; b < 40; ++b) {  // 20 MiB: more than both staging halves
    content.push_back(ContentOf(OneB(), b, 5));
    in.push_back({39 - b, 0, content[b].size(), content[b].data()});
  }
  ASSERT_TRUE(memory->CopyIn(in).ok());
  for (uint32_t b = 0; b < 40; ++b) EXPECT_EQ(ReadBlock(*memory, 39 - b), content[b]) << b;
  std::vector<std::byte> parts(3 * 1000);
  const PieceOut out[] = {
      {39, 7, 1000, parts.data()}, {38, 0, 1, parts.data() + 1000}, {0, 99, 1999, parts.data() + 1001}};
  ASSERT_TRUE(memory->CopyOut(out).ok());
  EXPECT_EQ(std::memcmp(parts.data(), content[0].data() + 7, 1000), 0);
  EXPECT_EQ(parts[1000], content[1][0]);
  EXPECT_EQ(std::memcmp(parts.data() + 1001, content[39].data() + 99, 1999), 0);
}

TEST(DeviceMemory, SumsEqualTheHosts) {
  for (const engine::KvLayout& layout : {Tiny(), OneB(), ThreeB()}) {
    const auto memory = Memory(0, layout, 20);
    std::vector<DigestItem> items;
    std::vector<std::vector<std::byte>> content;
    for (uint32_t b = 0; b < 20; ++b) {
      content.push_back(ContentOf(layout, b, 9));
      const PieceIn piece{b, 0, content[b].size(), content[b].data()};
      ASSERT_TRUE(memory->CopyIn({&piece, 1}).ok());
      items.push_back({b, b % 2 == 0 ? 16 : b % 17});
    }
    const auto expect = [&](const std::vector<uint64_t>& got, LayerRange layers) {
      for (size_t i = 0; i < items.size(); ++i) {
        EXPECT_EQ(got[i], LayerSum(layout, content[i].data(), layers, items[i].tokens)) << "block " << i;
      }
    };
    std::vector<uint64_t> got(items.size());
    ASSERT_TRUE(memory->Sums(items, 0, layout.num_layers, got).ok());
    expect(got, {0, layout.num_layers});
    ASSERT_TRUE(memory->Sums(items, 1, 2, got).ok());
    expect(got, {1, 2});
    // Two at a time, layer by layer, given up in the middle, and taken twice.
    auto a = memory->BeginSums(items), given_up = memory->BeginSums(items);
    ASSERT_TRUE(a.ok() && given_up.ok());
    for (uint32_t l = 0; l < layout.num_layers; ++l) {
      ASSERT_TRUE((*a)->Add(l, 1).ok());
      if (l < 2) ASSERT_TRUE((*given_up)->Add(l, 1).ok());
    }
    given_up->reset();
    ASSERT_TRUE((*a)->Take(got).ok());
    expect(got, {0, layout.num_layers});
    ASSERT_TRUE((*a)->Add(0, 1).ok());
    ASSERT_TRUE((*a)->Take(got).ok());
    expect(got, {0, 1});
  }
}

TEST(DeviceMemory, TooLargeIsRefusedWithFigures) {
  const auto memory = NewDeviceMemory(0, OneB(), 4'000'000);
  ASSERT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted) << memory.status().message();
  EXPECT_NE(std::string(memory.status().message()).find("MiB are free"), std::string::npos);
}

// {device of the reader, forced staging}
class Pull : public testing::TestWithParam<std::pair<int, bool>> {
 protected:
  void SetUp() override {
    int devices = 0;
    ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
    if (GetParam().first >= devices) GTEST_SKIP() << "one GPU only";
  }
  std::unique_ptr<PeerPool> Connect(const OwnerProcess& owner, BlockMemory* memory) {
    PeerOptions options;
    options.layout = memory->view().layout;
    options.memory = memory;
    options.mode = GetParam().second ? TransportMode::kStaged : TransportMode::kAuto;
    auto peer = ConnectMapped(owner.endpoint(), options);
    AS_CHECK(peer.ok()) << peer.status().message();
    std::printf("device 0 -> %d: %s, %.1f GB/s by the probe\n", GetParam().first,
                std::string((*peer)->transport()).c_str(), (*peer)->gb_per_s());
    return *std::move(peer);
  }
  void CheckPulls(const engine::KvLayout& layout) {
    constexpr uint32_t kBlocks = 48;
    OwnerProcess owner({0, layout, kBlocks});
    std::vector<BlockRef> refs = owner.Write(0, kBlocks - 1, 3, 21, 16);
    refs.push_back(owner.Write(kBlocks - 1, 1, 4, 22, 5)[0]);
    const auto memory = Memory(GetParam().first, layout, kBlocks + 2);
    const auto peer = Connect(owner, memory.get());
    EXPECT_EQ(peer->transport(), GetParam().second ? "staged" : "mapped");
    EXPECT_GT(peer->gb_per_s(), 0);
    std::vector<BlockId> to;
    for (uint32_t i = 0; i < kBlocks; ++i) to.emplace_back(1 + (i * 31) % kBlocks);
    // By layers, unevenly, as they would be pulled behind a prefill.
    std::vector<uint64_t> sums(kBlocks, 0);
    for (uint32_t layer = 0; layer < layout.num_layers;) {
      const uint32_t n = std::min(layout.num_layers - layer, 1 + layer % 3);
      const absl::Status s = peer->ReadLayers(refs, layer, n, memory->view(), to, sums);
      ASSERT_TRUE(s.ok()) << s.message();
      layer += n;
    }
    for (const bool summed : {true, false}) {
      const std::span<const uint64_t> known = summed ? std::span<const uint64_t>(sums) : std::span<const uint64_t>();
      const ValidateResult valid = peer->Validate(refs, memory->view(), to, known);
      EXPECT_TRUE(valid.ok()) << summed << ": " << ToString(valid.outcome) << " at " << valid.position << ": "
                              << valid.detail;
    }
    for (uint32_t i = 0; i < kBlocks; ++i) {
      ASSERT_EQ(ReadBlock(*memory, to[i].value), ContentOf(layout, i, i + 1 == kBlocks ? 22 : 21)) << "block " << i;
    }
    const std::vector<std::byte> zeros(layout.BlockBytes());
    EXPECT_EQ(ReadBlock(*memory, 0), zeros) << "a neighbour was written";
    EXPECT_EQ(ReadBlock(*memory, kBlocks + 1), zeros) << "a neighbour was written";
  }
};
INSTANTIATE_TEST_SUITE_P(
    Devices, Pull, testing::Values(std::pair(0, false), std::pair(0, true), std::pair(1, false), std::pair(1, true)),
    [](const auto& param) { return "To" + std::to_string(param.param.first) + (param.param.second ? "Staged" : ""); });

TEST_P(Pull, LayersArriveAndValidate) {
  CheckPulls(Tiny());
  CheckPulls(OneB());
  CheckPulls(ThreeB());
}

TEST_P(Pull, ReuseAndCorruptionAreFound) {
  OwnerProcess owner({0, Tiny(), 8});
  const std::vector<BlockRef> refs = owner.Write(0, 4, 3, 1, 16);
  const auto memory = Memory(GetParam().first, Tiny(), 8);
  const auto peer = Connect(owner, memory.get());
  const std::vector<BlockId> to = {BlockId(4), BlockId(5), BlockId(6), BlockId(7)};
  owner.Corrupt(2, 12345);
  std::vector<uint64_t> sums(4, 0);
  ASSERT_TRUE(peer->ReadBlocks(refs, memory->view(), to).ok());
  ASSERT_TRUE(peer->ReadLayers(refs, 0, 4, memory->view(), to, sums).ok());
  ValidateResult v = peer->Validate(refs, memory->view(), to);
  EXPECT_EQ(v.outcome, ReadOutcome::kDigestMismatch);
  EXPECT_EQ(v.position, 2u);
  v = peer->Validate(refs, memory->view(), to, sums);
  EXPECT_EQ(v.outcome, ReadOutcome::kDigestMismatch);
  EXPECT_EQ(v.position, 2u);
  owner.Corrupt(2, 12345);  // back
  owner.Write(3, 1, 4, 1, 16);
  ASSERT_TRUE(peer->ReadBlocks(refs, memory->view(), to).ok());
  v = peer->Validate(refs, memory->view(), to);
  EXPECT_EQ(v.outcome, ReadOutcome::kStaleEpoch) << v.detail;
  EXPECT_EQ(v.position, 3u);
}

// Behind a prefill of two chunks, sealed layer by layer over there.
TEST_P(Pull, FollowsAPrefill) {
  OwnerProcess owner({0, OneB(), 32});
  std::vector<BlockRef> refs = owner.Write(0, 32, 3, 6, 16);
  const std::vector<BlockRef> sealed = refs;
  const auto memory = Memory(GetParam().first, OneB(), 32);
  const auto peer = Connect(owner, memory.get());
  std::vector<BlockId> to;
  for (uint32_t i = 0; i < 32; ++i) to.emplace_back(31 - i);
  const ProgressRef slot = owner.Prefill(0, 32, 2, 300);
  LayerPull pull(OneB(), {refs, to, 0});
  while (!pull.complete()) {
    const auto progress = peer->LoadProgress(slot.slot, slot.tag);
    ASSERT_TRUE(progress.ok()) << progress.status().message();
    ASSERT_TRUE(pull.Advance(*peer, memory->view(), *progress).ok());
  }
  owner.PrefillEnd();
  for (BlockRef& ref : refs) ref.digest = peer->SealedDigest(ref);
  for (size_t i = 0; i < refs.size(); ++i) EXPECT_EQ(refs[i].digest, sealed[i].digest) << "layers add up, block " << i;
  ASSERT_TRUE(pull.SetFinal(refs));
  const ValidateResult valid = pull.Validate(*peer, memory->view());
  EXPECT_TRUE(valid.ok()) << valid.detail;
  for (uint32_t i = 0; i < 32; ++i) ASSERT_EQ(ReadBlock(*memory, 31 - i), ContentOf(OneB(), i, 6)) << i;
}

// The mapping keeps the memory alive, with its bytes unchanged.
TEST_P(Pull, OwnersDeathLeavesTheMemoryReadable) {
  OwnerProcess owner({0, Tiny(), 8});
  const std::vector<BlockRef> refs = owner.Write(0, 8, 3, 1, 16);
  const auto memory = Memory(GetParam().first, Tiny(), 8);
  const auto peer = Connect(owner, memory.get());
  EXPECT_TRUE(peer->PeerAlive());
  owner.Kill();
  std::vector<BlockId> to;
  for (uint32_t i = 0; i < 8; ++i) to.emplace_back(i);
  ASSERT_TRUE(peer->ReadBlocks(refs, memory->view(), to).ok());
  EXPECT_TRUE(peer->Validate(refs, memory->view(), to).ok());
  EXPECT_FALSE(peer->PeerAlive());
}

TEST(PullTest, CpuReaderCannotMapAGpuPool) {
  OwnerProcess owner({0, Tiny(), 8});
  const auto peer = ConnectMapped(owner.endpoint(), {.layout = Tiny(), .mode = TransportMode::kAuto});
  EXPECT_EQ(peer.status().code(), absl::StatusCode::kUnimplemented) << peer.status().message();
}

}  // namespace
}  // namespace agentserve::kvstore::cuda

int main(int argc, char** argv) {
  agentserve::kvstore::cuda::RunOwnerIfAsked();
  testing::InitGoogleTest(&argc, argv);
  std::string why;
  if (agentserve::kvstore::ListDevices(&why).empty()) {
    std::printf("SKIPPED: %s\n", why.c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
