#include "kvstore/transport/layer_pull.h"

#include <gtest/gtest.h>

#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

using engine::BlockId;
using engine::PrefillProgress;

// 5 blocks, the last one with 6 tokens, into blocks 1..5 of a local pool.
class LayerPullTest : public testing::TestWithParam<TransportMode> {
 protected:
  LayerPullTest() : owner_(TinyLayout()), local_(TinyLayout(), 6) {
    for (uint32_t i = 0; i < 5; ++i) refs_.push_back(owner_.Write(10 + 3 * i, 1, i, i == 4 ? 6 : 16));
    auto peer = PeerPool::Connect(owner_.endpoint(), {.layout = TinyLayout(), .mode = GetParam()});
    AS_CHECK(peer.ok()) << peer.status().message();
    peer_ = *std::move(peer);
  }
  LayerPull Begin(size_t first = 0) {
    std::vector<BlockRef> unknown = refs_;
    for (BlockRef& r : unknown) r.digest = 0;
    return {TinyLayout(), {unknown, BlockIds(1, 5), first}};
  }
  bool Advance(LayerPull* pull, PrefillProgress progress) {
    return pull->Advance(*peer_, local_.view(), progress).ok();
  }
  ValidateResult Validate(const LayerPull& pull) { return pull.Validate(*peer_, local_.view()); }
  void ExpectCopied(size_t first = 0) {
    for (size_t i = first; i < refs_.size(); ++i) {
      EXPECT_EQ(std::memcmp(local_.view().Block(static_cast<uint32_t>(i) + 1),
                            owner_.pool().view().Block(refs_[i].index), TinyLayout().BlockBytes()),
                0)
          << i;
    }
  }

  Owner owner_;
  LocalPool local_;
  std::vector<BlockRef> refs_;
  std::unique_ptr<PeerPool> peer_;
};
INSTANTIATE_TEST_SUITE_P(Transport, LayerPullTest, testing::Values(TransportMode::kMapped, TransportMode::kStream),
                         [](const auto& param) { return param.param == TransportMode::kMapped ? "Mapped" : "Stream"; });

TEST_P(LayerPullTest, FollowsChunksAndLayers) {
  LayerPull pull = Begin();
  const size_t layer = TinyLayout().LayerBytes();
  EXPECT_TRUE(Advance(&pull, {}));
  EXPECT_EQ(pull.bytes(), 0u);
  EXPECT_TRUE(Advance(&pull, {0, 40, 1}));  // two whole blocks
  EXPECT_EQ(pull.bytes(), 2 * layer);
  EXPECT_TRUE(Advance(&pull, {0, 40, 1}));
  EXPECT_EQ(pull.bytes(), 2 * layer) << "nothing new";
  EXPECT_TRUE(Advance(&pull, {0, 40, 3}));
  EXPECT_TRUE(Advance(&pull, {40, 70, 2}));  // the first two are complete; the others have two layers
  EXPECT_EQ(pull.bytes(), (2 * 4 + 3 * 2) * layer);
  EXPECT_FALSE(pull.complete());
  EXPECT_TRUE(Advance(&pull, {40, 70, 4}));
  EXPECT_TRUE(pull.complete());
  EXPECT_EQ(pull.bytes(), 5 * 4 * layer);
  EXPECT_FALSE(Validate(pull).ok()) << "no digests yet";
  EXPECT_TRUE(pull.SetFinal(refs_));
  EXPECT_TRUE(Validate(pull).ok());
  ExpectCopied();
}

TEST_P(LayerPullTest, FinishCopiesTheRest) {
  LayerPull pull = Begin();
  EXPECT_TRUE(Advance(&pull, {16, 48, 2}));
  ASSERT_TRUE(pull.SetFinal(refs_));
  ASSERT_TRUE(pull.Finish(*peer_, local_.view()).ok());
  EXPECT_TRUE(pull.complete());
  EXPECT_TRUE(Validate(pull).ok());
  ExpectCopied();
}

TEST_P(LayerPullTest, BlocksThatAreHereAreLeftAlone) {
  LayerPull pull = Begin(3);
  ASSERT_TRUE(pull.SetFinal(refs_));
  ASSERT_TRUE(pull.Finish(*peer_, local_.view()).ok());
  EXPECT_EQ(pull.bytes(), 2 * TinyLayout().BlockBytes());
  EXPECT_TRUE(Validate(pull).ok());
  ExpectCopied(3);
  EXPECT_EQ(std::to_integer<int>(local_.view().Block(1)[0]), 0);
  LayerPull nothing = Begin(5);
  EXPECT_TRUE(nothing.complete());
  EXPECT_TRUE(nothing.SetFinal(refs_));
  EXPECT_TRUE(Validate(nothing).ok());
}

