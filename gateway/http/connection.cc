#include "gateway/http/connection.h"

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/status.hpp>
#include <ctime>

#include "base/strings.h"
#include "gateway/http/target.h"

namespace agentserve::gateway {

namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr size_t kRawReadBytes = 4096;
constexpr size_t kKeepBufferBytes = 64u << 10;  // larger write buffers are given back

std::string HttpDate() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char buf[40];
  const size_t n = std::strftime(buf, sizeof(buf), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return std::string(buf, n);
}

std::string_view ReasonPhrase(int status) {
  if (status == 499) return "Client Closed Request";
  const auto s = http::obsolete_reason(static_cast<http::status>(status));
  return {s.data(), s.size()};
}

std::string Lower(std::string_view s) {
  std::string out(s);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

}  // namespace

Connection::Connection(Socket socket, std::shared_ptr<HttpShared> shared, std::function<void(Connection*)> on_closed)
    : strand_(socket.get_executor()),
      socket_(std::move(socket)),
      shared_(std::move(shared)),
      on_closed_(std::move(on_closed)),
      timer_(strand_),
      buffer_(shared_->limits.header_bytes + (64u << 10)) {}

Connection::~Connection() { ReleaseBody(); }

void Connection::Start() {
  asio::dispatch(strand_, [self = shared_from_this()] {
    Error ignored;
    self->socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    self->NextRequest();
  });
}

void Connection::StartRefusal(HttpReply reply) {
  asio::dispatch(strand_, [self = shared_from_this(), reply = std::move(reply)]() mutable {
    self->state_ = State::kServing;
    self->keep_alive_ = false;
    self->Send(std::move(reply));
  });
}

void Connection::BeginDrain() {
  asio::post(strand_, [self = shared_from_this()] {
    if (self->state_ == State::kIdle) self->Close();
  });
}

void Connection::Abort() {
  asio::post(strand_, [self = shared_from_this()] {
    if (self->state_ == State::kServing) {
      self->ClientGone(GoneReason::kDrain);
    } else {
      self->Close();
    }
  });
}

// ---- Reading ----

void Connection::NextRequest() {
  state_ = State::kIdle;
  parser_.reset();
  request_ = HttpRequest();
  reply_started_ = reply_done_ = chunked_ = head_only_ = overflow_ = false;
  keep_alive_ = true;
  if (shared_->draining) return StartLinger();
  if (buffer_.size() > 0) return StartHead();
  SetReadDeadline(shared_->limits.idle_timeout_ms);
  if (!raw_reading_) StartRawRead();
}

void Connection::StartRawRead() {
  raw_reading_ = true;
  socket_.async_read_some(buffer_.prepare(kRawReadBytes),
                          [self = shared_from_this()](Error ec, size_t n) { self->OnRawRead(ec, n); });
}

void Connection::OnRawRead(Error ec, size_t n) {
  raw_reading_ = false;
  if (state_ == State::kClosed) return;
  if (ec) {
    if (state_ != State::kServing) return Close();
    // A client that sends FIN behind its request still gets a reply that is ready; anything else is a disconnect.
    keep_alive_ = false;
    if (!reply_done_) ClientGone(GoneReason::kDisconnect);
    return;
  }
  if (state_ == State::kLingering) {
    buffer_.consume(buffer_.size());
    return StartRawRead();
  }
  buffer_.commit(n);
  if (state_ == State::kIdle) return StartHead();
  // Serving: stray line ends are dropped; the begin of a next request waits here and ends the watch.
  const auto data = static_cast<const char*>(buffer_.data().data());
  if (std::string_view(data, buffer_.size()).find_first_not_of("\r\n") == std::string_view::npos) {
    buffer_.consume(buffer_.size());
    StartRawRead();
  }
}

void Connection::StartHead() {
  state_ = State::kHead;
  SetReadDeadline(shared_->limits.header_timeout_ms);
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(shared_->limits.header_bytes));
  parser_->body_limit(shared_->limits.body_bytes);
  http::async_read_header(socket_, buffer_, *parser_,
                          [self = shared_from_this()](Error ec, size_t) { self->OnHead(ec); });
}

void Connection::OnHead(Error ec) {
  if (state_ != State::kHead) return;
  if (ec) return OnReadError(ec);
  const auto& message = parser_->get();
  request_.method = std::string(message.method_string());
  const auto target = message.target();
  SplitTarget({target.data(), target.size()}, &request_.path, &request_.query);
  for (const auto& field : message) {
    const auto name = field.name_string();
    const auto value = field.value();
    request_.headers.emplace_back(Lower({name.data(), name.size()}), std::string(value));
  }
  http10_ = message.version() == 10;
  keep_alive_ = message.keep_alive();
  head_only_ = request_.method == "HEAD";
  if (auto refusal = CheckHead()) return Refuse(std::move(*refusal));
  StartBody();
}

