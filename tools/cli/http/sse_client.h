// HTTP/1.1 requests whose answer may be a stream of server-sent events. Coroutines on one io_context; plain TCP.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <utility>  // before Asio: GCC 12 needs std::exchange in its coroutine headers
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "tools/cli/http/url.h"

namespace agentserve::tools {

struct HttpRequest {
  std::string method = "POST";
  std::string target;  // path with query
  std::string body;    // JSON
  std::string api_key;
  std::vector<std::pair<std::string, std::string>> headers;
  // For the whole exchange.
  base::TimeNs timeout = 120 * base::kNsPerSecond;
};

struct HttpOutcome {
  // Set if no complete answer came: connecting, sending, reading, timeout, an event that is too long.
  absl::Status transport;
  int status = 0;
  // The answer if it was no event stream; at most 1 MiB of it.
  std::string body;
  // The consumer stopped it.
  bool stopped = false;

  bool ok() const { return transport.ok() && status >= 200 && status < 300; }
  // One line for people: what went wrong, with the server's own message.
  std::string Explain() const;
};

// First address of the URL's host. Blocks on name resolution.
absl::StatusOr<boost::asio::ip::tcp::endpoint> ResolveUrl(const Url& url);

// One request on its own connection. `on_event` gets the data of each event as it arrives ("[DONE]" too); false ends
// the exchange by closing the connection.
boost::asio::awaitable<HttpOutcome> Exchange(boost::asio::ip::tcp::endpoint server, Url url, HttpRequest request,
                                             std::function<bool(std::string_view data)> on_event);

// The same, blocking, for programs that do one thing at a time.
HttpOutcome ExchangeBlocking(const Url& url, HttpRequest request, std::function<bool(std::string_view data)> on_event);

}  // namespace agentserve::tools
