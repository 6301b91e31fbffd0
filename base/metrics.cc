#include "base/metrics.h"

#include <prometheus/text_serializer.h>

#include <mutex>

#include "base/strings.h"

namespace agentserve::base {

Metrics::Metrics(Labels constant_labels)
    : constant_labels_(std::move(constant_labels)), registry_(std::make_shared<prometheus::Registry>()) {}

Metrics::~Metrics() {
  if (exposer_ == nullptr) return;
  static auto* const parked = new std::vector<std::unique_ptr<prometheus::Exposer>>;  // never destroyed
  static auto* const mu = new std::mutex;
  const std::lock_guard lock(*mu);
  parked->push_back(std::move(exposer_));
}

prometheus::Counter& Metrics::Counter(const std::string& name, const std::string& help, const Labels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Labels(constant_labels_).Register(*registry_).Add(labels);
}

prometheus::Gauge& Metrics::Gauge(const std::string& name, const std::string& help, const Labels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Labels(constant_labels_).Register(*registry_).Add(labels);
}

prometheus::Histogram& Metrics::Histogram(const std::string& name, const std::string& help, std::vector<double> buckets,
                                          const Labels& labels) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Labels(constant_labels_)
      .Register(*registry_)
      .Add(labels, std::move(buckets));
}

absl::StatusOr<int> Metrics::Listen(const std::string& host, int port) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(StrCat(host, ":", port), 1);
    exposer_->RegisterCollectable(registry_);
    return exposer_->GetListeningPorts().front();
  } catch (const std::exception& e) {
    return absl::UnavailableError(StrCat("cannot serve metrics on ", host, ":", port, " (", e.what(),
                                         "): is the port in use? choose another with --metrics-port"));
  }
}

std::string Metrics::Render() const { return prometheus::TextSerializer().Serialize(registry_->Collect()); }

std::vector<double> TtftBuckets() {
  return {.001, .002, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160};
}
std::vector<double> ItlBuckets() {
  return {.0005, .001, .0015, .002, .003, .004, .006, .008, .01, .015, .02, .03, .04, .06, .08, .1, .2, .4, .8, 2, 8};
}
std::vector<double> E2eBuckets() { return {.01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1200}; }
std::vector<double> TokenCountBuckets() {
  return {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 131072};
}

}  // namespace agentserve::base