std::optional<HttpReply> Connection::CheckFraming() {
  const auto& message = parser_->get();
  if (message.version() != 10 && message.version() != 11) {
    return shared_->handler->ProtocolError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
  }
  const bool coded = message.count(http::field::transfer_encoding) > 0;
  // A body whose length two parties could read differently is how requests are smuggled.
  if (coded && (message.count(http::field::content_length) > 0 || !parser_->chunked() || http10_)) {
    return shared_->handler->ProtocolError(400, "send either content-length or transfer-encoding: chunked");
  }
  if (!http10_ && message.count(http::field::host) != 1) {
    return shared_->handler->ProtocolError(400, "HTTP/1.1 needs exactly one host header");
  }
  return std::nullopt;
}

std::optional<HttpReply> Connection::CheckHead() {
  if (auto refusal = CheckFraming()) {
    keep_alive_ = false;  // where the next request begins is anyone's guess
    return refusal;
  }
  if (auto refusal = shared_->handler->CheckHead(request_)) return refusal;
  const auto length = parser_->content_length();
  if (length && *length > shared_->limits.body_bytes) return shared_->handler->ProtocolError(413, "");
  const size_t want = length ? *length : parser_->chunked() ? shared_->limits.body_bytes : 0;
  if (want == 0) return std::nullopt;
  if (shared_->body_bytes.fetch_add(want) + want > shared_->limits.inflight_body_bytes) {
    shared_->body_bytes.fetch_sub(want);
    return shared_->handler->ProtocolError(503, "too many request bodies are in memory; try again shortly");
  }
  reserved_body_ = want;
  shared_->metrics->body_bytes.Increment(static_cast<double>(want));
  return std::nullopt;
}

void Connection::Refuse(HttpReply reply) {
  if (!parser_->is_done()) keep_alive_ = false;
  state_ = State::kServing;
  SetReadDeadline(0);
  Send(std::move(reply));
}

void Connection::StartBody() {
  state_ = State::kBody;
  SetReadDeadline(shared_->limits.body_timeout_ms);
  if (Lower(request_.Header("expect")) == "100-continue" && !parser_->is_done()) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    StartWriting();
  }
  http::async_read(socket_, buffer_, *parser_, [self = shared_from_this()](Error ec, size_t) { self->OnBody(ec); });
}

void Connection::OnBody(Error ec) {
  if (state_ != State::kBody) return;
  if (ec) return OnReadError(ec);
  Serve();
}

void Connection::Serve() {
  state_ = State::kServing;
  SetReadDeadline(0);
  request_.body = std::move(parser_->get().body());
  request_.received_ns = shared_->clock->Now();
  parser_.reset();
  auto active = shared_->handler->Handle(std::move(request_), shared_from_this());
  if (!reply_done_) active_ = std::move(active);
  if (state_ == State::kServing && !raw_reading_ && buffer_.size() == 0) StartRawRead();
}

void Connection::OnReadError(Error ec) {
  const bool protocol = ec.category() == http::make_error_code(http::error::bad_method).category();
  if (!protocol || ec == http::error::end_of_stream || ec == http::error::partial_message) return Close();
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow) {
    return Refuse(shared_->handler->ProtocolError(431, ""));
  }
  if (ec == http::error::body_limit) return Refuse(shared_->handler->ProtocolError(413, ""));
  keep_alive_ = false;
  Refuse(shared_->handler->ProtocolError(400, ec.message()));
}

// ---- Writing ----

void Connection::AppendHead(int status, std::string_view content_type, const HeaderList& headers,
                            std::string_view framing) {
  if (shared_->draining) keep_alive_ = false;
  base::StrAppend(&out_, "HTTP/1.1 ", status, " ", ReasonPhrase(status), "\r\ndate: ", HttpDate(), "\r\n");
  if (!content_type.empty()) base::StrAppend(&out_, "content-type: ", content_type, "\r\n");
  for (const auto& [name, value] : headers) base::StrAppend(&out_, name, ": ", value, "\r\n");
  base::StrAppend(&out_, framing, "connection: ", keep_alive_ ? "keep-alive" : "close", "\r\n\r\n");
}

void Connection::Send(HttpReply reply) {
  if (state_ != State::kServing || reply_started_) return;
  reply_started_ = reply_done_ = true;
  active_.reset();
  const bool no_body = reply.status == 204;
  const std::string framing = no_body ? std::string() : base::StrCat("content-length: ", reply.body.size(), "\r\n");
  AppendHead(reply.status, no_body ? "" : reply.content_type, reply.headers, framing);
  if (!head_only_ && !no_body) out_ += reply.body;
  StartWriting();
}

void Connection::BeginStream(int status, std::string_view content_type, const HeaderList& headers) {
  if (state_ != State::kServing || reply_started_) return;
  reply_started_ = true;
  chunked_ = !http10_;
  if (!chunked_) keep_alive_ = false;  // the end of the connection is the end of the body
  AppendHead(status, content_type, headers, chunked_ ? "transfer-encoding: chunked\r\n" : "");
  StartWriting();
}

