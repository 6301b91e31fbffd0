// Metrics of the gateway: agentserve_gateway_*. Thread-safe. All series of fixed label sets exist from the start.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>

#include "base/metrics.h"

namespace agentserve::gateway {

class GatewayMetrics {
 public:
  GatewayMetrics();

  // One finished HTTP exchange. `route` is a route pattern, never a raw path.
  void CountRequest(std::string_view route, int status);
  // Why a request was refused or failed: an error code. At most kMaxReasons different ones, then "other".
  void CountReject(std::string_view reason);
  void CountFinish(std::string_view finish_reason);
  // A body member without meaning here; only well-known names get a series of their own.
  void CountIgnoredField(std::string_view name);
  // A hint whose value was left out; one of kHintSources (agent_context.h).
  void CountIgnoredHint(std::string_view source);
  std::string Render() const { return metrics_.Render(); }

 private:
  base::Metrics metrics_;
  static constexpr size_t kMaxReasons = 64;
  std::mutex mutex_;  // guards reasons_
  std::map<std::string, prometheus::Counter*, std::less<>> reasons_;
  std::map<std::string, prometheus::Counter*, std::less<>> finishes_, ignored_, hints_;  // fixed after construction

 public:
  prometheus::Histogram& ttft_s;
  prometheus::Histogram& itl_s;
  prometheus::Histogram& e2e_s;
  prometheus::Histogram& prompt_length;
  prometheus::Histogram& output_length;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Counter& cached_tokens;
  prometheus::Gauge& in_flight;
  prometheus::Gauge& streams;
  prometheus::Gauge& connections;
  prometheus::Gauge& body_bytes;
  prometheus::Gauge& router_ready;
  prometheus::Counter& connections_refused;
  prometheus::Counter& disconnects;
  prometheus::Counter& slow_clients;
  prometheus::Counter& retries;
  prometheus::Counter& client_retries;
  prometheus::Counter& pings;
};

}  // namespace agentserve::gateway
