// The seam between the HTTP server and what answers requests.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "gateway/http/message.h"

namespace agentserve::gateway {

// Work behind one request. All calls come on the connection's executor.
class ActiveRequest {
 public:
  virtual ~ActiveRequest() = default;
  // The client is gone, or the server gives up on it: stop all work, write nothing more. Called at most once, and never
  // after the reply ended.
  virtual void OnClientGone() = 0;
};

// Why a connection ended under a running request.
enum class GoneReason { kDisconnect, kSlowClient, kDrain };

// One request-reply exchange as its handler sees it. All calls must come on executor(). Exactly one of: Send, or
// BeginStream + Write* + End. Calls after the client is gone are ignored.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual boost::asio::any_io_executor executor() = 0;
  virtual void Send(HttpReply reply) = 0;
  // Status line and headers of a body of unknown length; they go out at once.
  virtual void BeginStream(int status, std::string_view content_type, const HeaderList& headers) = 0;
  // A piece of the body. If the client lets more than the limit pile up, the connection is closed and OnClientGone runs
  // soon after.
  virtual void Write(std::string_view bytes) = 0;
  virtual void End() = 0;
  // Set when OnClientGone is called.
  virtual GoneReason gone_reason() const = 0;
};

// Answers requests. Thread-safe: connections call it from all I/O threads.
class RequestHandler {
 public:
  virtual ~RequestHandler() = default;
  // Before the body is read: a reply refuses the request.
  virtual std::optional<HttpReply> CheckHead(const HttpRequest& head) = 0;
  // The whole request. The reply may come now or later; what is returned (may be null) hears of a lost client.
  virtual std::shared_ptr<ActiveRequest> Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) = 0;
  // A reply that the HTTP layer made itself (malformed, too large, too slow, ..) for `status`; adds the error body.
  virtual HttpReply ProtocolError(int status, const std::string& detail) = 0;
};

}  // namespace agentserve::gateway
