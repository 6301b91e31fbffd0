// Accepts connections and runs them on a few I/O threads.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/http/connection.h"

namespace agentserve::gateway {

// Thread-safe after Listen.
class HttpServer {
 public:
  // `handler`, `metrics` and `clock` must outlive this object.
  HttpServer(boost::asio::io_context& io, const HttpLimits& limits, RequestHandler* handler, GatewayMetrics* metrics,
             const base::Clock* clock);

  // Binds and starts to accept. Port 0 = any free one. Returns the port. ALREADY_EXISTS: the port is in use.
  absl::StatusOr<int> Listen(const std::string& host, int port);
  // Accepts no more, closes idle connections, lets the others finish their reply.
  void BeginDrain();
  // Ends all connections now.
  void AbortAll();
  size_t connections() const;

 private:
  void Accept();
  void OnAccept(boost::system::error_code ec, boost::asio::ip::tcp::socket socket);
  void Remove(Connection* connection);

  // Beyond the limit this many are still told so; the rest are closed without a word.
  static constexpr size_t kMaxRefusals = 64;

  boost::asio::io_context& io_;
  std::shared_ptr<HttpShared> shared_;
  boost::asio::ip::tcp::acceptor acceptor_;
  boost::asio::steady_timer backoff_;
  mutable std::mutex mutex_;  // guards open_
  std::map<Connection*, std::weak_ptr<Connection>> open_;
};

}  // namespace agentserve::gateway
