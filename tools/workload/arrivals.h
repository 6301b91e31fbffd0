// When programs start, from a seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/rng.h"

namespace agentserve::workload {

enum class ArrivalKind : uint8_t {
  kPoisson,
  kGamma,   // bursty: gaps of a gamma distribution with squared coefficient of variation 4
  kOnOff,   // bursty: Poisson at 3 times the rate for a third of the time
  kClosed,  // so many sessions at once: the next one starts when one ends
  kTrace,   // at the programs' own times
};
absl::StatusOr<ArrivalKind> ParseArrivals(const std::string& name);
const char* ArrivalName(ArrivalKind k);

// Gaps between starts, in seconds, with mean 1 / rate.
class ArrivalGaps {
 public:
  ArrivalGaps(ArrivalKind kind, double rate, uint64_t seed) : kind_(kind), rate_(rate), rng_(seed) {}
  double Next();

 private:
  double Exponential();
  double Gamma(double shape);
  double OnOff();

  ArrivalKind kind_;
  double rate_;
  base::SplitMix64 rng_;
  double on_left_ = 0;
};

}  // namespace agentserve::workload
