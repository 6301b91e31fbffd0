#include "router/core/program_size.h"

#include <algorithm>
#include <cmath>

namespace agentserve::router {

double SizeHistogram::BucketStart(int b) { return b == 0 ? 0 : 16 * std::exp2(0.5 * (b - 1)); }

int SizeHistogram::BucketOf(double cost) {
  if (!(cost >= 16)) return 0;
  return std::min(kBuckets - 1, 1 + static_cast<int>(2 * std::log2(cost / 16)));
}

void SizeHistogram::OnProgress(double from, double to) {
  if (from <= 0) {
    entered_[0] += 1;
    seen_ += 1;
  }
  for (int b = BucketOf(from) + 1; b <= BucketOf(to); ++b) entered_[static_cast<size_t>(b)] += 1;
  stale_ = true;
  if (seen_ < kMostSeen) return;
  seen_ *= 0.5;
  for (double& e : entered_) e *= 0.5;
  for (double& e : ended_) e *= 0.5;
}

void SizeHistogram::OnEnd(double total) {
  ended_[static_cast<size_t>(BucketOf(total))] += 1;
  ++ends_;
  stale_ = true;
}

void SizeHistogram::Refresh() const {
  stale_ = false;
  // From the end: residual(b) = expected stay in b + P(passes b) * residual(b + 1).
  double after = 0;
  bool known = false;
  for (int b = kBuckets - 1; b >= 0; --b) {
    const auto i = static_cast<size_t>(b);
    const double start = BucketStart(b), width = BucketStart(b + 1) - start;
    // Few programs: their share of ends is drawn to 1/6, the hazard of half octaves of a Pareto tail with index 1/2.
    const double hazard = (ended_[i] + 0.5) / (entered_[i] + 3);
    if (!known) {
      if (entered_[i] < 3) {
        residual_[i] = 0;
        continue;
      }
      known = true;
      after = BucketStart(b + 1);
    }
    const double h = std::clamp(hazard, 0.0, 1.0);
    residual_[i] = h * width / 2 + (1 - h) * (width + after);
    after = residual_[i];
  }
}

double SizeHistogram::Residual(double attained, double fallback) const {
  if (stale_) Refresh();
  const int b = BucketOf(attained);
  const double here = residual_[static_cast<size_t>(b)];
  if (here <= 0) return fallback;
  const double start = BucketStart(b), end = BucketStart(b + 1);
  const double next = b + 1 < kBuckets ? residual_[static_cast<size_t>(b) + 1] : 0;
  const double t = std::clamp((attained - start) / (end - start), 0.0, 1.0);
  return here + t * ((next > 0 ? next : end) - here);
}

SizeHistogram* ProgramSizes::Of(std::string_view workflow_class) {
  if (auto it = classes_.find(workflow_class); it != classes_.end()) return &it->second;
  if (classes_.size() >= most_) return nullptr;
  return &classes_[std::string(workflow_class)];
}

void ProgramSizes::OnProgress(std::string_view workflow_class, double from, double to) {
  all_.OnProgress(from, to);
  if (SizeHistogram* h = Of(workflow_class); h != nullptr) h->OnProgress(from, to);
}

void ProgramSizes::OnEnd(std::string_view workflow_class, double total) {
  all_.OnEnd(total);
  if (SizeHistogram* h = Of(workflow_class); h != nullptr) h->OnEnd(total);
}

double ProgramSizes::Residual(std::string_view workflow_class, double attained, double fallback) const {
  auto it = classes_.find(workflow_class);
  if (it != classes_.end() && it->second.ended() >= kEnough) return it->second.Residual(attained, fallback);
  return all_.ended() >= kEnough ? all_.Residual(attained, fallback) : fallback;
}

}  // namespace agentserve::router
