// Asks a router why.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"

namespace agentserve::tools {

struct WhyQuery {
  std::string router;   // host:port
  std::string request;  // any of its ids; empty = a list of the newest
  std::string tenant, program;
  uint32_t limit = 0;
  bool json = false;
  base::TimeNs timeout = 10 * base::kNsPerSecond;
};

// Text or JSON to be printed. NOT_FOUND, UNAVAILABLE; errors name the address.
absl::StatusOr<std::string> AskWhy(const WhyQuery& query);

}  // namespace agentserve::tools
