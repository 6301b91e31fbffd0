// A unary call of the router on behalf of a client that may leave.
#pragma once

#include <memory>

#include "gateway/http/exchange.h"
#include "gateway/router_client.h"

namespace agentserve::gateway {

class UnaryActive final : public ActiveRequest {
 public:
  void OnClientGone() override {
    gone = true;
    if (handle) handle->Cancel();
  }
  std::shared_ptr<UnaryHandle> handle;
  bool gone = false;
};

}  // namespace agentserve::gateway
