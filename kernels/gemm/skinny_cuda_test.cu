// The few-rows kernels against a reference in double: every epilogue with and without the fused norm, ragged shapes,
// ties in the LM head, the same bits at every run, at every m and in a PDL chain.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/gemm/linear_chain.h"
#include "kernels/gemm/linear_chain_tuning.h"
#include "kernels/gemm/linear_test_util.cuh"
#include "kernels/gemm/skinny.h"
#include "kernels/gemm/skinny_args.h"

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
constexpr float kEps = 1e-5f;

std::string Name(const Shape& s) {
  static const char* const kEpilogues[] = {"none", "residual", "swiglu", "qkv"};
  return std::string(kEpilogues[static_cast<int>(s.epilogue)]) + " m " + std::to_string(s.m) + " n " +
         std::to_string(s.n) + " k " + std::to_string(s.k);
}

Shape Qkv(int m, int head_dim, int q_heads, int kv_heads, int k) {
  return {m, (q_heads + 2 * kv_heads) * head_dim, k, LinearEpilogue::kQkv, head_dim, q_heads, kv_heads};
}

// out = bf16(weight * bf16(x * rsqrt(mean(x^2) + eps))), the mean in double; one thread per row.
__global__ void ReferenceNorm(const __nv_bfloat16* x, const __nv_bfloat16* weight, __nv_bfloat16* out, int k) {
  x += size_t{blockIdx.x} * k;
  out += size_t{blockIdx.x} * k;
  double sum = 0;
  for (int i = 0; i < k; ++i) sum += double{__bfloat162float(x[i])} * double{__bfloat162float(x[i])};
  const float scale = static_cast<float>(1.0 / sqrt(sum / k + kEps));
  for (int i = static_cast<int>(threadIdx.x); i < k; i += 32) {
    const float normed = __bfloat162float(__float2bfloat16_rn(__bfloat162float(x[i]) * scale));
    out[i] = __float2bfloat16_rn(normed * __bfloat162float(weight[i]));
  }
}

class SkinnyTest : public ::testing::Test {
 protected:
  SkinnyTest() : norm_weight_(8192), workspace_(SkinnyWorkspaceBytes(16, 128256, 8192)) {
    FillRandom(norm_weight_, 77, 0.2f, 1.0f);
    workspace_.FillBytes(0);
  }

  LinearParams WithNorm(LinearParams p) const {
    p.norm_weight = norm_weight_.get();
    p.norm_eps = kEps;
    return p;
  }
  LinearParams WithWorkspace(LinearParams p) const {
    p.workspace = workspace_.get();
    p.workspace_bytes = workspace_.size();
    return p;
  }
  // The same call on x normalised by the reference into `normed`.
  LinearParams Normed(LinearParams p, const DeviceBf16& normed) const {
    if (p.norm_weight == nullptr) return p;
    ReferenceNorm<<<p.m, 32>>>(p.x, p.norm_weight, normed.get(), p.k);
    p.x = normed.get();
    return p;
  }

  void Check(const Shape& shape, bool norm, int stages = 0) {
    Problem problem(shape, 1), reference(shape, 1);
    LinearParams params = norm ? WithNorm(problem.Params()) : problem.Params();
    const std::string name = Name(shape) + (norm ? " norm" : "") + " stages " + std::to_string(stages);
    if (!SkinnySupports(params)) {
      EXPECT_TRUE(norm && shape.m * shape.k > 16 * 4160) << name << " is not supported";
      return;
    }
    const absl::Status status =
        stages == 0 ? SkinnyLinear(params, {})
                    : LaunchLinearChain({&params, 1, nullptr}, {stages, 224 * 1024, stages % 3, stages}, {});
    ASSERT_TRUE(status.ok()) << name << ": " << status;
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << name;
    DeviceBf16 normed(size_t(shape.m) * shape.k);
    LinearParams want = problem.ParamsInto(reference);
    want.norm_weight = params.norm_weight;
    testing::RunReference(Normed(want, normed));
    const Difference y = Compare(problem.y(), reference.y()), pool = Compare(problem.pool(), reference.pool());
    const bool good = y.Relative() <= kTolerance && pool.Relative() <= kTolerance && y.wrong == 0 && pool.wrong == 0;
    EXPECT_TRUE(good) << name << ": y error " << y.Relative() << " wrong " << y.wrong << ", pool error "
                      << pool.Relative() << " wrong " << pool.wrong;
  }

  DeviceBf16 norm_weight_;
  DeviceArray<std::byte> workspace_;
};

