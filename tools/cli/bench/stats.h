// Figures over samples.
#pragma once

#include <cstddef>
#include <vector>

namespace agentserve::tools {

// The p-quantile (0 <= p <= 1) of ascending `sorted` by linear interpolation between the two nearest ranks, as
// numpy.percentile does; 0 if there is no sample.
double Percentile(const std::vector<double>& sorted, double p);

struct Summary {
  size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};
// All zero if there is no sample.
Summary Summarize(std::vector<double> samples);

}  // namespace agentserve::tools