// A byte that changed after its layer was copied, or while it was, is found; the place is that in the prompt.
TEST_P(LayerPullTest, ChangesWhilePullingAreFound) {
  for (const bool back : {true, false}) {
    LayerPull pull = Begin(1);
    std::byte& byte = owner_.pool().view().Block(refs_[3].index)[TinyLayout().LayerBytes() + 7];
    byte ^= std::byte{2};
    EXPECT_TRUE(Advance(&pull, {0, 70, 2}));
    byte ^= std::byte{2};
    if (!back) {
      EXPECT_TRUE(Advance(&pull, {0, 70, 4}));
    }
    ASSERT_TRUE(pull.SetFinal(refs_));
    ASSERT_TRUE(pull.Finish(*peer_, local_.view()).ok());
    const ValidateResult bad = Validate(pull);
    EXPECT_EQ(bad.outcome, ReadOutcome::kDigestMismatch);
    EXPECT_EQ(bad.position, 3u);
  }
}

// The copies themselves are read again once the sums are not to be believed.
TEST_P(LayerPullTest, ForgottenSumsAreTakenOfTheCopies) {
  LayerPull pull = Begin();
  ASSERT_TRUE(pull.SetFinal(refs_));
  ASSERT_TRUE(pull.Finish(*peer_, local_.view()).ok());
  local_.view().Block(3)[100] ^= std::byte{1};
  pull.ForgetSums();
  const ValidateResult bad = Validate(pull);
  EXPECT_EQ(bad.outcome, ReadOutcome::kDigestMismatch);
  EXPECT_EQ(bad.position, 2u);
  local_.view().Block(3)[100] ^= std::byte{1};
  EXPECT_TRUE(Validate(pull).ok());
}

TEST_P(LayerPullTest, OtherBlocksAreRefusedAndOtherRowsSummedAgain) {
  LayerPull pull = Begin();
  std::vector<BlockRef> other = refs_;
  other[2].epoch = 2;
  EXPECT_FALSE(pull.SetFinal(other));
  other = refs_;
  other.pop_back();
  EXPECT_FALSE(pull.SetFinal(other));
  EXPECT_TRUE(Advance(&pull, {0, 70, 1}));
  owner_.pool().SealBlock(BlockId(refs_[4].index), 9);
  refs_[4].tokens = 9;
  refs_[4].digest = owner_.pool().Digest(BlockId(refs_[4].index), 9);
  ASSERT_TRUE(pull.SetFinal(refs_));
  ASSERT_TRUE(pull.Finish(*peer_, local_.view()).ok());
  EXPECT_TRUE(Validate(pull).ok());
}

TEST_P(LayerPullTest, ReuseIsFound) {
  LayerPull pull = Begin();
  EXPECT_TRUE(Advance(&pull, {0, 70, 3}));
  owner_.Write(refs_[1].index, 2, 77);
  ASSERT_TRUE(pull.SetFinal(refs_));
  const absl::Status rest = pull.Finish(*peer_, local_.view());
  EXPECT_TRUE(!rest.ok() || Validate(pull).outcome == ReadOutcome::kStaleEpoch);
}

// The page says it before any message does, and only of this epoch and these tokens.
TEST(SealedDigest, IsThatOfThePage) {
  Owner owner(TinyLayout());
  BlockRef ref = owner.Write(4, 7, 8, 9);
  auto mapped = PeerPool::Connect(owner.endpoint(), {.layout = TinyLayout(), .mode = TransportMode::kMapped});
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ((*mapped)->SealedDigest(ref), ref.digest);
  BlockRef other = ref;
  other.tokens = 8;
  EXPECT_EQ((*mapped)->SealedDigest(other), 0u);
  other = ref;
  other.index = 64;
  EXPECT_EQ((*mapped)->SealedDigest(other), 0u) << "out of range";
  owner.pool().ReopenBlock(BlockId(4));
  EXPECT_EQ((*mapped)->SealedDigest(ref), 0u);
  owner.pool().SetBlockEpoch(BlockId(4), engine::Epoch(8));
  EXPECT_EQ((*mapped)->SealedDigest(ref), 0u);
}

// Simulated layers of 200 us: every one is found within 2 us, for less than half of the time.
TEST(PullPace, FindsAnEvenPaceEarlyAndSleepsBetween) {
  constexpr int64_t kLayer = 200'000, kLook = 500;
  PullPace pace;
  int64_t now = 1'000'000'000, slept = 0, worst = 0;
  const int64_t start = now;
  for (int64_t layer = 1; layer <= 64; ++layer) {
    const int64_t due = start + layer * kLayer + (layer % 3) * 4000;
    for (;;) {
      now += kLook;
      if (now >= due) break;
      const int64_t sleep = pace.SleepNs(now);
      ASSERT_GE(sleep, 0);
      now += sleep + (sleep > 0 ? 10'000 : 0);  // waking up takes a while
      slept += sleep;
    }
    if (layer > 3) worst = std::max(worst, now - due);
    pace.Came(now);
  }
  EXPECT_LE(worst, 2000);
  EXPECT_GT(slept, 64 * kLayer / 2);
  EXPECT_GE(pace.SleepNs(now + 10'000'000), 100'000) << "nothing comes: another prompt runs";
  EXPECT_GT(PullPace().SleepNs(now), 0) << "knows no pace yet";
}

}  // namespace
}  // namespace agentserve::kvstore
