// Linear against a reference in double: all epilogues, ragged shapes, rows past m untouched, the same bits at every
// run.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/gemm/linear_cuda.h"
#include "kernels/gemm/linear_test_util.cuh"
#include "kernels/gemm/tile_gemm.h"
#include "kernels/rmsnorm/rmsnorm_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

using testing::Compare;
using testing::DeviceArray;
using testing::DeviceBf16;
using testing::Difference;
using testing::Must;
using testing::Problem;
using testing::Shape;

constexpr double kTolerance = 2e-3;

std::string Name(const Shape& s) {
  static const char* const kEpilogues[] = {"none", "residual", "swiglu", "qkv"};
  return std::string(kEpilogues[static_cast<int>(s.epilogue)]) + " m " + std::to_string(s.m) + " n " +
         std::to_string(s.n) + " k " + std::to_string(s.k);
}

Shape Qkv(int m, int head_dim, int q_heads, int kv_heads, int k) {
  return {m, (q_heads + 2 * kv_heads) * head_dim, k, LinearEpilogue::kQkv, head_dim, q_heads, kv_heads};
}

// The shapes of the 1B and 3B models, and odd ones.
std::vector<Shape> Shapes(int m) {
  std::vector<Shape> shapes = {
      Qkv(m, 64, 32, 8, 2048),
      Qkv(m, 128, 24, 8, 3072),
      Qkv(m, 64, 3, 1, 192),
      Qkv(m, 128, 3, 1, 64),
  };
  const int products[][2] = {{2048, 2048}, {3072, 3072}, {2048, 8192}, {16384, 2048},
                             {1040, 320},  {16, 64},     {272, 4160}};
  for (const auto& [n, k] : products) {
    for (LinearEpilogue epilogue : {LinearEpilogue::kNone, LinearEpilogue::kResidual, LinearEpilogue::kSwiglu}) {
      if (n * k > 3072 * 3072 && (n > k) != (epilogue == LinearEpilogue::kSwiglu)) continue;
      shapes.push_back({m, n, k, epilogue});
    }
  }
  return shapes;
}

__global__ void SumPartials(const float* partials, int splits, size_t count, __nv_bfloat16* y) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    float sum = 0;
    for (int s = 0; s < splits; ++s) sum += partials[s * count + i];
    y[i] = __float2bfloat16_rn(sum);
  }
}

class LinearTest : public ::testing::Test {
 protected:
  static constexpr size_t kWorkspaceBytes = size_t{400} << 20;
  LinearTest() : workspace_(kWorkspaceBytes) { workspace_.FillBytes(0); }

  LinearParams WithWorkspace(LinearParams params) const {
    params.workspace = workspace_.get();
    params.workspace_bytes = LinearWorkspaceBytes(params.m, params.n, params.k);
    EXPECT_LE(params.workspace_bytes, kWorkspaceBytes);
    return params;
  }

  void Check(const Shape& shape, LinearMode mode) {
    Problem problem(shape, 1), reference(shape, 1);
    LinearParams params = WithWorkspace(problem.Params());
    params.mode = mode;
    const std::string name = Name(shape) + " by " + LinearPlanName(params, {});
    const absl::Status status = Linear(params, {});
    ASSERT_TRUE(status.ok()) << name << ": " << status;
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << name;
    testing::RunReference(problem.ParamsInto(reference));
    ExpectClose(problem, reference, name, mode);
  }

  void ExpectClose(const Problem& got, const Problem& want, const std::string& name, LinearMode mode) {
    const Difference y = Compare(got.y(), want.y()), pool = Compare(got.pool(), want.pool());
    const bool good = y.Relative() <= kTolerance && pool.Relative() <= kTolerance && y.wrong == 0 && pool.wrong == 0;
    EXPECT_TRUE(good) << name << (mode == LinearMode::kInvariant ? " invariant" : "") << ": y error " << y.Relative()
                      << " wrong " << y.wrong << ", pool error " << pool.Relative() << " wrong " << pool.wrong;
  }

  void CheckLmHead(LinearMode mode);

  DeviceArray<std::byte> workspace_;
};

TEST_F(LinearTest, MatchesReferenceAtFewRows) {
  for (int m : {1, 2, 8, 16, 17, 64}) {
    for (const Shape& shape : Shapes(m)) Check(shape, LinearMode::kFast);
  }
}

