#include "tools/cli/http/sse_client.h"

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "base/version.h"
#include "tools/cli/core/sse_parser.h"

namespace agentserve::tools {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using base::StrCat;

namespace {

constexpr size_t kMaxBodyBytes = 1 << 20;
constexpr size_t kReadBytes = 16 << 10;

absl::Status Failure(const std::string& doing, const boost::system::error_code& ec) {
  const std::string text = StrCat(doing, ": ", ec.message());
  if (ec == beast::error::timeout) return absl::DeadlineExceededError(StrCat(doing, ": no answer in time"));
  return absl::UnavailableError(text);
}

http::request<http::string_body> MakeRequest(const Url& url, HttpRequest request) {
  http::request<http::string_body> out(http::string_to_verb(request.method), url.path + request.target, 11);
  out.set(http::field::host, StrCat(url.host, ":", url.port));
  out.set(http::field::user_agent, StrCat("agentserve/", base::Version()));
  out.set(http::field::content_type, "application/json");
  out.set(http::field::connection, "close");
  if (!request.api_key.empty()) out.set(http::field::authorization, "Bearer " + request.api_key);
  for (const auto& [name, value] : request.headers) out.set(name, value);
  out.body() = std::move(request.body);
  out.prepare_payload();
  return out;
}

// Reads the answer's body: events go to the parser, anything else into outcome->body.
asio::awaitable<void> ReadBody(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                               http::response_parser<http::buffer_body>& parser,
                               const std::function<bool(std::string_view)>& on_event, HttpOutcome* outcome) {
  const auto type = parser.get()[http::field::content_type];
  const bool events = outcome->status == 200 && type.substr(0, 17) == "text/event-stream";
  SseParser sse;
  std::array<char, kReadBytes> piece;
  boost::system::error_code ec;
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    co_await http::async_read_some(stream, buffer, parser, asio::redirect_error(asio::use_awaitable, ec));
    if (ec == http::error::need_buffer) ec = {};
    const std::string_view got(piece.data(), piece.size() - parser.get().body().size);
    if (events) {
      if (!sse.Feed(got, on_event)) {
        outcome->stopped = !sse.too_long();
        if (sse.too_long()) outcome->transport = absl::OutOfRangeError("the server sent an event of more than 4 MiB");
        co_return;
      }
    } else {
      outcome->body.append(got.substr(0, kMaxBodyBytes - outcome->body.size()));
    }
    if (ec) {
      outcome->transport = Failure("reading the answer", ec);
      co_return;
    }
  }
}

}  // namespace

std::string HttpOutcome::Explain() const {
  if (!transport.ok()) return base::MessageOf(transport);
  std::string message;
  const nlohmann::json answer = nlohmann::json::parse(body, nullptr, false);
  if (answer.is_object() && answer.contains("error") && answer["error"].is_object()) {
    message = answer["error"].value("message", "");
  }
  return StrCat("HTTP status ", status, message.empty() ? "" : ": ", message);
}

absl::StatusOr<tcp::endpoint> ResolveUrl(const Url& url) {
  asio::io_context io;
  tcp::resolver resolver(io);
  boost::system::error_code ec;
  const auto found = resolver.resolve(url.host, StrCat(url.port), ec);
  if (ec || found.empty()) return absl::NotFoundError(StrCat("host ", url.host, " is not known: ", ec.message()));
  return found.begin()->endpoint();
}

asio::awaitable<HttpOutcome> Exchange(tcp::endpoint server, Url url, HttpRequest request,
                                      std::function<bool(std::string_view data)> on_event) {
  HttpOutcome outcome;
  boost::system::error_code ec;
  auto token = asio::redirect_error(asio::use_awaitable, ec);
  beast::tcp_stream stream(co_await asio::this_coro::executor);
  stream.expires_after(std::chrono::nanoseconds(request.timeout));
  co_await stream.async_connect(server, token);
  if (ec) {
    outcome.transport = Failure(StrCat("connecting to ", url.host, ":", url.port), ec);
    co_return outcome;
  }
  stream.socket().set_option(tcp::no_delay(true), ec);
  const auto message = MakeRequest(url, std::move(request));
  co_await http::async_write(stream, message, token);
  // A server may refuse before it read everything: its answer counts, not our broken pipe.
  const boost::system::error_code write_error = ec;
  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  co_await http::async_read_header(stream, buffer, parser, token);
  if (ec) {
    outcome.transport =
        write_error ? Failure("sending the request", write_error) : Failure("waiting for the answer", ec);
    co_return outcome;
  }
  outcome.status = parser.get().result_int();
  co_await ReadBody(stream, buffer, parser, on_event, &outcome);
  co_return outcome;
}

HttpOutcome ExchangeBlocking(const Url& url, HttpRequest request, std::function<bool(std::string_view data)> on_event) {
  HttpOutcome outcome;
  const auto server = ResolveUrl(url);
  if (!server.ok()) {
    outcome.transport = server.status();
    return outcome;
  }
  asio::io_context io(1);
  asio::co_spawn(io, Exchange(*server, url, std::move(request), std::move(on_event)),
                 [&outcome](std::exception_ptr error, HttpOutcome result) {
                   if (error) std::rethrow_exception(error);
                   outcome = std::move(result);
                 });
  io.run();
  return outcome;
}

}  // namespace agentserve::tools
