// Owner side: format, digest, seals, slots.
#include "kvstore/transport/kv_pool.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "kvstore/transport/digest.h"
#include "kvstore/transport/handshake.h"
#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

using engine::BlockId;
using engine::Epoch;

std::unique_ptr<KvPool> MakePool(uint32_t blocks = 8, uint32_t slots = 4) {
  auto pool = KvPool::Create({TinyLayout(), blocks, slots, 5, "w", false});
  AS_CHECK(pool.ok()) << pool.status().message();
  return *std::move(pool);
}

TEST(BlockMetaTest, PacksAllFields) {
  const BlockMeta m{0xfffffffe, 16, BlockState::kSealed};
  EXPECT_EQ(BlockMeta::Unpack(m.Pack()), m);
  EXPECT_EQ(m.Pack(), 0xfffffffe00001002ull);
}

TEST(Geometry, RefusesZeroAndOverflow) {
  EXPECT_FALSE(ComputeGeometry(TinyLayout(), 0, 1, 4096));
  engine::KvLayout l = TinyLayout();
  l.head_dim = 0;
  EXPECT_FALSE(ComputeGeometry(l, 1, 1, 4096));
  l = TinyLayout();
  l.num_layers = l.num_kv_heads = l.head_dim = 0xffffffff;
  EXPECT_FALSE(ComputeGeometry(l, 0xffffffff, 1, 4096));
  const auto g = ComputeGeometry(TinyLayout(), 3, 2, 4096);
  ASSERT_TRUE(g);
  EXPECT_EQ(g->slots_offset, 320u);  // 256 + 3 * 16 = 304, up to 64
  EXPECT_EQ(g->control_bytes, 4096u);
  EXPECT_EQ(g->file_bytes, 4096u + 3 * TinyLayout().BlockBytes());
}