TEST_F(LinearTest, MatchesReferenceAtManyRows) {
  for (int m : {65, 128, 200, 256, 257, 512, 777, 1024, 2048, 2100}) {
    for (const Shape& shape : Shapes(m)) Check(shape, LinearMode::kFast);
  }
}

TEST_F(LinearTest, InvariantModeMatchesReference) {
  for (int m : {1, 5, 64, 130, 300}) {
    for (const Shape& shape : Shapes(m)) Check(shape, LinearMode::kInvariant);
  }
}

// Every compiled tile shape on every shape it takes, whatever the dispatch prefers.
TEST_F(LinearTest, TileShapesMatchReference) {
  for (int m : {1, 64, 130, 300, 1000}) {
    for (const Shape& shape : Shapes(m)) {
      Problem problem(shape, 6), reference(shape, 6);
      testing::RunReference(problem.ParamsInto(reference));
      LinearParams params = problem.Params();
      params.workspace = workspace_.get();
      params.workspace_bytes = kWorkspaceBytes;
      for (int tile = 0; tile < static_cast<int>(TileShape::kCount); ++tile) {
        for (int splits : {1, 2, 4}) {
          const TilePlan plan{static_cast<TileShape>(tile), splits};
          if (!TileSupports(params, plan)) continue;
          problem.Poison();
          const std::string name =
              Name(shape) + " tile " + TileShapeName(plan.shape) + " splits " + std::to_string(splits);
          const absl::Status status = TileLinear(params, plan, {});
          ASSERT_TRUE(status.ok()) << name << ": " << status;
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << name;
          ExpectClose(problem, reference, name, LinearMode::kFast);
        }
      }
    }
  }
}

// Without splits no tile shape changes a bit: what the invariant mode rests on.
TEST_F(LinearTest, TileShapesAgreeBitForBit) {
  for (const Shape& shape : {Qkv(300, 64, 32, 8, 2048), Shape{300, 3072, 8192, LinearEpilogue::kResidual},
                             Shape{300, 16384, 2048, LinearEpilogue::kSwiglu}}) {
    Problem first(shape, 7), other(shape, 7);
    ASSERT_TRUE(TileLinear(first.Params(), {TileShape::k128x256Deferred, 1}, {}).ok());
    for (int tile = 0; tile < static_cast<int>(TileShape::kCount); ++tile) {
      const TilePlan plan{static_cast<TileShape>(tile), 1};
      if (!TileSupports(first.Params(), plan)) continue;
      other.Poison();
      ASSERT_TRUE(TileLinear(first.ParamsInto(other), plan, {}).ok());
      EXPECT_EQ(Compare(other.y(), first.y()).different_bits, 0u) << Name(shape) << " " << TileShapeName(plan.shape);
      EXPECT_EQ(Compare(other.pool(), first.pool()).different_bits, 0u)
          << Name(shape) << " " << TileShapeName(plan.shape);
    }
  }
}

TEST_F(LinearTest, TileSplitsSameBitsEveryRun) {
  const Shape shape{256, 2048, 8192, LinearEpilogue::kResidual};
  Problem first(shape, 8), again(shape, 8);
  LinearParams params = WithWorkspace(first.Params());
  for (int splits : {1, 2, 4}) {
    const TilePlan plan{TileShape::k64x128, splits};
    ASSERT_TRUE(TileLinear(params, plan, {}).ok());
    for (int run = 0; run < 100; ++run) {
      again.Poison();
      ASSERT_TRUE(TileLinear(WithWorkspace(first.ParamsInto(again)), plan, {}).ok());
      EXPECT_EQ(Compare(again.y(), first.y()).different_bits, 0u) << "run " << run << " splits " << splits;
    }
  }
}

// Heads that no fused kernel takes.
TEST_F(LinearTest, OtherHeadSizes) {
  for (int m : {8, 100, 600}) {
    for (int head_dim : {16, 32, 96}) {
      for (LinearMode mode : {LinearMode::kFast, LinearMode::kInvariant}) Check(Qkv(m, head_dim, 4, 2, 256), mode);
    }
  }
}

