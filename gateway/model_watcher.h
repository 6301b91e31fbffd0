// Knows the served model and whether the router can serve, by asking it again and again.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <memory>
#include <mutex>
#include <string>

#include "gateway/metrics.h"
#include "gateway/openai/request.h"
#include "gateway/router_client.h"

namespace agentserve::gateway {

struct ModelState {
  bool reachable = false;  // the last question was answered
  bool ready = false;      // a worker can serve
  ModelFacts facts;        // kept from the last answer, also while unreachable
  std::string problem;     // why not ready, for people
};

// Thread-safe.
class ModelWatcher : public std::enable_shared_from_this<ModelWatcher> {
 public:
  ModelWatcher(boost::asio::io_context& io, RouterClient* router, GatewayMetrics* metrics);
  void Start();
  void Stop();
  ModelState Get() const;
  // Something failed: ask now instead of at the next turn.
  void Poke();

 private:
  void Ask();
  void OnAnswer(const grpc::Status& status, const pb::GetModelResponse& response);

  boost::asio::strand<boost::asio::io_context::executor_type> strand_;
  boost::asio::steady_timer timer_;
  RouterClient* router_;
  GatewayMetrics* metrics_;
  bool asking_ = false, stopped_ = false;  // on the strand
  mutable std::mutex mutex_;               // guards state_
  ModelState state_;
};

}  // namespace agentserve::gateway
