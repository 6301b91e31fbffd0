#include "router/core/predictor.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace agentserve::router {
namespace {

// Calls of one tenant before its own weights are used.
constexpr uint32_t kOwnFrom = 64;
// Forgetting per call: weights follow a change within about a thousand calls.
constexpr double kForget = 0.999;
// Inputs that never vary would let their variance grow without bound under forgetting.
constexpr double kMostTrace = 400;

double Log1p(double v) { return std::log1p(std::max(v, 0.0)); }

std::string GroupKey(std::string_view tenant, std::string_view workflow_class, std::string_view tool) {
  std::string key(tenant);
  key.push_back('\0');
  key.append(workflow_class);
  key.push_back('\0');
  key.append(tool);
  return key;
}

}  // namespace

void LengthSummary::Add(double log_output, double slowest) {
  ++count;
  const auto rate = static_cast<float>(std::max(1.0 / count, slowest));
  const auto x = static_cast<float>(log_output);
  const float d = x - log_mean;
  log_mean += rate * d;
  log_var = (1 - rate) * (log_var + rate * d * d);
  log_last = x;
}

double Prediction::Median() const { return std::clamp(std::expm1(log_mean), 1.0, double(most)); }

double Prediction::Mean() const {
  return std::clamp(std::expm1(log_mean + std::min(sigma * sigma, 4.0) / 2), 1.0, double(most));
}

double Prediction::Above(double z) const { return std::clamp(std::expm1(log_mean + sigma * z), 1.0, double(most)); }

OutputPredictor::Model::Model() {
  weight[0] = 1;  // the first input is the prediction without knowledge
  for (size_t i = 0; i < kDim; ++i) p[i][i] = 1;
}

LengthSummary OutputPredictor::Group(std::string_view tenant, std::string_view workflow_class,
                                     std::string_view tool) const {
  auto it = groups_.find(GroupKey(tenant, workflow_class, tool));
  return it == groups_.end() ? LengthSummary() : it->second;
}

OutputPredictor::Vector OutputPredictor::Inputs(const CallFeatures& f) const {
  const double bound = std::log1p(0.8 * f.max_tokens);
  const LengthSummary all = Group(f.tenant, "", "");
  const LengthSummary by_class = f.workflow_class.empty() ? all : Group(f.tenant, f.workflow_class, "");
  // Each level is drawn towards the one above it by a few samples' weight.
  auto draw = [](const LengthSummary& s, double up, double weight) {
    return (s.count * double(s.log_mean) + weight * up) / (s.count + weight);
  };
  const double none = std::log1p(std::min(prior_output_, 0.8 * f.max_tokens));
  const double base = draw(all, none, 1);
  const double of_class = draw(by_class, base, 4);
  const LengthSummary tool = f.tool_name.empty() ? LengthSummary() : Group(f.tenant, f.workflow_class, f.tool_name);
  const double of_tool = draw(tool, of_class, 8);
  const double of_program = draw(f.program, of_class, 2);
  const double last = f.program.count > 0 ? double(f.program.log_last) : of_program;
  // Inputs after the first are differences, so that zero weights mean "as the class".
  return {std::min(of_class, bound),
          1,
          of_program - of_class,
          of_tool - of_class,
          last - of_program,
          (Log1p(f.prompt_tokens) - 7) / 4,
          (Log1p(f.new_tokens) - 5) / 4,
          f.tools_offered > 0 ? 1.0 : 0.0,
          f.tool_turn ? 1.0 : 0.0,
          (Log1p(f.step) - 2) / 4,
          f.program.count == 0 ? 1.0 : 0.0,
          f.max_tokens < 1024 ? (bound - 5) / 4 : 0.0};
}

const OutputPredictor::Model& OutputPredictor::ModelOf(std::string_view tenant) const {
  auto it = tenants_.find(tenant);
  return it != tenants_.end() && it->second.count >= kOwnFrom ? it->second : shared_;
}

Prediction OutputPredictor::Predict(const CallFeatures& f) const {
  const Vector x = Inputs(f);
  const Model& m = ModelOf(f.tenant);
  Prediction out;
  out.most = std::max(f.max_tokens, 1u);
  for (size_t i = 0; i < kDim; ++i) out.log_mean += m.weight[i] * x[i];
  out.sigma = std::sqrt(std::clamp(m.sigma2, 0.01, 4.0));
  if (f.osl_hint) {
    // Weighed by inverse variance. A hint never seen to hold is taken as one that is off by a factor of e.
    auto own = tenants_.find(f.tenant);
    const uint32_t seen = own == tenants_.end() ? 0 : own->second.hints;
    const double bias = seen == 0 ? 0 : own->second.hint_bias;
    const double var = seen == 0 ? 1.0 : std::max(0.01, (own->second.hint_var * seen + 2.0) / (seen + 2));
    const double share = out.sigma * out.sigma / (out.sigma * out.sigma + var);
    out.log_mean += share * (Log1p(*f.osl_hint) + bias - out.log_mean);
    out.sigma *= std::sqrt(1 - share);
  }
  out.log_mean = std::clamp(out.log_mean, std::log(2.0), std::log1p(double(out.most)));
  return out;
}

Difficulty OutputPredictor::Classify(double predicted_output) const {
  const double x = Log1p(predicted_output);
  // Before anything is known: a short answer and a page of text.
  const bool cold = predicted_.total < 16;
  const double low = cold ? std::log(101.0) : predicted_.At(1.0 / 3);
  const double high = cold ? std::log(401.0) : predicted_.At(2.0 / 3);
  return x <= low ? Difficulty::kEasy : x <= high ? Difficulty::kMedium : Difficulty::kHard;
}

