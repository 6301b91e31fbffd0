// The small ops: norm, RoPE, SwiGLU, embedding, KV write, passes over logits, bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/embedding/embedding.h"
#include "kernels/kv_write/kv_write.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"
#include "kernels/sampling/sampling.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/test_util.h"

namespace agentserve::kernels {
namespace {

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, down to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, up to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);  // rounds to infinity
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0xfbff), -65504.0f);
  EXPECT_TRUE(std::isinf(HalfToFloat(0x7c00)));
}

TEST(RmsNorm, NearReferenceAndAddsDelta) {
  for (const size_t n : {size_t{16}, size_t{64}, size_t{2048}}) {
    const size_t rows = 3;
    std::vector<float> x = RandomFloats(rows * n, 1), x2 = x;
    const std::vector<float> delta = RandomFloats(rows * n, 2);
    const std::vector<uint16_t> w = RandomBf16(n, 3);
    std::vector<float> y(rows * n), y2(rows * n);
    RmsNorm({x.data(), delta.data(), w.data(), y.data(), rows, n, 1e-5f});
    RmsNormReference({x2.data(), delta.data(), w.data(), y2.data(), rows, n, 1e-5f});
    EXPECT_EQ(x, x2);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], y2[i], 1e-6 * (1 + std::abs(y2[i])));
  }
}

TEST(Rope, FrequenciesWithoutScaling) {
  const std::vector<float> f = RopeFrequencies({.head_dim = 64, .theta = 10000});
  ASSERT_EQ(f.size(), 32u);
  EXPECT_EQ(f[0], 1.0f);
  for (size_t i = 0; i < 32; ++i) EXPECT_NEAR(f[i], std::pow(10000.0, -2.0 * static_cast<double>(i) / 64), 1e-7);
}

TEST(Rope, Llama3ScalingHasThreeBands) {
  const RopeFrequencyParams scaled = {.head_dim = 128, .theta = 500000, .llama3 = true, .factor = 8};
  const std::vector<float> f = RopeFrequencies(scaled);
  const std::vector<float> plain = RopeFrequencies({.head_dim = 128, .theta = 500000});
  size_t same = 0, stretched = 0, blended = 0;
  for (size_t i = 0; i < f.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / plain[i];
    if (wavelength < 8192 / 4.0) {
      EXPECT_EQ(f[i], plain[i]);
      ++same;
    } else if (wavelength > 8192) {
      EXPECT_FLOAT_EQ(f[i], plain[i] / 8);
      ++stretched;
    } else {
      EXPECT_LT(f[i], plain[i]);
      EXPECT_GT(f[i], plain[i] / 8);
      ++blended;
    }
  }
  EXPECT_GT(same, 0u);
  EXPECT_GT(stretched, 0u);
  EXPECT_GT(blended, 0u);
}

TEST(Rope, RotatesPairsHalfAHeadApart) {
  const size_t d = 32;
  const std::vector<float> f = RopeFrequencies({.head_dim = d, .theta = 10000});
  std::vector<float> cos(d / 2), sin(d / 2);
  RopeAngles(f, 1234, cos.data(), sin.data());
  const std::vector<float> x = RandomFloats(2 * d, 5);
  std::vector<float> y = x;
  Rope({y.data(), 2 * d, 1, 2, d, cos.data(), sin.data()});
  for (size_t h = 0; h < 2; ++h) {
    for (size_t i = 0; i < d / 2; ++i) {
      const double angle = static_cast<float>(1234) * f[i];
      const float a = x[h * d + i], b = x[h * d + i + d / 2];
      EXPECT_NEAR(y[h * d + i], a * std::cos(angle) - b * std::sin(angle), 1e-6);
      EXPECT_NEAR(y[h * d + i + d / 2], b * std::cos(angle) + a * std::sin(angle), 1e-6);
    }
  }
}

