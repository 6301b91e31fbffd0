// Prometheus metrics of the router. Histograms of the token path are gathered locally and flushed a few times a second,
// for each Observe of prometheus-cpp takes a mutex.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/metrics.h"
#include "router/core/router_core.h"

namespace agentserve::router {

// A histogram of one thread, flushed into the shared one.
class LocalHistogram {
 public:
  LocalHistogram(prometheus::Histogram& to, std::vector<double> bounds);
  // `count` observations of `value`.
  void Observe(double value, double count = 1);
  void Flush();

 private:
  prometheus::Histogram& to_;
  const std::vector<double> bounds_;
  std::vector<double> counts_;
  double sum_ = 0;
  bool dirty_ = false;
};

// Used by the loop thread only, except `registry`.
class RouterMetrics {
 public:
  explicit RouterMetrics(const std::string& model_id);
  base::Metrics& registry() { return metrics_; }

  void OnRequestEnd(const RequestDone& done);
  // A refusal before or at submission.
  void OnRefused(std::string_view reason);
  void OnFinishReason(FinishReason reason);
  // Gap between steps of a worker, felt by each of its `tokens`.
  void OnStepGap(double seconds, double tokens) { itl_.Observe(seconds, tokens); }
  void OnTransfer(const std::string& path, uint64_t bytes, double gb_per_s, double exposed_ms);
  void OnTurn(double seconds) { turn_.Observe(seconds); }
  // Gauges and counters from the core; a few times a second.
  void Publish(const RouterCore& core, TimeNs now);

 private:
  prometheus::Counter& Ended(const std::string& reason);

  base::Metrics metrics_;
  prometheus::Histogram& h_ttft_;
  prometheus::Histogram& h_itl_;
  prometheus::Histogram& h_turn_;
  LocalHistogram itl_, turn_;
  prometheus::Histogram& e2e_;
  prometheus::Histogram& queue_time_;
  prometheus::Histogram& prompt_tokens_;
  prometheus::Histogram& output_tokens_;
  std::array<prometheus::Counter*, kNumEndReasons> ended_{};
  void PublishIdentity(const RouterCore& core);
  void PublishDecisions(const RouterCore& core);

  CoreStats last_;
  RetentionStats last_kv_;
  IdentityStats last_identity_;
  DecisionStats last_decisions_;
};

}  // namespace agentserve::router
