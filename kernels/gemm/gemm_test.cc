#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <cstring>

#include "hwy/targets.h"
#include "kernels/test_util.h"

namespace agentserve::kernels {
namespace {

constexpr int64_t kUnfused = HWY_EMU128 | HWY_SCALAR;  // targets without fused multiply-add

struct Shape {
  size_t m, n, k;
};

std::vector<float> RunGemm(const Shape& s, const std::vector<float>& x, const std::vector<uint16_t>& w, int threads) {
  ThreadPool pool(threads);
  GemmWorkspace ws;
  std::vector<float> y(s.m * s.n, 1e30f);
  const GemmOutput out = {w.data(), s.n, y.data(), s.n, false};
  Gemm({x.data(), s.k, s.m, s.k, {&out, 1}}, pool, ws);
  return y;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class GemmShapes : public testing::TestWithParam<Shape> {};

TEST_P(GemmShapes, BitEqualToScalarReference) {
  if ((hwy::SupportedAndGeneratedTargets().front() & kUnfused) != 0)
    GTEST_SKIP() << "no fused multiply-add on this machine";
  const Shape s = GetParam();
  const std::vector<float> x = RandomFloats(s.m * s.k, 1);
  const std::vector<uint16_t> w = RandomBf16(s.n * s.k, 2);
  std::vector<float> want(s.m * s.n);
  const GemmOutput out = {w.data(), s.n, want.data(), s.n, false};
  GemmReference({x.data(), s.k, s.m, s.k, {&out, 1}});
  EXPECT_TRUE(SameBits(RunGemm(s, x, w, 1), want));
  EXPECT_TRUE(SameBits(RunGemm(s, x, w, 2), want));
}

INSTANTIATE_TEST_SUITE_P(All, GemmShapes,
                         testing::Values(Shape{1, 1, 1}, Shape{1, 4, 32}, Shape{1, 33, 31}, Shape{2, 7, 64},
                                         Shape{3, 32, 48}, Shape{5, 65, 2048}, Shape{6, 4, 2080}, Shape{7, 70, 4112},
                                         Shape{49, 37, 96}, Shape{100, 40, 2064}));

// The promise behind batch invariance: a row's result never depends on the rows beside it.
TEST(Gemm, RowsEqualTheirOwnGemv) {
  const Shape s = {53, 45, 2100};
  const std::vector<float> x = RandomFloats(s.m * s.k, 3);
  const std::vector<uint16_t> w = RandomBf16(s.n * s.k, 4);
  const std::vector<float> all = RunGemm(s, x, w, 2);
  for (size_t m = 0; m < s.m; ++m) {
    const std::vector<float> row(x.begin() + m * s.k, x.begin() + (m + 1) * s.k);
    const std::vector<float> one = RunGemm({1, s.n, s.k}, row, w, 1);
    ASSERT_EQ(std::memcmp(one.data(), &all[m * s.n], s.n * sizeof(float)), 0) << "row " << m;
  }
}

TEST(Gemm, TargetsWithFmaAgreeBitForBit) {
  const Shape s = {9, 41, 2080};
  const std::vector<float> x = RandomFloats(s.m * s.k, 5);
  const std::vector<uint16_t> w = RandomBf16(s.n * s.k, 6);
  const std::vector<float> best = RunGemm(s, x, w, 2);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    const std::vector<float> y = RunGemm(s, x, w, 2);
    if ((target & kUnfused) != 0) {
      for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], best[i], 1e-3);
    } else {
      EXPECT_TRUE(SameBits(y, best)) << hwy::TargetName(target);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(Gemm, SeveralOutputsAndResidual) {
  const size_t m = 4, k = 96;
  const std::vector<float> x = RandomFloats(m * k, 7);
  const std::vector<uint16_t> a = RandomBf16(33 * k, 8), b = RandomBf16(20 * k, 9);
  std::vector<float> ya(m * 40, 5.0f), yb(m * 20, 2.0f);
  const GemmOutput outs[] = {{a.data(), 33, ya.data(), 40, false}, {b.data(), 20, yb.data(), 20, true}};
  ThreadPool pool(2);
  GemmWorkspace ws;
  Gemm({x.data(), k, m, k, outs}, pool, ws);
  const std::vector<float> wa = RunGemm({m, 33, k}, x, a, 1);
  const std::vector<float> wb = RunGemm({m, 20, k}, x, b, 1);
  for (size_t i = 0; i < m; ++i) {
    for (size_t n = 0; n < 33; ++n) ASSERT_EQ(ya[i * 40 + n], wa[i * 33 + n]);
    for (size_t n = 33; n < 40; ++n) ASSERT_EQ(ya[i * 40 + n], 5.0f) << "wrote beyond its columns";
    for (size_t n = 0; n < 20; ++n) ASSERT_EQ(yb[i * 20 + n], 2.0f + wb[i * 20 + n]);
  }
}

TEST(Gemm, WeightsAtOddAddressesWork) {
  const Shape s = {2, 8, 64};
  std::vector<uint16_t> w = RandomBf16(s.n * s.k + 1, 10);
  const std::vector<float> x = RandomFloats(s.m * s.k, 11);
  std::vector<float> y(s.m * s.n);
  const GemmOutput out = {w.data() + 1, s.n, y.data(), s.n, false};
  ThreadPool pool(1);
  GemmWorkspace ws;
  Gemm({x.data(), s.k, s.m, s.k, {&out, 1}}, pool, ws);
  EXPECT_TRUE(SameBits(y, RunGemm(s, x, {w.begin() + 1, w.end()}, 1)));
}

}  // namespace
}  // namespace agentserve::kernels
