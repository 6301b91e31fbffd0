#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "hwy/targets.h"
#include "kernels/kv_write/kv_write.h"
#include "kernels/test_util.h"

namespace agentserve::kernels {
namespace {

constexpr int64_t kUnfused = HWY_EMU128 | HWY_SCALAR;  // targets without fused multiply-add

// A pool of one layer with a shuffled block table, filled through KvWrite; free slots hold NaN.
struct Pool {
  uint32_t heads, group, d, block_tokens, length;
  std::vector<uint16_t> memory;
  std::vector<uint32_t> blocks;

  Pool(uint32_t heads_in, uint32_t group_in, uint32_t d_in, uint32_t block_tokens_in, uint32_t length_in)
      : heads(heads_in), group(group_in), d(d_in), block_tokens(block_tokens_in), length(length_in) {
    const uint32_t n = (length + block_tokens - 1) / block_tokens;
    memory.assign(size_t{n + 2} * Kv().block_bytes / 2, 0x7fc0);
    blocks.resize(n);
    std::iota(blocks.rbegin(), blocks.rend(), 1u);  // descending: neighbours are never adjacent in memory order
    const size_t row = size_t{heads} * d;
    const std::vector<float> k = RandomFloats(length * row, 21), v = RandomFloats(length * row, 22);
    KvWrite({Kv(), k.data(), v.data(), row, length, 0, blocks.data()});
  }
  PagedKv Kv() {
    PagedKv kv;
    kv.base = reinterpret_cast<std::byte*>(memory.data());
    kv.head_bytes = size_t{block_tokens} * d * 2;
    kv.block_bytes = 2 * heads * kv.head_bytes;
    kv.v_offset = heads * kv.head_bytes;
    kv.block_tokens = block_tokens;
    kv.kv_heads = heads;
    kv.head_dim = d;
    return kv;
  }
  size_t Row() const { return size_t{heads} * group * d; }
  // Rows [start, end) of the whole sequence's queries, run in chunks of `chunk`.
  std::vector<float> Run(const std::vector<float>& q, uint32_t start, uint32_t end, uint32_t chunk, int threads) {
    ThreadPool pool(threads);
    AttentionWorkspace ws;
    std::vector<float> out((end - start) * Row(), std::numeric_limits<float>::quiet_NaN());
    for (uint32_t at = start; at < end; at += chunk) {
      const AttentionSeq seq = {q.data() + at * Row(), out.data() + (at - start) * Row(), std::min(chunk, end - at), at,
                                blocks.data()};
      Attention({Kv(), heads * group, Row(), {&seq, 1}}, pool, ws);
    }
    return out;
  }
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  uint32_t heads, group, d, block_tokens, length;
};
class AttentionCases : public testing::TestWithParam<Case> {};

TEST_P(AttentionCases, NearDoubleReference) {
  const Case c = GetParam();
  Pool pool(c.heads, c.group, c.d, c.block_tokens, c.length);
  const std::vector<float> q = RandomFloats(c.length * pool.Row(), 23);
  const std::vector<float> got = pool.Run(q, 0, c.length, c.length, 2);
  std::vector<float> want(got.size());
  const AttentionSeq seq = {q.data(), want.data(), c.length, 0, pool.blocks.data()};
  AttentionReference({pool.Kv(), c.heads * c.group, pool.Row(), {&seq, 1}});
  double err = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_FALSE(std::isnan(got[i])) << "element " << i;
    err += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  EXPECT_LT(std::sqrt(err / norm), 2e-6);
}

TEST_P(AttentionCases, ChunkingAndThreadsKeepEveryBit) {
  const Case c = GetParam();
  Pool pool(c.heads, c.group, c.d, c.block_tokens, c.length);
  const std::vector<float> q = RandomFloats(c.length * pool.Row(), 24);
  const std::vector<float> whole = pool.Run(q, 0, c.length, c.length, 1);
  for (const uint32_t chunk : {1u, 7u, 16u, 65u}) {
    EXPECT_TRUE(SameBits(pool.Run(q, 0, c.length, chunk, 2), whole)) << "chunk " << chunk;
  }
}

TEST_P(AttentionCases, BlockSizeKeepsEveryBit) {
  const Case c = GetParam();
  Pool pool(c.heads, c.group, c.d, c.block_tokens, c.length), other(c.heads, c.group, c.d, 32, c.length);
  const std::vector<float> q = RandomFloats(c.length * pool.Row(), 25);
  EXPECT_TRUE(SameBits(pool.Run(q, 0, c.length, 33, 1), other.Run(q, 0, c.length, 33, 1)));
}

INSTANTIATE_TEST_SUITE_P(All, AttentionCases,
                         testing::Values(Case{2, 4, 64, 16, 1}, Case{2, 4, 64, 16, 16}, Case{2, 4, 64, 16, 17},
                                         Case{1, 3, 128, 16, 63}, Case{2, 1, 64, 16, 64}, Case{2, 1, 64, 8, 65},
                                         Case{1, 4, 128, 16, 200}, Case{1, 2, 80, 16, 130}, Case{1, 1, 16, 16, 129}));

TEST(Attention, SeveralSequencesSharePoolAndBits) {
  Pool pool(2, 4, 64, 16, 150);
  const std::vector<float> q = RandomFloats(150 * pool.Row(), 26);
  const std::vector<float> whole = pool.Run(q, 0, 150, 150, 1);
  // Three "sequences" over the same blocks: a prefix, a decode at the end, a middle chunk.
  const uint32_t starts[] = {0, 149, 70}, rows[] = {20, 1, 30};
  std::vector<std::vector<float>> out(3);
  std::vector<AttentionSeq> seqs;
  for (int i = 0; i < 3; ++i) {
    out[i].resize(rows[i] * pool.Row());
    seqs.push_back({q.data() + starts[i] * pool.Row(), out[i].data(), rows[i], starts[i], pool.blocks.data()});
  }
  ThreadPool threads(2);
  AttentionWorkspace ws;
  Attention({pool.Kv(), 8, pool.Row(), seqs}, threads, ws);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(std::memcmp(out[i].data(), &whole[starts[i] * pool.Row()], out[i].size() * sizeof(float)), 0) << i;
  }
}

TEST(Attention, TargetsWithFmaAgreeBitForBit) {
  Pool pool(2, 3, 64, 16, 100);
  const std::vector<float> q = RandomFloats(100 * pool.Row(), 27);
  const std::vector<float> best = pool.Run(q, 0, 100, 100, 1);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if ((target & kUnfused) != 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    EXPECT_TRUE(SameBits(pool.Run(q, 0, 100, 100, 1), best)) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
}

// Large scores: the running maximum must keep exp from overflowing.
TEST(Attention, LargeScoresStayFinite) {
  Pool pool(1, 1, 64, 16, 140);
  const std::vector<float> q = RandomFloats(140 * pool.Row(), 28, 300.0f);
  for (const float x : pool.Run(q, 0, 140, 140, 1)) ASSERT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace agentserve::kernels
