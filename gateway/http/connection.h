// One client connection: HTTP/1.1 with keep-alive and pipelining, bounded in bytes and time.
//
// While a request is served the socket is read on, so that a client that leaves is noticed at once, also while its
// request waits in a queue; bytes of a next request are kept (up to one header limit).
// Thread contract: everything runs on the connection's strand.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "gateway/config.h"
#include "gateway/http/exchange.h"
#include "gateway/metrics.h"

namespace agentserve::gateway {

// Shared by all connections of a server.
struct HttpShared {
  HttpLimits limits;
  RequestHandler* handler = nullptr;
  GatewayMetrics* metrics = nullptr;
  const base::Clock* clock = nullptr;
  std::atomic<size_t> body_bytes{0};
  // Set once draining begins: replies say `connection: close`.
  std::atomic<bool> draining{false};
};

class Connection final : public Exchange, public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  // `on_closed` runs once, on the strand, when the connection is over.
  Connection(Socket socket, std::shared_ptr<HttpShared> shared, std::function<void(Connection*)> on_closed);
  ~Connection() override;

  void Start();
  // Sends `reply` without reading a request, then closes (connection limit).
  void StartRefusal(HttpReply reply);
  // Any thread. Closes the connection if it is idle; otherwise it closes after its reply.
  void BeginDrain();
  // Any thread. Ends it now.
  void Abort();

  boost::asio::any_io_executor executor() override { return strand_; }
  void Send(HttpReply reply) override;
  void BeginStream(int status, std::string_view content_type, const HeaderList& headers) override;
  void Write(std::string_view bytes) override;
  void End() override;
  GoneReason gone_reason() const override { return gone_reason_; }

 private:
  enum class State { kIdle, kHead, kBody, kServing, kLingering, kClosed };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using Error = boost::system::error_code;

  void NextRequest();
  void StartHead();
  void OnHead(Error ec);
  // Checks what the HTTP layer and the handler can refuse from the head alone.
  std::optional<HttpReply> CheckHead();
  std::optional<HttpReply> CheckFraming();
  void StartBody();
  void OnBody(Error ec);
  void Serve();
  void OnReadError(Error ec);
  // Replies and closes afterwards, if the rest of the request was not read.
  void Refuse(HttpReply reply);

  // Reads without a parser: idle, serving (to notice the end of the client) and lingering. Only while buffer_ is empty.
  void StartRawRead();
  void OnRawRead(Error ec, size_t n);

  void AppendHead(int status, std::string_view content_type, const HeaderList& headers, std::string_view framing);
  void StartWriting();
  void WriteSome();
  void OnWritten(Error ec, size_t n);
  void OnFlushed();
  void ClientGone(GoneReason reason);
  void StartLinger();
  void Close();
  void ReleaseBody();

  void SetReadDeadline(int64_t ms);  // 0 = none
  void ArmTimer();
  void OnTimer();

  boost::asio::any_io_executor strand_;
  Socket socket_;
  std::shared_ptr<HttpShared> shared_;
  std::function<void(Connection*)> on_closed_;
  boost::asio::steady_timer timer_;
  State state_ = State::kIdle;
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  HttpRequest request_;
  std::shared_ptr<ActiveRequest> active_;
  size_t reserved_body_ = 0;
  bool raw_reading_ = false;

  std::string out_, inflight_;
  size_t inflight_done_ = 0;
  bool writing_ = false;

  bool keep_alive_ = true;
  bool http10_ = false;
  bool head_only_ = false;  // HEAD: no body in the reply
  bool chunked_ = false;
  bool reply_started_ = false;
  bool reply_done_ = false;
  bool overflow_ = false;
  GoneReason gone_reason_ = GoneReason::kDisconnect;

  base::TimeNs read_deadline_ = 0, write_deadline_ = 0, armed_for_ = 0;
};

}  // namespace agentserve::gateway
