// A plain HTTP/1.1 client for tests: one request, one connection, whole reply.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace agentserve::testing {

struct HttpReply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunked transfer already undone
};

// Sends to 127.0.0.1:port and reads until the server closes (the request carries `Connection: close`). A server that
// answers before it has read the whole body is fine.
absl::StatusOr<HttpReply> Http(int port, const std::string& method, const std::string& path, const std::string& body,
                               const std::map<std::string, std::string>& headers = {}, int timeout_ms = 30000);

}  // namespace agentserve::testing