void Connection::Write(std::string_view bytes) {
  if (state_ != State::kServing || !reply_started_ || reply_done_ || overflow_ || bytes.empty()) return;
  if (out_.size() + (inflight_.size() - inflight_done_) + bytes.size() > shared_->limits.outbound_bytes) {
    overflow_ = true;
    // Not from within the handler's own call.
    asio::post(strand_, [self = shared_from_this()] { self->ClientGone(GoneReason::kSlowClient); });
    return;
  }
  if (chunked_) {
    char size[24];
    const int n = std::snprintf(size, sizeof(size), "%zx\r\n", bytes.size());
    out_.append(size, static_cast<size_t>(n));
  }
  out_ += bytes;
  if (chunked_) out_ += "\r\n";
  StartWriting();
}

void Connection::End() {
  if (state_ != State::kServing || !reply_started_ || reply_done_ || overflow_) return;
  reply_done_ = true;
  active_.reset();
  if (chunked_) out_ += "0\r\n\r\n";
  StartWriting();
}

void Connection::StartWriting() {
  if (writing_) return;
  writing_ = true;
  WriteSome();
}

void Connection::WriteSome() {
  if (inflight_done_ == inflight_.size()) {
    if (inflight_.capacity() > kKeepBufferBytes) inflight_ = std::string();
    inflight_.clear();
    inflight_done_ = 0;
    inflight_.swap(out_);
  }
  write_deadline_ = shared_->clock->Now() + shared_->limits.write_timeout_ms * base::kNsPerMs;
  ArmTimer();
  socket_.async_write_some(asio::buffer(inflight_.data() + inflight_done_, inflight_.size() - inflight_done_),
                           [self = shared_from_this()](Error ec, size_t n) { self->OnWritten(ec, n); });
}

void Connection::OnWritten(Error ec, size_t n) {
  writing_ = false;
  write_deadline_ = 0;
  if (state_ == State::kClosed) return;
  if (ec) return ClientGone(GoneReason::kDisconnect);
  inflight_done_ += n;
  if (inflight_done_ < inflight_.size() || !out_.empty()) {
    writing_ = true;
    return WriteSome();
  }
  if (inflight_.capacity() > kKeepBufferBytes) inflight_ = std::string();
  inflight_.clear();
  inflight_done_ = 0;
  OnFlushed();
}

void Connection::OnFlushed() {
  if (state_ != State::kServing || !reply_done_) return;
  ReleaseBody();
  if (!keep_alive_ || shared_->draining) return StartLinger();
  NextRequest();
}

// ---- Ending ----

void Connection::ClientGone(GoneReason reason) {
  if (state_ == State::kClosed) return;
  gone_reason_ = reason;
  auto active = std::move(active_);
  active_.reset();
  Close();
  if (active) active->OnClientGone();
}

void Connection::StartLinger() {
  state_ = State::kLingering;
  parser_.reset();
  Error ec;
  socket_.shutdown(Socket::shutdown_send, ec);
  if (ec) return Close();
  SetReadDeadline(shared_->limits.linger_ms);
  if (raw_reading_) return;
  buffer_.consume(buffer_.size());
  StartRawRead();
}

void Connection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  Error ignored;
  timer_.cancel();
  socket_.close(ignored);
  ReleaseBody();
  if (on_closed_) {
    auto on_closed = std::move(on_closed_);
    on_closed_ = nullptr;
    on_closed(this);
  }
}

void Connection::ReleaseBody() {
  if (reserved_body_ == 0) return;
  shared_->body_bytes.fetch_sub(reserved_body_);
  shared_->metrics->body_bytes.Decrement(static_cast<double>(reserved_body_));
  reserved_body_ = 0;
}

// ---- Time ----

void Connection::SetReadDeadline(int64_t ms) {
  read_deadline_ = ms == 0 ? 0 : shared_->clock->Now() + ms * base::kNsPerMs;
  ArmTimer();
}

// One timer serves both deadlines. It is set anew only if a deadline comes before its present time; a deadline that
// moved back is noticed when the timer fires.
void Connection::ArmTimer() {
  base::TimeNs next = read_deadline_;
  if (write_deadline_ != 0 && (next == 0 || write_deadline_ < next)) next = write_deadline_;
  if (next == 0 || state_ == State::kClosed) return;
  if (armed_for_ != 0 && armed_for_ <= next) return;
  armed_for_ = next;
  timer_.expires_after(std::chrono::nanoseconds(std::max<base::TimeNs>(next - shared_->clock->Now(), 0)));
  timer_.async_wait([self = shared_from_this()](Error ec) {
    if (!ec) self->OnTimer();
  });
}

void Connection::OnTimer() {
  armed_for_ = 0;
  if (state_ == State::kClosed) return;
  const base::TimeNs now = shared_->clock->Now();
  if (write_deadline_ != 0 && now >= write_deadline_) {
    return ClientGone(GoneReason::kSlowClient);
  }
  if (read_deadline_ != 0 && now >= read_deadline_) {
    read_deadline_ = 0;
    if (state_ == State::kHead || state_ == State::kBody) {
      // The parser's read is still pending: it is ended by closing the read side only after the reply is out.
      state_ = State::kServing;
      keep_alive_ = false;
      Error ignored;
      socket_.cancel(ignored);
      Send(shared_->handler->ProtocolError(408, "the request did not arrive in time"));
      return;
    }
    return Close();
  }
  ArmTimer();
}

}  // namespace agentserve::gateway
