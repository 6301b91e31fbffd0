#include "gateway/testing/gateway_fixture.h"

#include <chrono>

#include "base/check.h"
#include "base/strings.h"

namespace agentserve::gateway::testing {

GatewayFixture::GatewayFixture(const std::function<void(GatewayConfig&)>& adjust, bool wait_ready) {
  router_port_ = router_.Start();
  AS_CHECK(router_port_ > 0);
  config_.router = base::StrCat("127.0.0.1:", router_port_);
  config_.port = 0;
  config_.io_threads = 2;
  if (adjust) adjust(config_);
  gateway_ = std::make_unique<Gateway>(io_, config_, &clock_);
  server_ = std::make_unique<HttpServer>(io_, config_.http, gateway_.get(), &gateway_->metrics(), &clock_);
  port_ = server_->Listen("127.0.0.1", 0).value();
  gateway_->Start();
  for (int i = 0; i < config_.io_threads; ++i) threads_.emplace_back([this] { io_.run(); });
  if (wait_ready) AS_CHECK(Eventually([this] { return gateway_->model().Get().ready; }));
}

GatewayFixture::~GatewayFixture() {
  server_->BeginDrain();
  server_->AbortAll();
  Eventually([this] { return server_->connections() == 0; });
  gateway_->model().Stop();
  router_.Stop();
  gateway_->Stop();
  io_.stop();
  for (auto& t : threads_) t.join();
}

RawResponse GatewayFixture::Ask(const std::string& request, int timeout_ms) {
  RawClient client(port_);
  client.Send(request);
  return client.Read(timeout_ms);
}

std::string GatewayFixture::Metrics() { return Ask(Get("/metrics")).body; }

bool GatewayFixture::Eventually(const std::function<bool()>& condition, int ms) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace agentserve::gateway::testing
