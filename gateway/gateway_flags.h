// Command line and environment of agentserve-gateway.
#pragma once

#include <optional>
#include <string>

#include "gateway/config.h"

namespace agentserve::gateway {

struct GatewayOptions {
  GatewayConfig config;
  std::string log_level = "info";
  bool log_json = false;
};

// Fills `out`; a value means: exit now with this code (help, version, bad flags).
std::optional<int> ParseGatewayFlags(int argc, const char* const* argv, GatewayOptions* out);

}  // namespace agentserve::gateway