std::vector<Shape> Shapes(int m) {
  std::vector<Shape> shapes = {Qkv(m, 64, 32, 8, 2048), Qkv(m, 128, 24, 8, 3072), Qkv(m, 64, 3, 1, 192),
                               Qkv(m, 128, 3, 1, 64)};
  const int products[][2] = {{2048, 2048}, {3072, 3072}, {2048, 8192}, {16384, 2048}, {16384, 3072},
                             {1040, 320},  {16, 64},     {272, 4160},  {8192, 576}};
  for (const auto& [n, k] : products) {
    for (LinearEpilogue epilogue : {LinearEpilogue::kNone, LinearEpilogue::kResidual, LinearEpilogue::kSwiglu}) {
      if (n * k > 3072 * 3072 && (n > k) != (epilogue == LinearEpilogue::kSwiglu)) continue;
      shapes.push_back({m, n, k, epilogue});
    }
  }
  return shapes;
}

TEST_F(SkinnyTest, MatchesReference) {
  for (int m : {1, 2, 3, 7, 8, 9, 13, 16}) {
    for (const Shape& shape : Shapes(m)) {
      Check(shape, false);
      Check(shape, true);
    }
  }
}

TEST_F(SkinnyTest, EveryRingDepth) {
  for (int stages = 2; stages <= 6; ++stages) {
    for (int m : {1, 5, 16}) {
      Check(Qkv(m, 64, 32, 8, 2048), true, stages);
      Check({m, 16384, 2048, LinearEpilogue::kSwiglu}, true, stages);
      Check({m, 2048, 8192, LinearEpilogue::kResidual}, false, stages);
      Check({m, 1040, 320}, false, stages);
    }
  }
}

TEST_F(SkinnyTest, RefusesWhatItCannotDo) {
  Problem problem({16, 64, 64}, 1);
  LinearParams p = problem.Params();
  EXPECT_TRUE(SkinnySupports(p));
  p.mode = LinearMode::kInvariant;
  EXPECT_FALSE(SkinnySupports(p));
  p = problem.Params();
  p.m = 17;
  EXPECT_FALSE(SkinnySupports(p));
  p = problem.Params();
  p.k = 96;
  EXPECT_FALSE(SkinnySupports(p));
}

// Rows keep their bits when other rows join or leave.
TEST_F(SkinnyTest, BitsOfARowDoNotDependOnTheOthers) {
  for (const Shape& shape :
       {Shape{16, 2048, 8192, LinearEpilogue::kResidual}, Shape{16, 16384, 2048, LinearEpilogue::kSwiglu}}) {
    const bool norm = shape.epilogue == LinearEpilogue::kSwiglu;
    Problem whole(shape, 4);
    const LinearParams params = norm ? WithNorm(whole.Params()) : whole.Params();
    ASSERT_TRUE(SkinnyLinear(params, {}).ok());
    const size_t columns = norm ? shape.n / 2 : shape.n;
    for (int m : {1, 2, 5, 8, 9, 15}) {
      DeviceBf16 part(m * columns), expected(m * columns);
      const int first = 16 - m;
      LinearParams few = params;
      few.m = m;
      few.x += size_t(first) * shape.k;
      few.residual += size_t(first) * shape.n;
      few.y = part.get();
      ASSERT_TRUE(SkinnyLinear(few, {}).ok());
      Must(cudaMemcpy(expected.get(), params.y + first * columns, m * columns * 2, cudaMemcpyDeviceToDevice));
      EXPECT_EQ(Compare(part, expected).different_bits, 0u) << Name(shape) << " rows " << m;
    }
  }
}