// Recursive least squares with forgetting (Haykin, Adaptive Filter Theory, ch. 10).
void OutputPredictor::Update(Model* m, const Vector& x, double error) {
  Vector px{};
  double xpx = 0;
  for (size_t i = 0; i < kDim; ++i) {
    for (size_t j = 0; j < kDim; ++j) px[i] += m->p[i][j] * x[j];
    xpx += x[i] * px[i];
  }
  double trace = 0;
  for (size_t i = 0; i < kDim; ++i) trace += m->p[i][i];
  const double forget = trace < kMostTrace ? kForget : 1;
  const double gain = 1 / (forget + xpx);
  for (size_t i = 0; i < kDim; ++i) {
    m->weight[i] += gain * px[i] * error;
    for (size_t j = 0; j < kDim; ++j) m->p[i][j] = (m->p[i][j] - gain * px[i] * px[j]) / forget;
  }
  ++m->count;
  const double rate = std::max(1.0 / (m->count + 1), 1.0 / 256);
  m->sigma2 += rate * (error * error - m->sigma2);
}

void OutputPredictor::LearnHint(Model* m, const CallFeatures& f, double log_output) {
  if (!f.osl_hint) return;
  const double d = log_output - Log1p(*f.osl_hint);
  ++m->hints;
  const double rate = std::max(1.0 / m->hints, 1.0 / 32);
  m->hint_bias += rate * (d - m->hint_bias);
  m->hint_var += rate * ((d - m->hint_bias) * (d - m->hint_bias) - m->hint_var);
}

void OutputPredictor::Count(const CallFeatures& f, const Prediction& predicted, uint32_t output) {
  const double log_output = Log1p(output);
  if (stats_.calls > 0) {  // the running mean knows nothing before the first call
    stats_.abs_error_mean += std::abs(output - mean_output_);
    stats_.sq_log_error_mean += (log_output - mean_log_) * (log_output - mean_log_);
    stats_.abs_error += std::abs(output - predicted.Median());
    stats_.sq_log_error += (log_output - predicted.log_mean) * (log_output - predicted.log_mean);
    stats_.within_q90 += output <= predicted.Above(kZ90);
    const double low = actual_.At(1.0 / 3), high = actual_.At(2.0 / 3);
    const Difficulty truth = log_output <= low    ? Difficulty::kEasy
                             : log_output <= high ? Difficulty::kMedium
                                                  : Difficulty::kHard;
    stats_.class_right += truth == Classify(predicted.Median());
  }
  ++stats_.calls;
  mean_output_ += (output - mean_output_) / static_cast<double>(stats_.calls);
  mean_log_ += (log_output - mean_log_) / static_cast<double>(stats_.calls);
  if (f.osl_hint) {
    ++stats_.hints;
    stats_.sq_log_error_hint += (log_output - Log1p(*f.osl_hint)) * (log_output - Log1p(*f.osl_hint));
  }
}

void OutputPredictor::Learn(const CallFeatures& f, const Prediction& predicted, uint32_t output) {
  Count(f, predicted, output);
  const double log_output = Log1p(output);
  const Vector x = Inputs(f);
  auto error = [&](const Model& m) {
    double y = 0;
    for (size_t i = 0; i < kDim; ++i) y += m.weight[i] * x[i];
    return log_output - y;
  };
  Update(&shared_, x, error(shared_));
  auto own = tenants_.find(f.tenant);
  if (own == tenants_.end() && tenants_.size() < most_tenants_) {
    own = tenants_.emplace(std::string(f.tenant), Model()).first;
  }
  if (own != tenants_.end()) {
    Update(&own->second, x, error(own->second));
    LearnHint(&own->second, f, log_output);
  }
  auto note = [&](std::string_view workflow_class, std::string_view tool) {
    const std::string key = GroupKey(f.tenant, workflow_class, tool);
    auto it = groups_.find(key);
    if (it == groups_.end()) {
      if (groups_.size() >= most_groups_) return;
      it = groups_.emplace(key, LengthSummary()).first;
    }
    it->second.Add(log_output, 1.0 / 256);
  };
  note("", "");
  if (!f.workflow_class.empty()) note(f.workflow_class, "");
  if (!f.tool_name.empty()) note(f.workflow_class, f.tool_name);
  predicted_.Add(Log1p(predicted.Median()));
  actual_.Add(log_output);
}

void OutputPredictor::Thirds::Add(double log_value) {
  const auto b = static_cast<size_t>(std::clamp(log_value * 16, 0.0, double(count.size() - 1)));
  count[b] += 1;
  total += 1;
  if (total < 1024) return;
  total = 0;
  for (float& c : count) c *= 0.5F, total += c;
}

double OutputPredictor::Thirds::At(double q) const {
  double left = q * double(total);
  for (size_t b = 0; b < count.size(); ++b) {
    if (count[b] > 0 && left <= double(count[b])) return (double(b) + left / double(count[b])) / 16;
    left -= double(count[b]);
  }
  return double(count.size()) / 16;
}

void OutputPredictor::CheckInvariants() const {
  AS_CHECK_LE(tenants_.size(), most_tenants_);
  AS_CHECK_LE(groups_.size(), most_groups_);
  for (double w : shared_.weight) AS_CHECK(std::isfinite(w));
}

}  // namespace agentserve::router
