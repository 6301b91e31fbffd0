// The decode step against the same step by separate kernels, which have tests of their own: other rows, positions and
// block sizes, both shapes; the KV it writes and leaves alone; the same bits at every run.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/decode_step/decode_step_fixture.cuh"

namespace agentserve::kernels::cuda {
namespace {

using testing::Compare;
using testing::DeviceArray;
using testing::DeviceBf16;
using testing::Difference;
using testing::Must;
using testing::StepProblem;
using testing::StepShapeOptions;

struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<uint16_t> best, logits;
  std::vector<uint16_t> pool;
};

template <typename T>
std::vector<T> Download(const void* from, size_t count) {
  std::vector<T> out(count);
  Must(cudaMemcpy(out.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
  return out;
}
float ToFloat(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

std::string Name(const StepShapeOptions& o) {
  std::string name = std::string(o.is_3b ? "3b" : "1b") + " layers " + std::to_string(o.layers) + " blocks of " +
                     std::to_string(o.block_tokens) + " positions";
  for (const int p : o.positions) name += " " + std::to_string(p);
  return name;
}

class Runner {
 public:
  explicit Runner(const StepShapeOptions& o)
      : problem_(o),
        tokens_(problem_.rows()),
        best_(problem_.rows()),
        logits_(static_cast<size_t>(problem_.rows()) * problem_.vocab()) {
    auto step = DecodeStep::Create(problem_.Model(), problem_.workspace(), 132, nullptr);
    EXPECT_TRUE(step.ok()) << step.status();
    if (step.ok()) step_ = *std::move(step);
  }
  Outcome Run(bool separate) {
    problem_.FillBatch();
    tokens_.FillBytes(0xff);
    best_.FillBytes(0xff);
    logits_.FillBytes(0xff);
    const DecodeStepParams p = problem_.Params(tokens_.get(), best_.get(), logits_.get());
    if (separate) {
      problem_.RunSeparate(p, {});
    } else {
      const absl::Status status = step_->Launch(p, nullptr);
      EXPECT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    Must(cudaGetLastError());
    return {Download<int32_t>(tokens_.get(), tokens_.size()), Download<uint16_t>(best_.get(), best_.size()),
            Download<uint16_t>(logits_.get(), logits_.size()),
            Download<uint16_t>(problem_.pool().get(), problem_.pool().size())};
  }
  int rows() const { return problem_.rows(); }
  int vocab() const { return problem_.vocab(); }

 private:
  StepProblem problem_;
  DeviceArray<int32_t> tokens_;
  DeviceBf16 best_, logits_;
  std::unique_ptr<DecodeStep> step_;
};

double Distance(const uint16_t* got, const uint16_t* want, size_t count) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    const double a = ToFloat(got[i]), b = ToFloat(want[i]);
    if (std::isnan(a) != std::isnan(b)) return 1e9;
    if (std::isnan(a)) continue;
    error += (a - b) * (a - b);
    norm += b * b;
  }
  return std::sqrt(error / norm);
}

void Check(const StepShapeOptions& o) {
  Runner runner(o);
  const Outcome got = runner.Run(false), want = runner.Run(true);
  const size_t vocab = static_cast<size_t>(runner.vocab());
  double worst = 0;
  for (int r = 0; r < runner.rows(); ++r) {
    const uint16_t* logits = got.logits.data() + r * vocab;
    // Activations are rounded to bf16 a dozen times a layer, elsewhere where sums differ in the last bits.
    worst = std::max(worst, Distance(logits, want.logits.data() + r * vocab, vocab));
    size_t best = 0;
    for (size_t i = 1; i < vocab; ++i) {
      if (ToFloat(logits[i]) > ToFloat(logits[best])) best = i;
    }
    EXPECT_EQ(static_cast<size_t>(got.tokens[r]), best) << Name(o) << " row " << r;
    EXPECT_EQ(got.best[r], logits[best]) << Name(o) << " row " << r;
  }
  EXPECT_LE(worst, 7e-3 * (1 + o.layers / 2.0)) << Name(o);
  const double pool = Distance(got.pool.data(), want.pool.data(), got.pool.size());
  EXPECT_LE(pool, 1e-3) << Name(o);
  std::printf("%s: logits %.2e, pool %.2e\n", Name(o).c_str(), worst, pool);
  std::fflush(stdout);
}

TEST(DecodeStepTest, OneRow) {
  for (const bool is_3b : {false, true}) {
    for (const int position : {0, 1, 15, 16, 17, 100, 255, 256, 1000, 5003}) {
      Check({is_3b, 2, 4112, position % 2 == 0 ? 16 : 64, {position}});
    }
  }
}

TEST(DecodeStepTest, SomeRows) {
  for (const bool is_3b : {false, true}) {
    Check({is_3b, 2, 4112, 16, {100, 37}});
    Check({is_3b, 1, 4112, 32, {0, 4000}});
    Check({is_3b, 2, 4112, 16, {513, 0, 77, 1200}});
    Check({is_3b, 1, 4112, 16, {15, 16, 3000, 31}});
  }
}

TEST(DecodeStepTest, FullModel) { Check({false, 16, 128256, 16, {1024}}); }

// A row's products do not depend on the others; its attention is cut the same where it is too short to be cut.
TEST(DecodeStepTest, SameBitsEveryTime) {
  for (const bool is_3b : {false, true}) {
    for (const std::vector<int>& positions : {std::vector<int>{900}, std::vector<int>{33, 2000, 5, 700}}) {
      Runner runner({is_3b, 3, 4112, 16, positions});
      const Outcome first = runner.Run(false);
      for (int i = 0; i < 30; ++i) {
        const Outcome again = runner.Run(false);
        ASSERT_EQ(again.logits, first.logits) << i;
        ASSERT_EQ(again.tokens, first.tokens) << i;
        ASSERT_EQ(again.pool, first.pool) << i;
      }
    }
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda
