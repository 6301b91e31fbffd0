#include "gateway/http/server.h"

#include <boost/asio/dispatch.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>

#include "base/log.h"
#include "base/strings.h"

namespace agentserve::gateway {

namespace asio = boost::asio;
using asio::ip::tcp;
using base::Field;
using base::StrCat;

HttpServer::HttpServer(asio::io_context& io, const HttpLimits& limits, RequestHandler* handler, GatewayMetrics* metrics,
                       const base::Clock* clock)
    : io_(io),
      shared_(std::make_shared<HttpShared>()),
      acceptor_(asio::make_strand(io)),
      backoff_(acceptor_.get_executor()) {
  shared_->limits = limits;
  shared_->handler = handler;
  shared_->metrics = metrics;
  shared_->clock = clock;
}

absl::StatusOr<int> HttpServer::Listen(const std::string& host, int port) {
  boost::system::error_code ec;
  tcp::resolver resolver(io_);
  const auto found = resolver.resolve(host, StrCat(port), tcp::resolver::passive, ec);
  if (ec || found.empty()) {
    return absl::InvalidArgumentError(StrCat("cannot resolve --host ", host, ": ", ec.message()));
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  const auto failed = [&](std::string_view what) {
    const std::string text = StrCat("cannot ", what, " ", host, ":", port, ": ", ec.message(),
                                    ec == asio::error::address_in_use ? "; choose another --port" : "");
    return ec == asio::error::address_in_use ? absl::AlreadyExistsError(text) : absl::UnavailableError(text);
  };
  acceptor_.open(endpoint.protocol(), ec);
  if (ec) return failed("open a socket for");
  acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
  acceptor_.bind(endpoint, ec);
  if (ec) return failed("bind");
  acceptor_.listen(1024, ec);
  if (ec) return failed("listen on");
  const int bound = acceptor_.local_endpoint(ec).port();
  asio::post(acceptor_.get_executor(), [this] { Accept(); });
  return bound;
}

void HttpServer::Accept() {
  acceptor_.async_accept(asio::make_strand(io_),
                         [this](boost::system::error_code ec, tcp::socket socket) { OnAccept(ec, std::move(socket)); });
}

void HttpServer::OnAccept(boost::system::error_code ec, tcp::socket socket) {
  if (!acceptor_.is_open()) return;
  if (ec) {
    // Out of descriptors, mostly: the listener must survive it and not spin.
    AS_LOG(kWarn, "http.accept_failed") << Field("error", ec.message());
    backoff_.expires_after(std::chrono::milliseconds(50));
    backoff_.async_wait([this](boost::system::error_code timer_ec) {
      if (!timer_ec) Accept();
    });
    return;
  }
  size_t open = 0;
  std::shared_ptr<Connection> connection;
  {
    std::lock_guard lock(mutex_);
    open = open_.size();
    if (open < shared_->limits.connections + kMaxRefusals) {
      connection = std::make_shared<Connection>(std::move(socket), shared_, [this](Connection* c) { Remove(c); });
      open_.emplace(connection.get(), connection);
      shared_->metrics->connections.Set(static_cast<double>(open_.size()));
    }
  }
  if (connection && open < shared_->limits.connections) {
    connection->Start();
  } else {
    shared_->metrics->connections_refused.Increment();
    if (connection) {
      connection->StartRefusal(shared_->handler->ProtocolError(
          503, StrCat("the server holds its limit of ", shared_->limits.connections, " connections")));
    }
  }
  Accept();
}

void HttpServer::Remove(Connection* connection) {
  std::lock_guard lock(mutex_);
  open_.erase(connection);
  shared_->metrics->connections.Set(static_cast<double>(open_.size()));
}

void HttpServer::BeginDrain() {
  shared_->draining = true;
  asio::post(acceptor_.get_executor(), [this] {
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    backoff_.cancel();
  });
  std::lock_guard lock(mutex_);
  for (auto& [raw, weak] : open_) {
    if (auto c = weak.lock()) c->BeginDrain();
  }
}

void HttpServer::AbortAll() {
  std::lock_guard lock(mutex_);
  for (auto& [raw, weak] : open_) {
    if (auto c = weak.lock()) c->Abort();
  }
}

size_t HttpServer::connections() const {
  std::lock_guard lock(mutex_);
  return open_.size();
}

}  // namespace agentserve::gateway