TEST_F(LinearTest, SameBitsEveryRun) {
  for (int m : {3, 64, 130, 256, 700}) {
    for (const Shape& shape : {Qkv(m, 64, 32, 8, 2048), Shape{m, 2048, 8192, LinearEpilogue::kResidual},
                               Shape{m, 16384, 2048, LinearEpilogue::kSwiglu}, Shape{m, 1040, 320}}) {
      Problem first(shape, 2), again(shape, 2);
      ASSERT_TRUE(Linear(WithWorkspace(first.Params()), {}).ok());
      for (int run = 0; run < 100; ++run) {
        again.Poison();
        ASSERT_TRUE(Linear(WithWorkspace(first.ParamsInto(again)), {}).ok());
        if (run % 10 != 9) continue;
        EXPECT_EQ(Compare(again.y(), first.y()).different_bits, 0u) << Name(shape) << " run " << run;
        EXPECT_EQ(Compare(again.pool(), first.pool()).different_bits, 0u) << Name(shape) << " run " << run;
      }
    }
  }
}

// Output and normed output, in place as the forward pass has it, at every way of running the pair; the same bits again.
TEST_F(LinearTest, ResidualNormMatchesReference) {
  for (int m : {1, 16, 17, 33, 64, 65, 100, 128, 129, 256, 300, 600}) {
    for (const auto& [n, k] :
         {std::pair{2048, 2048}, {3072, 3072}, {2048, 8192}, {3072, 8192}, {1088, 320}, {384, 64}}) {
      const Shape shape{m, n, k, LinearEpilogue::kResidual};
      Problem problem(shape, 8), reference(shape, 8);
      testing::RunReference(problem.ParamsInto(reference));
      DeviceBf16 weight(n), normed(size_t(m) * n), again(size_t(m) * n), want(size_t(m) * n);
      testing::FillRandom(weight, 9, 1.0f);
      for (LinearMode mode : {LinearMode::kFast, LinearMode::kInvariant}) {
        DeviceBf16* out = &normed;
        for (int run = 0; run < 3; ++run, out = &again) {
          problem.Poison();
          out->FillBytes(0xff);
          ResidualNormParams p;
          p.linear = WithWorkspace(problem.Params());
          p.linear.mode = mode;
          Must(cudaMemcpy(p.linear.y, p.linear.residual, size_t(m) * n * 2, cudaMemcpyDeviceToDevice));
          p.linear.residual = p.linear.y;
          p.norm_weight = weight.get();
          p.norm_eps = 1e-5f;
          p.normed = out->get();
          ASSERT_TRUE(LinearResidualNorm(p, {}).ok()) << Name(shape);
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << Name(shape);
        }
        ExpectClose(problem, reference, Name(shape), mode);
        EXPECT_EQ(Compare(normed, again).different_bits, 0u) << Name(shape);
        RmsNormParams norm;
        norm.x = problem.Params().y;
        norm.weight = weight.get();
        norm.y = want.get();
        norm.rows = m;
        norm.n = n;
        norm.eps = 1e-5f;
        ASSERT_TRUE(RmsNorm(norm, {}).ok());
        const Difference difference = Compare(normed, want);
        EXPECT_TRUE(difference.Relative() <= 3e-4 && difference.wrong == 0)
            << Name(shape) << " normed " << difference.Relative() << " wrong " << difference.wrong;
      }
    }
  }
}

// Every number of parts of k.
TEST_F(LinearTest, PartialsAddUp) {
  for (int m : {1, 64, 100, 200}) {
    for (const auto& [n, k] : {std::pair{2048, 2048}, {3072, 8192}, {272, 4160}, {16, 64}}) {
      const Shape shape{m, n, k};
      Problem problem(shape, 10), reference(shape, 10);
      testing::RunReference(problem.ParamsInto(reference));
      for (TileShape tile : {TileShape::kStream64, TileShape::kStream128}) {
        for (int splits = 1; splits <= std::min(16, k / 64); ++splits) {
          DeviceArray<float> partials(size_t(splits) * m * n);
          partials.FillBytes(0xff);
          problem.Poison();
          ASSERT_TRUE(TilePartials(problem.Params(), {tile, splits}, partials.get(), {}).ok()) << Name(shape);
          SumPartials<<<1024, 256>>>(partials.get(), splits, size_t(m) * n, problem.Params().y);
          ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << Name(shape);
          ExpectClose(problem, reference, Name(shape) + " parts " + std::to_string(splits), LinearMode::kFast);
        }
      }
    }
  }
}

