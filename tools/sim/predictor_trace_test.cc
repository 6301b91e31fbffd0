// The output-length predictor on recorded coding agents: its error beside that of predicting the mean, call by call in
// order of arrival. Needs the shared traces; says so where they are absent.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "router/core/predictor.h"
#include "tools/workload/import.h"

namespace agentserve::router {
namespace {

TEST(PredictorTraceTest, BeatsTheMeanOnCodingAgents) {
  const char* data = std::getenv("AGENTSERVE_SHARED_DATA");
  const std::string file = std::string(data == nullptr ? "../shared/data" : data) + "/traces/weka-dev.jsonl.gz";
  if (!std::filesystem::exists(file)) {
    GTEST_SKIP() << file << " is not here; set AGENTSERVE_SHARED_DATA to the folder that holds traces/";
  }
  const auto w = workload::ImportCoding(file, {});
  ASSERT_TRUE(w.ok()) << std::string(w.status().message());
  OutputPredictor predictor(128);
  uint32_t most_calls = 0;
  for (const workload::Program& p : w->programs) most_calls = std::max<uint32_t>(most_calls, uint32_t(p.calls.size()));
  // Programs side by side: call k of each before call k + 1 of any.
  std::vector<LengthSummary> outputs(w->programs.size());
  for (uint32_t k = 0; k < most_calls; ++k) {
    for (size_t i = 0; i < w->programs.size(); ++i) {
      const workload::Program& p = w->programs[i];
      if (k >= p.calls.size()) continue;
      const workload::Call& c = p.calls[k];
      const uint32_t before = k == 0 ? 0 : std::min(c.in - 1, p.calls[k - 1].in + p.calls[k - 1].out);
      CallFeatures f;
      f.tenant = "t";
      f.workflow_class = w->classes[p.workflow];
      f.tool_name = w->tools[c.tool];
      f.tool_turn = k > 0 && !c.user_turn;
      f.prompt_tokens = c.in;
      f.new_tokens = c.in - before;
      f.max_tokens = 8192;
      f.step = k;
      f.program = outputs[i];
      predictor.Learn(f, predictor.Predict(f), c.out);
      outputs[i].Add(std::log1p(c.out), 0.2);
    }
  }
  const PredictorStats& s = predictor.stats();
  const auto n = static_cast<double>(s.calls - 1);
  std::printf("%llu calls: MAE %.1f tokens (mean: %.1f), log RMSE %.3f (mean: %.3f), within q90 %.3f, thirds %.3f\n",
              static_cast<unsigned long long>(s.calls), s.abs_error / n, s.abs_error_mean / n,
              std::sqrt(s.sq_log_error / n), std::sqrt(s.sq_log_error_mean / n), static_cast<double>(s.within_q90) / n,
              static_cast<double>(s.class_right) / n);
  EXPECT_LT(s.abs_error, s.abs_error_mean);
  EXPECT_LT(s.sq_log_error, s.sq_log_error_mean);
}

}  // namespace
}  // namespace agentserve::router
