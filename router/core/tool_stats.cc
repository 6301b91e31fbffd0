#include "router/core/tool_stats.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace agentserve::router {
namespace {

// Start of bucket `b` in ms; bucket 0 starts at 0.
double BucketStart(int b) { return b == 0 ? 0 : std::exp2(0.5 * (b - 1)); }

int BucketOf(double ms) {
  if (!(ms >= 1)) return 0;
  return std::min(GapHistogram::kBuckets - 1, 1 + static_cast<int>(2 * std::log2(ms)));
}

double NormalTail(double z) { return 0.5 * std::erfc(z / std::sqrt(2.0)); }

std::string LevelKey(std::string_view workflow_class, std::string_view tool, char level) {
  std::string key(1, level);
  key.append(workflow_class);
  key.push_back('\0');
  key.append(tool);
  return key;
}

}  // namespace

// ---- GapHistogram ----

void GapHistogram::Add(double gap_ms, double weight) {
  count_[static_cast<size_t>(BucketOf(gap_ms))] += static_cast<float>(weight);
  returned_ += weight;
  Fade();
}

void GapHistogram::AddGone(double weight) {
  gone_ += weight;
  Fade();
}

void GapHistogram::Fade() {
  if (weight() < kMostWeight) return;
  returned_ = 0;
  for (float& c : count_) {
    c *= 0.5F;
    returned_ += static_cast<double>(c);
  }
  gone_ *= 0.5;
}

double GapHistogram::ReturnsAfter(double elapsed_ms) const {
  const int first = BucketOf(elapsed_ms);
  double sum = 0;
  for (int b = first + 1; b < kBuckets; ++b) sum += static_cast<double>(count_[static_cast<size_t>(b)]);
  // The open last bucket is given one more octave; past it nothing is expected any more.
  const double start = BucketStart(first);
  const double end = first + 1 < kBuckets ? BucketStart(first + 1) : 2 * start;
  const double left = std::clamp((end - elapsed_ms) / (end - start), 0.0, 1.0);
  return sum + left * static_cast<double>(count_[static_cast<size_t>(first)]);
}

double GapHistogram::Survival(double elapsed_ms) const {
  return weight() <= 0 ? 1 : (ReturnsAfter(elapsed_ms) + gone_) / weight();
}

double GapHistogram::ProbWithin(double elapsed_ms, double within_ms) const {
  const double after = ReturnsAfter(elapsed_ms);
  const double all = after + gone_;
  if (all <= 0) return 0;
  return std::clamp((after - ReturnsAfter(elapsed_ms + within_ms)) / all, 0.0, 1.0);
}

double GapHistogram::Quantile(double q, double elapsed_ms) const {
  const double after = ReturnsAfter(elapsed_ms);
  if (after <= 0) return elapsed_ms;
  double left = q * after;
  double from = elapsed_ms;
  for (int b = BucketOf(elapsed_ms); b < kBuckets; ++b) {
    const double start = BucketStart(b);
    const double end = b + 1 < kBuckets ? BucketStart(b + 1) : 2 * start;
    const double here =
        static_cast<double>(count_[static_cast<size_t>(b)]) * std::clamp((end - from) / (end - start), 0.0, 1.0);
    if (here > 0 && left <= here) return from + (end - from) * left / here;
    left -= here;
    from = std::max(from, end);
  }
  return from;
}

// ---- GapSummary ----

void GapSummary::Add(double gap_ms) {
  const double x = std::log1p(std::max(gap_ms, 0.0));
  ++count;
  const double d = x - log_mean;
  log_mean += d / count;
  log_m2 += d * (x - log_mean);
}

double GapSummary::ProbWithin(double elapsed_ms, double within_ms) const {
  // One or two samples say little of the spread: half an e-fold is added as if it had been seen once.
  const double sigma = std::sqrt((log_m2 + 0.25) / (count + 1.0));
  const double tail = NormalTail((std::log1p(elapsed_ms) - log_mean) / sigma);
  if (tail < 1e-9) return 0;
  return std::clamp(1 - NormalTail((std::log1p(elapsed_ms + within_ms) - log_mean) / sigma) / tail, 0.0, 1.0);
}

// ---- ToolStats ----

GapHistogram& ToolStats::Touch(std::string key) {
  if (auto it = index_.find(key); it != index_.end()) {
    lru_.splice(lru_.begin(), lru_, it->second);
    return lru_.front().histogram;
  }
  if (index_.size() >= most_) {
    index_.erase(lru_.back().key);
    lru_.pop_back();
  }
  lru_.push_front({std::move(key), {}});
  index_.emplace(lru_.front().key, lru_.begin());
  return lru_.front().histogram;
}

template <typename F>
void ToolStats::ForEachLevel(std::string_view workflow_class, std::string_view tool, F f) {
  f(&all_);
  if (!workflow_class.empty()) f(&Touch(LevelKey(workflow_class, "", 'c')));
  if (!tool.empty()) f(&Touch(LevelKey("", tool, 't')));
  if (!workflow_class.empty() && !tool.empty()) f(&Touch(LevelKey(workflow_class, tool, 'b')));
}

void ToolStats::OnReturn(std::string_view workflow_class, std::string_view tool, double gap_ms) {
  ForEachLevel(workflow_class, tool, [&](GapHistogram* h) { h->Add(gap_ms); });
}

void ToolStats::OnGone(std::string_view workflow_class, std::string_view tool) {
  ForEachLevel(workflow_class, tool, [&](GapHistogram* h) { h->AddGone(); });
}

const GapHistogram& ToolStats::Best(std::string_view workflow_class, std::string_view tool) const {
  const std::string keys[] = {LevelKey(workflow_class, tool, 'b'), LevelKey("", tool, 't'),
                              LevelKey(workflow_class, "", 'c')};
  for (const std::string& key : keys) {
    auto it = index_.find(key);
    if (it != index_.end() && it->second->histogram.weight() >= kEnough) return it->second->histogram;
  }
  return all_;
}

void ToolStats::CheckInvariants() const {
  AS_CHECK_EQ(index_.size(), lru_.size());
  AS_CHECK_LE(index_.size(), most_);
}

double ProbReturnWithin(const GapHistogram& tool, const GapSummary& program, double elapsed_ms, double within_ms) {
  const double prior = tool.ProbWithin(elapsed_ms, within_ms);
  if (program.count == 0) return prior;
  const double own = program.ProbWithin(elapsed_ms, within_ms);
  return (program.count * own + kPriorGaps * prior) / (program.count + kPriorGaps);
}

}  // namespace agentserve::router
