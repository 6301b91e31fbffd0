#include "tests/integration/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/strings.h"
#include "base/unix_fd.h"

namespace agentserve::testing {
namespace {

std::string Unchunk(const std::string& in) {
  std::string out;
  size_t at = 0;
  while (at < in.size()) {
    const size_t line = in.find("\r\n", at);
    if (line == std::string::npos) break;
    const size_t n = std::strtoull(in.c_str() + at, nullptr, 16);
    if (n == 0) break;
    out += in.substr(line + 2, n);
    at = line + 2 + n + 2;
  }
  return out;
}

absl::StatusOr<HttpReply> ParseReply(const std::string& raw) {
  const size_t end = raw.find("\r\n\r\n");
  if (raw.rfind("HTTP/1.1 ", 0) != 0 || end == std::string::npos) {
    return absl::DataLossError(base::StrCat("not an HTTP reply: ", raw.substr(0, 200)));
  }
  HttpReply reply;
  reply.status = std::atoi(raw.c_str() + 9);
  size_t at = raw.find("\r\n") + 2;
  while (at < end + 2) {
    const size_t line_end = raw.find("\r\n", at);
    const std::string line = raw.substr(at, line_end - at);
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) {
      std::string name = line.substr(0, colon);
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      reply.headers[name] = line.substr(colon + 2);
    }
    at = line_end + 2;
  }
  reply.body = raw.substr(end + 4);
  if (reply.headers["transfer-encoding"] == "chunked") reply.body = Unchunk(reply.body);
  return reply;
}

absl::StatusOr<base::UniqueFd> Connect(int port) {
  base::UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in addr{};
  addr.sin_family = AF_INET;
  addr.sin_port = htons(static_cast<uint16_t>(port));
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) != 0) {
    return absl::UnavailableError(base::StrCat("nobody listens on port ", port));
  }
  return fd;
}

}  // namespace

absl::StatusOr<HttpReply> Http(int port, const std::string& method, const std::string& path, const std::string& body,
                               const std::map<std::string, std::string>& headers, int timeout_ms) {
  auto fd = Connect(port);
  if (!fd.ok()) return fd.status();
  std::string out = base::StrCat(method, " ", path, " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
  for (const auto& [name, value] : headers) base::StrAppend(&out, name, ": ", value, "\r\n");
  if (!body.empty()) base::StrAppend(&out, "Content-Type: application/json\r\nContent-Length: ", body.size(), "\r\n");
  base::StrAppend(&out, "\r\n", body);
  std::string raw;
  size_t sent = 0;
  char buffer[65536];
  for (;;) {
    pollfd p{fd->get(), static_cast<short>(POLLIN | (sent < out.size() ? POLLOUT : 0)), 0};
    if (poll(&p, 1, timeout_ms) <= 0) return absl::DeadlineExceededError("no reply in time");
    if ((p.revents & (POLLIN | POLLHUP)) != 0) {
      const ssize_t n = recv(fd->get(), buffer, sizeof(buffer), 0);
      if (n <= 0) break;
      raw.append(buffer, static_cast<size_t>(n));
    } else if ((p.revents & POLLOUT) != 0) {
      const ssize_t n = send(fd->get(), out.data() + sent, std::min(out.size() - sent, sizeof(buffer)), MSG_NOSIGNAL);
      if (n < 0) break;
      sent += static_cast<size_t>(n);
    } else {
      break;
    }
  }
  return ParseReply(raw);
}

}  // namespace agentserve::testing
