#include "tools/cli/bench/fake_server_for_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#include <cstdio>

#include "base/check.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;

FakeServer::FakeServer(Handler handler)
    : handler_(std::move(handler)), listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in addr{};
  addr.sin_family = AF_INET;
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  AS_CHECK(bind(listener_.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) == 0);
  AS_CHECK(listen(listener_.get(), 512) == 0);
  socklen_t size = sizeof(addr);
  AS_CHECK(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&addr), &size) == 0);
  port_ = ntohs(addr.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

FakeServer::~FakeServer() {
  stop_ = true;
  acceptor_.join();
}

void FakeServer::Accept() {
  while (!stop_) {
    pollfd p{listener_.get(), POLLIN, 0};
    if (poll(&p, 1, 10) <= 0) continue;
    const int fd = accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    ++connections_;
    threads_.emplace_back([this, fd] { Serve(fd); });
  }
  for (std::thread& t : threads_) t.join();
}

void FakeServer::Serve(int fd) {
  const base::UniqueFd owner(fd);
  std::string request;
  char buf[4096];
  size_t head = std::string::npos, length = 0;
  while (head == std::string::npos || request.size() < head + 4 + length) {
    const ssize_t n = recv(fd, buf, sizeof(buf), 0);
    if (n <= 0) return;
    request.append(buf, static_cast<size_t>(n));
    head = request.find("\r\n\r\n");
    const size_t field = request.find("Content-Length: ");
    if (head != std::string::npos && field < head) length = std::stoul(request.substr(field + 16));
  }
  handler_(request, fd);
  shutdown(fd, SHUT_WR);
}

std::string FakeServer::StreamHead() {
  return "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
}

std::string FakeServer::Event(const std::string& data) {
  const std::string text = StrCat("data: ", data, "\n\n");
  char size[16];
  std::snprintf(size, sizeof(size), "%zx", text.size());
  return StrCat(size, "\r\n", text, "\r\n");
}

std::string FakeServer::Answer(int status, const std::string& body) {
  return StrCat("HTTP/1.1 ", status, " X\r\ncontent-type: application/json\r\ncontent-length: ", body.size(),
                "\r\n\r\n", body);
}

}  // namespace agentserve::tools