// A chain as in a decode step, each call reading what the one before wrote, in a graph with programmatic edges: the
// same bits as one call after the other with a synchronisation between them, 100 times.
TEST_F(SkinnyTest, PdlChainHasTheBitsOfSeparateCalls) {
  for (int m : {1, 8, 16}) {
    const Shape o_shape{m, 2048, 2048, LinearEpilogue::kResidual}, up_shape{m, 16384, 2048, LinearEpilogue::kSwiglu},
        down_shape{m, 2048, 8192, LinearEpilogue::kResidual};
    Problem o(o_shape, 1), up(up_shape, 2), down(down_shape, 3);
    DeviceBf16 hidden(m * 2048), start(m * 2048), wanted(m * 2048), middle(m * 8192);
    FillRandom(start, 9, 1.0f);
    LinearParams a = o.Params(), b = WithNorm(up.Params()), c = down.Params();
    a.x = b.x = hidden.get();
    a.y = c.y = hidden.get();
    a.residual = c.residual = hidden.get();
    b.y = middle.get();
    c.x = middle.get();
    a.x = start.get();
    const LinearParams calls[] = {a, b, c, b, c, b, c};
    const size_t bytes = size_t(m) * 2048 * 2;
    Must(cudaMemcpy(hidden.get(), start.get(), bytes, cudaMemcpyDeviceToDevice));
    for (const LinearParams& call : calls) {
      ASSERT_TRUE(SkinnyLinear(call, {}).ok());
      Must(cudaDeviceSynchronize());
    }
    Must(cudaMemcpy(wanted.get(), hidden.get(), bytes, cudaMemcpyDeviceToDevice));
    LaunchContext context;
    context.pdl = true;
    Must(cudaStreamCreate(&context.stream));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Must(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
    Must(cudaMemcpyAsync(hidden.get(), start.get(), bytes, cudaMemcpyDeviceToDevice, context.stream));
    for (size_t i = 0; i < std::size(calls); ++i) {
      LaunchContext first = context;
      first.pdl = i > 0;
      ASSERT_TRUE(SkinnyLinear(calls[i], first).ok());
    }
    Must(cudaStreamEndCapture(context.stream, &graph));
    Must(cudaGraphInstantiate(&exec, graph, 0));
    for (int run = 0; run < 100; ++run) {
      Must(cudaGraphLaunch(exec, context.stream));
      Must(cudaStreamSynchronize(context.stream));
      EXPECT_EQ(Compare(hidden, wanted).different_bits, 0u) << "m " << m << " run " << run;
    }
    Must(cudaGraphExecDestroy(exec));
    Must(cudaGraphDestroy(graph));
    Must(cudaStreamDestroy(context.stream));
  }
}

// Output projection, gate-up, down and QKV as one kernel: the bits of separate calls, 50 times in a row, and no counter
// left behind.
TEST_F(SkinnyTest, LinearChainHasTheBitsOfSeparateCalls) {
  for (int m : {1, 2, 5, 8, 9, 16}) {
    for (const bool large : {false, true}) {
      const int h = large ? 3072 : 2048, dim = large ? 128 : 64, q = large ? 24 : 32;
      const Shape qkv_shape = Qkv(m, dim, q, 8, h);
      Problem o({m, h, h, LinearEpilogue::kResidual}, 1), up({m, 16384, h, LinearEpilogue::kSwiglu}, 2),
          down({m, h, 8192, LinearEpilogue::kResidual}, 3), qkv(qkv_shape, 4), wanted_qkv(qkv_shape, 4);
      DeviceBf16 hidden(m * h), start(m * h), wanted(m * h), middle(m * 8192);
      FillRandom(start, 9, 1.0f);
      LinearParams ops[4] = {o.Params(), WithNorm(up.Params()), down.Params(), WithNorm(qkv.Params())};
      for (LinearParams& op : ops) op = WithWorkspace(op);
      ops[0].y = ops[2].y = hidden.get();
      ops[0].residual = ops[1].x = ops[2].residual = ops[3].x = hidden.get();
      ops[1].y = middle.get();
      ops[2].x = middle.get();
      const size_t bytes = size_t(m) * h * 2;
      Must(cudaMemcpy(hidden.get(), start.get(), bytes, cudaMemcpyDeviceToDevice));
      for (int i = 0; i < 4; ++i) {
        LinearParams op = ops[i];
        if (i == 3)
          op = [&] {
            LinearParams into = wanted_qkv.Params();
            into.x = ops[3].x;
            into.w = ops[3].w;
            into.qkv.cos = ops[3].qkv.cos;
            into.qkv.sin = ops[3].qkv.sin;
            return WithNorm(into);
          }();
        ASSERT_TRUE(SkinnyLinear(op, {}).ok());
      }
      Must(cudaMemcpy(wanted.get(), hidden.get(), bytes, cudaMemcpyDeviceToDevice));
      const LinearChainParams chain{ops, 4, nullptr, ops[0].w, size_t{2} * ops[0].n * ops[0].k};
      ASSERT_TRUE(LinearChainSupports(chain));
      for (int run = 0; run < 50; ++run) {
        qkv.Poison();
        middle.FillBytes(0xff);
        Must(cudaMemcpy(hidden.get(), start.get(), bytes, cudaMemcpyDeviceToDevice));
        ASSERT_TRUE(LaunchLinearChain(chain, {2 + run % 5, 224 * 1024, run % 7, run % 4}, {}).ok());
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        EXPECT_EQ(Compare(hidden, wanted).different_bits, 0u) << "m " << m << " h " << h << " run " << run;
        EXPECT_EQ(Compare(qkv.y(), wanted_qkv.y()).different_bits, 0u) << "m " << m << " h " << h << " run " << run;
        EXPECT_EQ(Compare(qkv.pool(), wanted_qkv.pool()).different_bits, 0u) << "m " << m << " h " << h;
      }
    }
  }
}

TEST_F(SkinnyTest, LinearChainEndsInTheLmHead) {
  for (int m : {1, 8, 16}) {
    const Shape shape{m, 128256, 2048};
    Problem down({m, 2048, 8192, LinearEpilogue::kResidual}, 3), problem(shape, 5);
    DeviceArray<int32_t> token(m), wanted(m);
    LinearParams op = WithWorkspace(down.Params());
    LmHeadParams head;
    head.linear = WithWorkspace(WithNorm(problem.Params()));
    head.linear.x = op.y;
    head.argmax = wanted.get();
    head.linear.y = nullptr;
    ASSERT_TRUE(SkinnyLinear(op, {}).ok());
    ASSERT_TRUE(SkinnyLmHead(head, {}).ok());
    head.argmax = token.get();
    std::vector<int32_t> want(m), got(m);
    Must(cudaMemcpy(want.data(), wanted.get(), m * 4, cudaMemcpyDeviceToHost));
    for (int run = 0; run < 20; ++run) {
      token.FillBytes(0xff);
      ASSERT_TRUE(LinearChain({&op, 1, &head, nullptr, 0}, {}).ok());
      Must(cudaMemcpy(got.data(), token.get(), m * 4, cudaMemcpyDeviceToHost));
      EXPECT_EQ(got, want) << "m " << m << " run " << run;
    }
  }
}

TEST_F(SkinnyTest, LmHeadPicksLowestOfTheLargest) {
  for (int m : {1, 3, 8, 16}) {
    for (const bool norm : {false, true}) {
      const Shape shape{m, 128256, 2048};
      Problem problem(shape, 5);
      DeviceArray<int32_t> token(m);
      DeviceBf16 best(m);
      LmHeadParams head;
      head.linear = WithWorkspace(norm ? WithNorm(problem.Params()) : problem.Params());
      head.argmax = token.get();
      head.best = best.get();
      ASSERT_TRUE(SkinnyLmHeadSupports(head));
      ASSERT_TRUE(SkinnyLmHead(head, {}).ok()) << m;
      std::vector<__nv_bfloat16> logits(size_t(m) * shape.n), best_host(m);
      std::vector<int32_t> got(m), again(m);
      Must(cudaMemcpy(logits.data(), head.linear.y, logits.size() * 2, cudaMemcpyDeviceToHost));
      Must(cudaMemcpy(got.data(), token.get(), m * 4, cudaMemcpyDeviceToHost));
      Must(cudaMemcpy(best_host.data(), best.get(), m * 2, cudaMemcpyDeviceToHost));
      head.linear.y = nullptr;
      ASSERT_TRUE(SkinnyLmHead(head, {}).ok()) << m;
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
}

// All weights equal: every logit ties, token 0 wins.
TEST_F(SkinnyTest, LmHeadTies) {
  const Shape shape{16, 128256, 64};
  Problem problem(shape, 5);
  LmHeadParams head;
  head.linear = WithWorkspace(problem.Params());
  DeviceBf16 row(64);
  FillRandom(row, 3, 1.0f);
  std::vector<__nv_bfloat16> weights(64), all(size_t{128256} * 64);
  Must(cudaMemcpy(weights.data(), row.get(), 128, cudaMemcpyDeviceToHost));
  for (size_t i = 0; i < all.size(); ++i) all[i] = weights[i % 64];
  Must(cudaMemcpy(const_cast<__nv_bfloat16*>(head.linear.w), all.data(), all.size() * 2, cudaMemcpyHostToDevice));
  DeviceArray<int32_t> token(16);
  token.FillBytes(0xff);
  head.argmax = token.get();
  ASSERT_TRUE(SkinnyLmHead(head, {}).ok());
  std::vector<int32_t> got(16);
  Must(cudaMemcpy(got.data(), token.get(), 64, cudaMemcpyDeviceToHost));
  for (int row_index = 0; row_index < 16; ++row_index) EXPECT_EQ(got[row_index], 0);
}

}  // namespace
}  // namespace agentserve::kernels::cuda