TEST(KvPoolTest, RefusesBadOptionsWithReasons) {
  const auto code = [](KvPoolOptions o) { return KvPool::Create(o).status().code(); };
  EXPECT_EQ(code({TinyLayout(), 8, 4, 5, "", false}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({TinyLayout(), 8, 4, 5, std::string(64, 'x'), false}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({TinyLayout(), 8, 4, 0, "w", false}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({TinyLayout(), 8, 0, 5, "w", false}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({TinyLayout(), 0, 4, 5, "w", false}), absl::StatusCode::kInvalidArgument);
  const auto huge = KvPool::Create({OneBLayout(), 100'000'000, 4, 5, "w", false});
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(huge.status().message()).find("--kv-blocks"), std::string::npos);
}

TEST(KvPoolTest, BlockLifeCycleIsPublished) {
  auto pool = MakePool();
  EXPECT_EQ(pool->Meta(BlockId(3)), (BlockMeta{0, 0, BlockState::kFree}));
  pool->SetBlockEpoch(BlockId(3), Epoch(9));
  EXPECT_EQ(pool->Meta(BlockId(3)), (BlockMeta{9, 0, BlockState::kWriting}));
  FillRandom(pool->view(), 3, 1);
  pool->SealBlock(BlockId(3), 5);
  EXPECT_EQ(pool->Meta(BlockId(3)), (BlockMeta{9, 5, BlockState::kSealed}));
  EXPECT_EQ(pool->control().block(3).digest.load(), pool->Digest(BlockId(3), 5));
  pool->ReopenBlock(BlockId(3));
  EXPECT_EQ(pool->Meta(BlockId(3)), (BlockMeta{9, 5, BlockState::kWriting}));
  pool->FreeBlock(BlockId(3));
  EXPECT_EQ(pool->Meta(BlockId(3)), (BlockMeta{9, 0, BlockState::kFree}));
}

TEST(KvPoolTest, BlocksAreAlignedAndDisjoint) {
  auto pool = MakePool();
  const auto view = pool->view();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view.base) % 4096, 0u);
  EXPECT_EQ(static_cast<size_t>(view.Block(8) - view.base), 8 * TinyLayout().BlockBytes());
  EXPECT_EQ(pool->file_bytes(), 4096 + 8 * TinyLayout().BlockBytes());
}

TEST(KvPoolTest, HugePageOptionAligns) {
  auto pool = KvPool::Create({TinyLayout(), 2, 4, 5, "w", true});
  ASSERT_TRUE(pool.ok()) << pool.status().message();
  EXPECT_EQ((*pool)->file_bytes(), (2u << 20) + 2 * TinyLayout().BlockBytes());
}

// What lets a layer be digested while the next one is computed, here and over there.
TEST(DigestTest, LayersAddUpInAnyOrder) {
  const engine::KvLayout l = TinyLayout();
  LocalPool local(l, 1);
  FillRandom(local.view(), 0, 3);
  const std::byte* block = local.view().Block(0);
  for (uint32_t tokens : {1u, 7u, 16u}) {
    uint64_t sum = 0;
    for (uint32_t layer : {2u, 0u, 3u, 1u}) sum += LayerSum(l, block, {layer, 1}, tokens);
    EXPECT_EQ(DigestOfSum(sum, tokens), BlockDigest(l, block, tokens));
    EXPECT_NE(DigestOfSum(sum, tokens), DigestOfSum(sum, tokens - 1)) << "a truncated block";
  }
}

TEST(DigestTest, SwappedLayersAndBlocksAreFound) {
  const engine::KvLayout l = TinyLayout();
  LocalPool local(l, 2);
  FillRandom(local.view(), 0, 3);
  FillRandom(local.view(), 1, 4);
  std::byte *a = local.view().Block(0), *b = local.view().Block(1);
  const uint64_t before = BlockDigest(l, a, 16);
  EXPECT_NE(before, BlockDigest(l, b, 16));
  for (uint32_t i = 0; i < l.num_layers; ++i) {
    for (uint32_t j = 0; j < i; ++j) {
      std::byte *x = a + i * l.LayerBytes(), *y = a + j * l.LayerBytes();
      std::swap_ranges(x, x + l.LayerBytes(), y);
      EXPECT_NE(BlockDigest(l, a, 16), before) << "layers " << i << " and " << j;
      std::swap_ranges(x, x + l.LayerBytes(), y);
    }
    std::byte *x = a + i * l.LayerBytes(), *y = b + i * l.LayerBytes();
    std::swap_ranges(x, x + l.LayerBytes(), y);
    EXPECT_NE(BlockDigest(l, a, 16), before) << "layer " << i << " of another block";
    std::swap_ranges(x, x + l.LayerBytes(), y);
  }
  EXPECT_EQ(BlockDigest(l, a, 16), before);
}

// A step's seals, told layer by layer, or in leaps, or not at all.
TEST(SealDigestsTest, EqualTheDigestsOfTheWholeBlocks) {
  auto pool = MakePool();
  std::vector<engine::SealRequest> seals;
  std::vector<uint64_t> expected;
  for (uint32_t b = 0; b < 5; ++b) {
    FillRandom(pool->view(), b, b);
    seals.push_back({engine::SeqId(1), BlockId(b), b, 3 * b + 2});
    expected.push_back(pool->Digest(BlockId(b), 3 * b + 2));
  }
  for (const std::vector<uint32_t>& told : std::vector<std::vector<uint32_t>>{{0, 1, 2, 3}, {1, 2}, {3}, {0}, {}}) {
    SealDigests digests(&pool->memory(), seals);
    for (uint32_t layer : told) digests.LayerWritten(layer);
    const auto got = digests.Finish();
    ASSERT_TRUE(got.ok());
    EXPECT_EQ(*got, expected) << told.size() << " layers told";
  }
  EXPECT_TRUE(SealDigests(&pool->memory(), {}).Finish()->empty());
}

TEST(DigestTest, EveryBitOfValidRowsCountsAndNoOther) {
  const engine::KvLayout l{1, 1, 8, 4, engine::KvDtype::kBf16, 1};
  LocalPool local(l, 1);
  FillRandom(local.view(), 0, 3);
  const uint64_t before = BlockDigest(l, local.view().Block(0), 3);
  for (size_t byte = 0; byte < l.BlockBytes(); ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      const auto mask = static_cast<std::byte>(1 << bit);
      local.view().Block(0)[byte] ^= mask;
      const bool valid_row = byte % l.HeadBytes() < 3u * l.head_dim * 2;
      EXPECT_EQ(BlockDigest(l, local.view().Block(0), 3) != before, valid_row) << "byte " << byte << " bit " << bit;
      local.view().Block(0)[byte] ^= mask;
    }
  }
}

