// An HTTP request and reply as plain values.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace agentserve::gateway {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // upper case
  std::string path;    // decoded, without query
  std::string query;   // raw, without '?'
  HeaderList headers;  // names in lower case, in order of arrival
  std::string body;
  // When the request was complete; TTFT and e2e count from here.
  base::TimeNs received_ns = 0;

  // First header of that name (lower case), or "".
  std::string_view Header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return {};
  }
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HeaderList headers;
};

}  // namespace agentserve::gateway
