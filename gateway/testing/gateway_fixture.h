// A fake router and a real gateway in one process.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "gateway/gateway.h"
#include "gateway/http/server.h"
#include "gateway/testing/fake_router.h"
#include "gateway/testing/raw_client.h"

namespace agentserve::gateway::testing {

class GatewayFixture {
 public:
  // `adjust` changes the configuration before the start. With `wait_ready`, returns once the router was heard.
  explicit GatewayFixture(const std::function<void(GatewayConfig&)>& adjust = nullptr, bool wait_ready = true);
  ~GatewayFixture();

  FakeRouter& router() { return router_; }
  Gateway& gateway() { return *gateway_; }
  HttpServer& server() { return *server_; }
  int port() const { return port_; }
  int router_port() const { return router_port_; }
  // One request on a connection of its own.
  RawResponse Ask(const std::string& request, int timeout_ms = 5000);
  std::string Metrics();
  // Polls until true, at most `ms`.
  static bool Eventually(const std::function<bool()>& condition, int ms = 5000);

 private:
  FakeRouter router_;
  int router_port_ = 0;
  GatewayConfig config_;
  base::MonotonicClock clock_;
  boost::asio::io_context io_;
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<HttpServer> server_;
  int port_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace agentserve::gateway::testing
