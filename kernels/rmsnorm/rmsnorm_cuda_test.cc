// RMSNorm on the GPU bit for bit against double arithmetic with its roundings. Where the exact value lies so close to
// the middle of two bf16 that fp32 arithmetic may fall to either side, both are right.
#include "kernels/rmsnorm/rmsnorm_cuda.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/device_vector.h"
#include "kernels/test_util.h"

namespace agentserve::kernels::cuda {
namespace {

__nv_bfloat16* Bf16Pointer(const DeviceVector<uint16_t>& v) { return reinterpret_cast<__nv_bfloat16*>(v.data()); }

uint16_t Normed(uint16_t w, uint16_t x, double scale) {
  const float rounded = Bf16ToFloat(FloatToBf16(static_cast<float>(Bf16ToFloat(x) * scale)));
  return FloatToBf16(Bf16ToFloat(w) * rounded);
}

struct Setup {
  int rows, n;
  bool delta, in_place;
  int splits = 0;  // > 0: delta comes as that many partial sums
};

// [splits][size] values, and their rounded sums.
std::vector<float> Partials(size_t size, int splits, float spread, std::vector<uint16_t>* delta) {
  std::vector<float> partials(size * static_cast<size_t>(splits));
  const std::vector<uint16_t> random = RandomBf16(partials.size(), 4, spread);
  for (size_t i = 0; i < partials.size(); ++i) partials[i] = Bf16ToFloat(random[i]) * 1.0001f;
  for (size_t i = 0; splits > 0 && i < size; ++i) {
    float sum = 0;
    for (size_t s = 0; s < static_cast<size_t>(splits); ++s) sum += partials[s * size + i];
    (*delta)[i] = FloatToBf16(sum);
  }
  return partials;
}

void Compare(const Setup& setup, float spread) {
  SCOPED_TRACE(testing::Message() << "rows " << setup.rows << " n " << setup.n << " delta " << setup.delta
                                  << " in place " << setup.in_place << " splits " << setup.splits << " spread "
                                  << spread);
  const size_t n = static_cast<size_t>(setup.n), size = static_cast<size_t>(setup.rows) * n;
  const std::vector<uint16_t> x = RandomBf16(size, 1, spread), weight = RandomBf16(n, 3);
  std::vector<uint16_t> delta = RandomBf16(size, 2, spread);
  const std::vector<float> partials = Partials(size, setup.splits, spread, &delta);
  DeviceVector<float> d_partials{std::span<const float>(partials)};
  DeviceVector<uint16_t> d_x{std::span<const uint16_t>(x)}, d_delta{std::span<const uint16_t>(delta)},
      d_weight{std::span<const uint16_t>(weight)}, d_sum(size), d_y(size);
  RmsNormParams p;
  p.x = Bf16Pointer(d_x);
  p.weight = Bf16Pointer(d_weight);
  p.y = setup.in_place && !setup.delta ? Bf16Pointer(d_x) : Bf16Pointer(d_y);
  if (setup.delta) {
    if (setup.splits == 0) p.delta = Bf16Pointer(d_delta);
    if (setup.splits > 0) p.partials = d_partials.data();
    p.splits = setup.splits;
    p.sum = setup.in_place ? Bf16Pointer(d_x) : Bf16Pointer(d_sum);
  }
  p.rows = setup.rows;
  p.n = setup.n;
  p.eps = 1e-5f;
  ASSERT_TRUE(RmsNorm(p, {}).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<uint16_t> y = p.y == p.x ? d_x.Download() : d_y.Download();
  const std::vector<uint16_t> sum = setup.in_place ? d_x.Download() : d_sum.Download();
  size_t wrong = 0, close = 0;
  for (size_t row = 0; row < static_cast<size_t>(setup.rows); ++row) {
    std::vector<uint16_t> s(x.begin() + static_cast<std::ptrdiff_t>(row * n),
                            x.begin() + static_cast<std::ptrdiff_t>((row + 1) * n));
    double squares = 0;
    for (size_t i = 0; i < n; ++i) {
      if (setup.delta) {
        s[i] = FloatToBf16(Bf16ToFloat(s[i]) + Bf16ToFloat(delta[row * n + i]));
        wrong += sum[row * n + i] != s[i];
      }
      squares += double{Bf16ToFloat(s[i])} * Bf16ToFloat(s[i]);
    }
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + double{p.eps});
    for (size_t i = 0; i < n; ++i) {
      const uint16_t got = y[row * n + i];
      if (got == Normed(weight[i], s[i], scale)) continue;
      const bool near =
          got == Normed(weight[i], s[i], scale * (1 + 5e-7)) || got == Normed(weight[i], s[i], scale * (1 - 5e-7));
      ++(near ? close : wrong);
    }
  }
  EXPECT_EQ(wrong, 0u) << "of " << size;
  EXPECT_LE(close, 2 + size / 1000);
}

TEST(RmsNormCuda, BitEqual) {
  for (const int n : {64, 128, 192, 1024, 2048, 3072, 4096, 8192, 8256, 16384}) {
    for (const int rows : {1, 2, 33, 257}) {
      for (const bool delta : {false, true}) {
        for (const bool in_place : {false, true}) Compare({rows, n, delta, in_place}, 1.0f);
      }
    }
  }
}

TEST(RmsNormCuda, ManyRows) {
  for (const int n : {2048, 3072}) {
    for (const int rows : {1024, 1027, 3001}) {
      for (const bool delta : {false, true}) {
        for (const bool in_place : {false, true}) Compare({rows, n, delta, in_place}, 0.3f);
      }
    }
  }
}

TEST(RmsNormCuda, LargerThanL2) {
  Compare({8001, 2048, true, false}, 0.3f);
  Compare({5001, 3072, true, true}, 0.3f);
}

TEST(RmsNormCuda, PartialSums) {
  for (const int n : {128, 2048, 3072, 4096}) {
    for (const int rows : {1, 17, 64, 257}) {
      for (const int splits : {1, 2, 5, 8, 11, kMaxPartials}) Compare({rows, n, true, splits % 2 == 0, splits}, 1.0f);
    }
  }
}

TEST(RmsNormCuda, SmallAndLargeValues) {
  for (const float spread : {1e-4f, 1e-2f, 100.0f, 1e6f}) {
    Compare({5, 2048, true, false}, spread);
    Compare({1025, 3072, true, true}, spread);
  }
}

// The first rows of a large call, against a call of those rows alone.
TEST(RmsNormCuda, InvariantRowsDoNotDependOnTheirNumber) {
  for (const int n : {2048, 3072}) {
    constexpr int kMany = 1500, kFew = 40;
    const size_t size = static_cast<size_t>(kMany) * n;
    const std::vector<uint16_t> x = RandomBf16(size, 7, 0.5f), weight = RandomBf16(n, 3);
    DeviceVector<uint16_t> d_x{std::span<const uint16_t>(x)}, d_weight{std::span<const uint16_t>(weight)}, many(size),
        few(size);
    RmsNormParams p;
    p.x = Bf16Pointer(d_x);
    p.weight = Bf16Pointer(d_weight);
    p.n = n;
    p.eps = 1e-5f;
    p.invariant = true;
    p.y = Bf16Pointer(many);
    p.rows = kMany;
    ASSERT_TRUE(RmsNorm(p, {}).ok());
    p.y = Bf16Pointer(few);
    p.rows = kFew;
    ASSERT_TRUE(RmsNorm(p, {}).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<uint16_t> a = many.Download(), b = few.Download();
    a.resize(static_cast<size_t>(kFew) * n);
    b.resize(a.size());
    EXPECT_EQ(a, b) << "n " << n;
  }
}

TEST(RmsNormCuda, RefusesWhatItCannotDo) {
  DeviceVector<uint16_t> buffer(64);
  RmsNormParams p;
  p.x = p.weight = p.y = Bf16Pointer(buffer);
  p.rows = 1;
  p.n = 72;
  EXPECT_FALSE(RmsNorm(p, {}).ok());
  p.n = 16448;
  EXPECT_FALSE(RmsNorm(p, {}).ok());
  p.partials = reinterpret_cast<const float*>(buffer.data());
  p.sum = Bf16Pointer(buffer);
  p.splits = 1;
  p.n = 4224;
  EXPECT_FALSE(RmsNorm(p, {}).ok());
  p.n = 192;
  EXPECT_FALSE(RmsNorm(p, {}).ok());
  p.n = 128;
  p.splits = kMaxPartials + 1;
  EXPECT_FALSE(RmsNorm(p, {}).ok());
}

}  // namespace
}  // namespace agentserve::kernels::cuda