TEST_F(LinearTest, ResidualInPlace) {
  const Shape shape{333, 2048, 2048, LinearEpilogue::kResidual};
  Problem problem(shape, 3), reference(shape, 3);
  LinearParams params = WithWorkspace(problem.Params());
  const size_t bytes = size_t{333} * 2048 * 2;
  Must(cudaMemcpy(params.y, params.residual, bytes, cudaMemcpyDeviceToDevice));
  params.residual = params.y;
  ASSERT_TRUE(Linear(params, {}).ok());
  testing::RunReference(problem.ParamsInto(reference));
  ExpectClose(problem, reference, "in place", LinearMode::kFast);
}

// Rows of a call at one m have the bits of the same rows in a call at another m.
TEST_F(LinearTest, InvariantModeIgnoresOtherRows) {
  for (const Shape& base : {Shape{512, 2048, 2048, LinearEpilogue::kResidual}, Shape{512, 3072, 8192},
                            Shape{512, 16384, 2048, LinearEpilogue::kSwiglu}, Shape{512, 1040, 320}}) {
    Problem whole(base, 4);
    LinearParams params = WithWorkspace(whole.Params());
    params.mode = LinearMode::kInvariant;
    ASSERT_TRUE(Linear(params, {}).ok());
    const size_t columns = base.epilogue == LinearEpilogue::kSwiglu ? base.n / 2 : base.n;
    for (int m : {1, 2, 15, 64, 65, 128, 200, 256, 300, 511}) {
      DeviceBf16 part(m * columns), expected(m * columns);
      const int first = 512 - m;  // rows move to other places in the tile
      LinearParams few = params;
      few.m = m;
      few.x += size_t(first) * base.k;
      few.residual += size_t(first) * base.n;
      few.y = part.get();
      ASSERT_TRUE(Linear(few, {}).ok());
      Must(cudaMemcpy(expected.get(), params.y + first * columns, m * columns * 2, cudaMemcpyDeviceToDevice));
      EXPECT_EQ(Compare(part, expected).different_bits, 0u) << Name(base) << " rows " << m;
    }
  }
}

void LinearTest::CheckLmHead(LinearMode mode) {
  for (int m : {1, 4, 16, 33, 64, 100, 256}) {
    const Shape shape{m, 128256, 2048};
    Problem problem(shape, 5);
    DeviceArray<int32_t> token(m);
    DeviceBf16 best(m);
    LmHeadParams head;
    head.linear = WithWorkspace(problem.Params());
    head.linear.mode = mode;
    head.argmax = token.get();
    head.best = best.get();
    ASSERT_TRUE(LmHead(head, {}).ok()) << m;
    std::vector<__nv_bfloat16> logits(size_t(m) * shape.n), best_host(m);
    std::vector<int32_t> got(m), again(m);
    Must(cudaMemcpy(logits.data(), head.linear.y, logits.size() * 2, cudaMemcpyDeviceToHost));
    Must(cudaMemcpy(got.data(), token.get(), m * 4, cudaMemcpyDeviceToHost));
    Must(cudaMemcpy(best_host.data(), best.get(), m * 2, cudaMemcpyDeviceToHost));
    head.linear.y = nullptr;
    ASSERT_TRUE(LmHead(head, {}).ok()) << m;
    Must(cudaMemcpy(again.data(), token.get(), m * 4, cudaMemcpyDeviceToHost));
    for (int row = 0; row < m; ++row) {
      int want = 0;
      const __nv_bfloat16* values = logits.data() + size_t(row) * shape.n;
      for (int i = 1; i < shape.n; ++i) {
        if (__bfloat162float(values[i]) > __bfloat162float(values[want])) want = i;
      }
      EXPECT_EQ(got[row], want) << "row " << row << " of " << m;
      EXPECT_EQ(again[row], want) << "row " << row << " of " << m << " without stored logits";
      EXPECT_EQ(__bfloat162float(best_host[row]), __bfloat162float(values[want]));
    }
  }
}

TEST_F(LinearTest, LmHeadPicksLowestOfTheLargest) { CheckLmHead(LinearMode::kFast); }
TEST_F(LinearTest, InvariantLmHeadPicksLowestOfTheLargest) { CheckLmHead(LinearMode::kInvariant); }

}  // namespace
}  // namespace agentserve::kernels::cuda
