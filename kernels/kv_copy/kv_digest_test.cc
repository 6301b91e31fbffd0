#include "kernels/kv_copy/kv_digest.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <utility>
#include <vector>

namespace agentserve::kernels {
namespace {

// 3 layers, 2 heads, 4 tokens, 8 elements of 2 bytes.
constexpr KvDigestShape kShape = {3 * 2 * 2 * 4 * 16, 4 * 16, 16};

std::vector<std::byte> Block(uint64_t seed) {
  std::vector<std::byte> block(kShape.block_bytes);
  for (std::byte& b : block) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<std::byte>(seed >> 56);
  }
  return block;
}

// What has been stored or sent must never change meaning.
TEST(KvDigest, GoldenValues) {
  const std::vector<std::byte> zeros(kShape.block_bytes), random = Block(1);
  EXPECT_EQ(KvDigest(zeros.data(), kShape, 0), 0xb39362cb946013e3u);
  EXPECT_EQ(KvDigest(zeros.data(), kShape, 4), 0xafc4bac2f6718205u);
  EXPECT_EQ(KvDigest(random.data(), kShape, 1), 0x107cb157b44362acu);
  EXPECT_EQ(KvDigest(random.data(), kShape, 4), 0xd4e7004fc586c6c8u);
}

TEST(KvDigest, EveryBitOfValidRowsCounts) {
  std::vector<std::byte> block = Block(2);
  std::set<uint64_t> seen = {KvDigest(block.data(), kShape, 4)};
  for (size_t bit = 0; bit < block.size() * 8; ++bit) {
    block[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_TRUE(seen.insert(KvDigest(block.data(), kShape, 4)).second) << "bit " << bit;
    block[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
}

// What lets each layer be digested as soon as it is written, in any order and split anyhow.
TEST(KvDigest, SumsOfPartsMakeTheWhole) {
  const std::vector<std::byte> block = Block(5);
  const size_t pieces = kShape.block_bytes / kShape.piece_bytes;
  for (uint32_t tokens : {0u, 3u, 4u}) {
    for (size_t cut = 0; cut <= pieces; ++cut) {
      const size_t at = cut * kShape.piece_bytes;
      const uint64_t back = KvDigestSum(block.data(), kShape, {at, kShape.block_bytes - at}, tokens);
      const uint64_t front = KvDigestSum(block.data(), kShape, {0, at}, tokens);
      EXPECT_EQ(KvDigestFinish(back + front, tokens), KvDigest(block.data(), kShape, tokens)) << cut;
    }
  }
}

// A layer that was left out, counted twice, or taken from another block's same place.
TEST(KvDigest, NoticesLayersMissingTwiceOrForeign) {
  const std::vector<std::byte> block = Block(6), other = Block(7);
  const uint64_t digest = KvDigest(block.data(), kShape, 4);
  const size_t layer = kShape.block_bytes / 3;
  for (size_t at = 0; at < kShape.block_bytes; at += layer) {
    const uint64_t all = KvDigestSum(block.data(), kShape, {0, kShape.block_bytes}, 4);
    const uint64_t one = KvDigestSum(block.data(), kShape, {at, layer}, 4);
    EXPECT_NE(KvDigestFinish(all - one, 4), digest);
    EXPECT_NE(KvDigestFinish(all + one, 4), digest);
    EXPECT_NE(KvDigestFinish(all - one + KvDigestSum(other.data(), kShape, {at, layer}, 4), 4), digest);
  }
}

TEST(KvDigest, RowsBeyondTheTokensDoNotCount) {
  const std::vector<std::byte> block = Block(3);
  for (uint32_t tokens = 0; tokens < 4; ++tokens) {
    std::vector<std::byte> other = block;
    for (size_t piece = 0; piece < other.size(); piece += kShape.piece_bytes) {
      std::memset(&other[piece + tokens * kShape.row_bytes], 0xff, kShape.piece_bytes - tokens * kShape.row_bytes);
    }
    EXPECT_EQ(KvDigest(block.data(), kShape, tokens), KvDigest(other.data(), kShape, tokens)) << tokens;
  }
}

TEST(KvDigest, NoticesSwapsOfAnyTwoWords) {
  const std::vector<std::byte> block = Block(4);
  const uint64_t digest = KvDigest(block.data(), kShape, 4);
  for (size_t size : {size_t{8}, size_t{16}, kShape.row_bytes * 2, kShape.piece_bytes}) {  // words, rows, pieces
    for (size_t a = 0; a < block.size(); a += size) {
      for (size_t b = a + size; b < block.size(); b += size) {
        std::vector<std::byte> other = block;
        std::swap_ranges(&other[a], &other[a] + size, &other[b]);
        EXPECT_NE(KvDigest(other.data(), kShape, 4), digest) << size << " bytes at " << a << " and " << b;
      }
    }
  }
}

TEST(KvDigest, NoticesTruncationEvenOfZeros) {
  const std::vector<std::byte> zeros(kShape.block_bytes);
  std::set<uint64_t> seen;
  for (uint32_t tokens = 0; tokens <= 4; ++tokens) {
    EXPECT_TRUE(seen.insert(KvDigest(zeros.data(), kShape, tokens)).second) << tokens;
  }
}

TEST(KvDigest, SpreadsOverAllBits) {
  uint64_t ones[64] = {};
  constexpr int kBlocks = 2000;
  for (uint64_t seed = 0; seed < kBlocks; ++seed) {
    std::vector<std::byte> block(kShape.block_bytes);
    std::memcpy(block.data(), &seed, sizeof(seed));  // all but alike
    const uint64_t digest = KvDigest(block.data(), kShape, 4);
    for (int bit = 0; bit < 64; ++bit) ones[bit] += digest >> bit & 1;
  }
  for (int bit = 0; bit < 64; ++bit) EXPECT_NEAR(static_cast<double>(ones[bit]), kBlocks / 2, 150) << bit;
}

}  // namespace
}  // namespace agentserve::kernels
