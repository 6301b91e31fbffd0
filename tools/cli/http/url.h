#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace agentserve::tools {

// http://host[:port][/path]; IPv6 hosts in brackets. `path` has no trailing slash and may be empty.
struct Url {
  std::string host;
  int port = 80;
  std::string path;
};

// INVALID_ARGUMENT names what is wrong with `text`; https is refused (put a TLS proxy's plain side here).
absl::StatusOr<Url> ParseUrl(const std::string& text);

}  // namespace agentserve::tools