TEST(HandshakeTest, RoundTripAndRefusals) {
  PoolHello hello{"prefill-7", 42, 43, 4096, {}};
  hello.memory = {MemoryKind::kCuda, {1, 2, 3}, uint64_t{1} << 37};
  const std::string wire = EncodeHello(hello);
  const auto back = DecodeHello(wire);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->worker_id, "prefill-7");
  EXPECT_EQ(back->incarnation, 42u);
  EXPECT_EQ(back->layout_fingerprint, 43u);
  EXPECT_EQ(back->file_bytes, 4096u);
  EXPECT_EQ(back->memory, hello.memory);
  for (size_t n = 0; n < wire.size(); ++n) EXPECT_FALSE(DecodeHello(wire.substr(0, n)).ok()) << n;
  EXPECT_FALSE(DecodeHello(wire + "x").ok());
  std::string newer = wire;
  newer[8] = 3;
  EXPECT_EQ(DecodeHello(newer).status().code(), absl::StatusCode::kFailedPrecondition);
}

// Nobody but the owner can ever write: not through the exported descriptor, and not by re-opening it for writing.
TEST(KvPoolTest, ExportedDescriptorCannotBecomeWritable) {
  auto pool = MakePool();
  auto fd = pool->OpenReadOnly();
  ASSERT_TRUE(fd.ok());
  const size_t n = pool->file_bytes();
  EXPECT_EQ(mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd->get(), 0), MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(pwrite(fd->get(), "x", 1, 0), -1);
  EXPECT_NE(ftruncate(fd->get(), 0), 0);

  void* p = mmap(nullptr, n, PROT_READ, MAP_SHARED, fd->get(), 0);
  ASSERT_NE(p, MAP_FAILED);
  EXPECT_NE(mprotect(p, n, PROT_READ | PROT_WRITE), 0);
  munmap(p, n);

  base::UniqueFd again(open(base::StrCat("/proc/self/fd/", fd->get()).c_str(), O_RDWR | O_CLOEXEC));
  if (again.valid()) {  // the kernel may allow the open; the seal must stop what follows
    EXPECT_EQ(mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_SHARED, again.get(), 0), MAP_FAILED);
    EXPECT_EQ(pwrite(again.get(), "x", 1, 0), -1);
    EXPECT_NE(ftruncate(again.get(), 0), 0);
  }
}

TEST(KvPoolTest, ProgressSlotsAreBoundedAndTagged) {
  auto pool = MakePool(8, 2);
  const auto a = pool->AcquireProgress();
  const auto b = pool->AcquireProgress();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(a->slot, b->slot);
  EXPECT_NE(a->tag, b->tag);
  EXPECT_EQ(pool->AcquireProgress().status().code(), absl::StatusCode::kResourceExhausted);
  pool->StoreProgress(*a, {1, 2, 3});
  EXPECT_EQ(pool->control().LoadProgress(a->slot, a->tag), (engine::PrefillProgress{1, 2, 3}));
  pool->ReleaseProgress(*a);
  EXPECT_EQ(pool->control().LoadProgress(a->slot, a->tag), std::nullopt);
  pool->ReleaseProgress(*a);  // again: ignored
  EXPECT_EQ(pool->progress_slots_in_use(), 1u);
  const auto c = pool->AcquireProgress();
  ASSERT_TRUE(c.ok());
  EXPECT_EQ(c->slot, a->slot);
  EXPECT_EQ(pool->control().LoadProgress(c->slot, a->tag), std::nullopt);
  EXPECT_EQ(pool->control().LoadProgress(c->slot, c->tag), engine::PrefillProgress{});
}

// A reader that polls one tag never sees a word of another prompt, however often the slot changes hands.
TEST(KvPoolTest, ProgressNeverMixesPrompts) {
  auto pool = MakePool(8, 1);
  std::atomic<uint64_t> current{0};
  std::atomic<bool> stop{false};
  std::thread owner([&] {
    for (uint32_t i = 1; i <= 20'000; ++i) {
      const ProgressRef ref = *pool->AcquireProgress();
      current.store(ref.tag);
      pool->StoreProgress(ref, {static_cast<uint32_t>(ref.tag), 0, 0});
      pool->ReleaseProgress(ref);
    }
    stop = true;
  });
  uint64_t seen = 0;
  while (!stop) {
    const uint64_t tag = current.load();
    const auto p = tag == 0 ? std::nullopt : pool->control().LoadProgress(0, tag);
    if (!p) continue;
    ++seen;
    ASSERT_TRUE(p->complete == 0 || p->complete == tag) << p->complete << " for tag " << tag;
  }
  owner.join();
  RecordProperty("loads", static_cast<int>(seen));
}

}  // namespace
}  // namespace agentserve::kvstore
