// How many tokens a call will generate, learned online: least squares on the logarithm, updated after each call, over
// the prompt, the tools, the class, the tool that ran and the program's own history. A caller's hint is weighed by how
// well this tenant's hints held before. Also easy / medium / hard, by thirds of what was predicted lately.
//
// Each tenant has weights of its own (once it has enough calls), so that nobody's calls spoil another's predictions.
// Single-threaded, owned by the core. Deterministic.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "router/core/policy.h"

namespace agentserve::router {

// Mean and spread of ln(1 + output), fading over the last ~32 samples.
struct LengthSummary {
  uint32_t count = 0;
  float log_mean = 0, log_var = 0, log_last = 0;
  void Add(double log_output, double slowest = 1.0 / 32);
};

// What is known of a call before it runs.
struct CallFeatures {
  std::string_view tenant, workflow_class, tool_name;
  uint32_t prompt_tokens = 0;
  uint32_t new_tokens = 0;  // prompt tokens that the program did not have in its last call
  uint32_t max_tokens = 1;
  uint32_t tools_offered = 0;
  uint32_t step = 0;
  bool tool_turn = false;  // the call brings a tool result
  std::optional<uint32_t> osl_hint;
  LengthSummary program;  // its calls before this one
};

// Quantiles of the standard normal distribution.
inline constexpr double kZ70 = 0.5244005, kZ90 = 1.2815516;

struct Prediction {
  double log_mean = 0, sigma = 1;  // of ln(1 + output)
  uint32_t most = 1;               // max_tokens
  double Median() const;
  double Mean() const;
  // `z` standard deviations above the median; see kZ70 and kZ90.
  double Above(double z) const;
};

// Errors of predictions made before the call ran, against predicting the mean of all calls so far.
struct PredictorStats {
  uint64_t calls = 0;
  double abs_error = 0, abs_error_mean = 0;  // sums of tokens, median prediction; of the running mean
  double sq_log_error = 0, sq_log_error_mean = 0;
  uint64_t within_q90 = 0;   // outputs at most Above(kZ90)
  uint64_t class_right = 0;  // difficulty as by the true output
  uint64_t hints = 0;
  double sq_log_error_hint = 0;  // of the callers' hints alone
};

class OutputPredictor {
 public:
  static constexpr int kDim = 12;
  // ~3 KiB a tenant; 64 classes x 64 tools of each.
  explicit OutputPredictor(double prior_output, size_t most_tenants = 1024, size_t most_groups = 4096)
      : prior_output_(prior_output), most_tenants_(most_tenants), most_groups_(most_groups) {}

  Prediction Predict(const CallFeatures& f) const;
  Difficulty Classify(double predicted_output) const;
  // The call ended by itself after `output` tokens.
  void Learn(const CallFeatures& f, const Prediction& predicted, uint32_t output);
  const PredictorStats& stats() const { return stats_; }
  void CheckInvariants() const;

 private:
  using Vector = std::array<double, kDim>;
  struct Model {
    uint32_t count = 0;
    double sigma2 = 1;  // of residuals
    Vector weight{};
    std::array<Vector, kDim> p{};  // inverse of the inputs' correlation
    uint32_t hints = 0;
    double hint_bias = 0, hint_var = 0;  // of ln(output) - ln(hint)
    Model();
  };
  // Histogram of ln(1 + x) in sixteenths of an e-fold; fades.
  struct Thirds {
    std::array<float, 160> count{};
    float total = 0;
    void Add(double log_value);
    double At(double q) const;
  };

  Vector Inputs(const CallFeatures& f) const;
  const Model& ModelOf(std::string_view tenant) const;
  static void Update(Model* m, const Vector& x, double error);
  void LearnHint(Model* m, const CallFeatures& f, double log_output);
  void Count(const CallFeatures& f, const Prediction& predicted, uint32_t output);
  LengthSummary Group(std::string_view tenant, std::string_view workflow_class, std::string_view tool) const;

  const double prior_output_;
  const size_t most_tenants_, most_groups_;
  Model shared_;
  std::map<std::string, Model, std::less<>> tenants_;
  std::map<std::string, LengthSummary, std::less<>> groups_;
  Thirds predicted_, actual_;
  PredictorStats stats_;
  double mean_output_ = 0, mean_log_ = 0;
};

}  // namespace agentserve::router