TEST(Swiglu, NearReferenceAndSafeAtExtremes) {
  std::vector<float> gate = RandomFloats(256, 6, 4.0f);
  const std::vector<float> up = RandomFloats(256, 7);
  gate[0] = -1000.0f, gate[1] = 1000.0f, gate[2] = 0.0f, gate[3] = -90.0f;
  std::vector<float> want = gate;
  Swiglu({gate.data(), up.data(), gate.size()});
  SwigluReference({want.data(), up.data(), want.size()});
  for (size_t i = 0; i < gate.size(); ++i) ASSERT_NEAR(gate[i], want[i], 1e-6 * (1 + std::abs(want[i]))) << i;
}

TEST(Embedding, CopiesRows) {
  const std::vector<uint16_t> table = RandomBf16(10 * 16, 8);
  const uint32_t ids[] = {9, 0, 9};
  std::vector<float> y(3 * 16);
  Embedding({table.data(), ids, y.data(), 3, 16});
  for (size_t r = 0; r < 3; ++r) {
    for (size_t i = 0; i < 16; ++i) ASSERT_EQ(y[r * 16 + i], Bf16ToFloat(table[ids[r] * 16 + i]));
  }
}

TEST(KvWrite, TouchesOnlyItsRows) {
  const uint32_t heads = 2, d = 16, block_tokens = 4;
  PagedKv kv;
  kv.head_bytes = block_tokens * d * 2;
  kv.block_bytes = 2 * 2 * heads * kv.head_bytes;  // two layers; this is the second
  kv.k_offset = 2 * heads * kv.head_bytes;
  kv.v_offset = 3 * heads * kv.head_bytes;
  kv.block_tokens = block_tokens, kv.kv_heads = heads, kv.head_dim = d;
  std::vector<uint16_t> memory(3 * kv.block_bytes / 2, 0xaaaa);
  kv.base = reinterpret_cast<std::byte*>(memory.data());
  const uint32_t blocks[] = {2, 0};
  const size_t rows = 3;  // positions 3, 4, 5: the end of block 2, the start of block 0
  const std::vector<float> k = RandomFloats(rows * heads * d, 9), v = RandomFloats(rows * heads * d, 10);
  KvWrite({kv, k.data(), v.data(), heads * d, rows, 3, blocks});
  size_t written = 0;
  for (const uint16_t x : memory) written += x != 0xaaaa;
  EXPECT_EQ(written, 2 * rows * heads * d);
  for (size_t row = 0; row < rows; ++row) {
    for (uint32_t h = 0; h < heads; ++h) {
      const uint32_t position = 3 + static_cast<uint32_t>(row);
      const size_t at =
          blocks[position / 4] * kv.block_bytes / 2 + kv.v_offset / 2 + h * kv.head_bytes / 2 + position % 4 * d;
      for (size_t i = 0; i < d; ++i) ASSERT_EQ(memory[at + i], FloatToBf16(v[(row * heads + h) * d + i]));
    }
  }
}

TEST(Sampling, ArgMaxTakesLowestOfEqualsAndSkipsNan) {
  std::vector<float> x = RandomFloats(1003, 11);
  x[17] = x[500] = x[1002] = 50.0f;
  x[3] = std::numeric_limits<float>::quiet_NaN();
  const MaxLogit best = ArgMax(x.data(), x.size());
  EXPECT_TRUE(best.found);
  EXPECT_EQ(best.index, 17u);
  const std::vector<float> none(20, std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(ArgMax(none.data(), none.size()).found);
  EXPECT_FALSE(ArgMax(nullptr, 0).found);
}

TEST(Sampling, SumExpNearDouble) {
  const std::vector<float> x = RandomFloats(1003, 12, 5.0f);
  double want = 0;
  for (const float v : x) want += std::exp((double{v} - 20.0) * 0.5);
  EXPECT_NEAR(SumExp(x.data(), x.size(), 20.0f, 0.5f) / want, 1.0, 1e-5);
}

}  // namespace
}  // namespace agentserve::kernels
