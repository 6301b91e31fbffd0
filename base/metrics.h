// Prometheus metrics of one process. Families are created once at start; labels are few and fixed. Naming:
// agentserve_*, snake case, units last, `_total` on counters, no colons. prometheus-cpp's Observe takes a mutex:
// aggregate per step.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::base {

using Labels = std::map<std::string, std::string>;

// Owns a registry and, if asked, an HTTP listener for `GET /metrics`. Thread-safe after construction.
class Metrics {
 public:
  explicit Metrics(Labels constant_labels);
  // Returns at once. The listener, whose threads take up to 2 s to stop, lives on until the process exits; it then
  // serves an empty page.
  ~Metrics();

  // Get-or-create. References stay valid for the life of this object.
  prometheus::Counter& Counter(const std::string& name, const std::string& help, const Labels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help, std::vector<double> buckets,
                                   const Labels& labels = {});

  // Serves the registry on host:port (port 0 = any free one). Returns the port in use.
  absl::StatusOr<int> Listen(const std::string& host, int port);
  // Text format 0.0.4.
  std::string Render() const;
  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  Labels constant_labels_;
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

// Bucket bounds in seconds.
std::vector<double> TtftBuckets();        // 1 ms .. 160 s
std::vector<double> ItlBuckets();         // 0.5 ms .. 8 s
std::vector<double> E2eBuckets();         // 10 ms .. 1200 s
std::vector<double> TokenCountBuckets();  // 1-2-5 series to 131072

}  // namespace agentserve::base
