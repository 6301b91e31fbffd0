#include "tools/workload/arrivals.h"

#include <cmath>

#include "base/strings.h"

namespace agentserve::workload {
namespace {

constexpr struct {
  ArrivalKind kind;
  const char* name;
} kNames[] = {{ArrivalKind::kPoisson, "poisson"},
              {ArrivalKind::kGamma, "gamma"},
              {ArrivalKind::kOnOff, "onoff"},
              {ArrivalKind::kClosed, "closed"},
              {ArrivalKind::kTrace, "trace"}};

// Squared coefficient of variation of the gamma gaps; 4 is in the range seen in production traces (BurstGPT,
// 2401.17644).
constexpr double kCv2 = 4;
constexpr double kOnShare = 1.0 / 3;
constexpr double kOnSeconds = 20;  // mean length of a burst

}  // namespace

absl::StatusOr<ArrivalKind> ParseArrivals(const std::string& name) {
  for (const auto& n : kNames) {
    if (name == n.name) return n.kind;
  }
  return absl::InvalidArgumentError(
      base::ToAbsl(base::StrCat("unknown arrivals \"", name, "\"; known are: poisson, gamma, onoff, closed, trace")));
}

const char* ArrivalName(ArrivalKind k) {
  for (const auto& n : kNames) {
    if (k == n.kind) return n.name;
  }
  return "?";
}

double ArrivalGaps::Exponential() { return -std::log(1 - rng_.Uniform()); }

// Ahrens and Dieter's GS for shapes below 1.
double ArrivalGaps::Gamma(double shape) {
  const double b = 1 + shape / 2.718281828459045;
  for (;;) {
    const double p = b * rng_.Uniform();
    const double e = Exponential();
    if (p <= 1) {
      const double x = std::pow(p, 1 / shape);
      if (x <= e) return x;
    } else {
      const double x = -std::log((b - p) / shape);
      if ((1 - shape) * std::log(x) <= e) return x;
    }
  }
}

double ArrivalGaps::OnOff() {
  double gap = Exponential() * kOnShare / rate_;
  double waited = 0;
  while (gap > on_left_) {
    gap -= on_left_;
    waited += on_left_ + Exponential() * kOnSeconds * (1 - kOnShare) / kOnShare;
    on_left_ = Exponential() * kOnSeconds;
  }
  on_left_ -= gap;
  return waited + gap;
}

double ArrivalGaps::Next() {
  switch (kind_) {
    case ArrivalKind::kGamma:
      return Gamma(1 / kCv2) * kCv2 / rate_;
    case ArrivalKind::kOnOff:
      return OnOff();
    default:
      return Exponential() / rate_;
  }
}

}  // namespace agentserve::workload
