#include "gateway/testing/raw_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>

#include "base/strings.h"

namespace agentserve::gateway::testing {
namespace {

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string Lower(std::string s) {
  for (char& c : s) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return s;
}

}  // namespace

RawClient::RawClient(int port, int receive_buffer) {
  fd_ = socket(AF_INET, SOCK_STREAM, 0);
  if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  sockaddr_in addr{};
  addr.sin_family = AF_INET;
  addr.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, "127.0.0.1", &addr.sin_addr);
  if (connect(fd_, reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) != 0) Close();
}

RawClient::~RawClient() { Close(); }

void RawClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::ShutdownSend() { shutdown(fd_, SHUT_WR); }

void RawClient::Reset() {
  const linger l{1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
  Close();
}

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

bool RawClient::Fill(int timeout_ms) {
  if (fd_ < 0 || eof_) return false;
  pollfd p{fd_, POLLIN, 0};
  if (poll(&p, 1, std::max(timeout_ms, 0)) <= 0) return false;
  char chunk[16384];
  const ssize_t n = recv(fd_, chunk, sizeof(chunk), 0);
  if (n <= 0) {
    eof_ = true;
    return false;
  }
  buffer_.append(chunk, static_cast<size_t>(n));
  return true;
}

std::string RawClient::ReadUntil(std::string_view needle, int timeout_ms) {
  const int64_t until = NowMs() + timeout_ms;
  size_t at = 0;
  while ((at = buffer_.find(needle)) == std::string::npos) {
    if (!Fill(static_cast<int>(until - NowMs()))) {
      if (eof_ || NowMs() >= until) return std::exchange(buffer_, "");
    }
  }
  std::string out = buffer_.substr(0, at + needle.size());
  buffer_.erase(0, at + needle.size());
  return out;
}

bool RawClient::WaitClosed(int timeout_ms) {
  const int64_t until = NowMs() + timeout_ms;
  while (!eof_ && NowMs() < until) {
    Fill(static_cast<int>(until - NowMs()));
    buffer_.clear();
  }
  return eof_;
}

RawResponse RawClient::Read(int timeout_ms) {
  RawResponse out;
  const int64_t until = NowMs() + timeout_ms;
  const auto left = [&] { return static_cast<int>(until - NowMs()); };
  const std::string head = ReadUntil("\r\n\r\n", timeout_ms);
  if (!head.starts_with("HTTP/1.1 ")) return out;
  out.status = std::atoi(head.c_str() + 9);
  size_t line = head.find("\r\n") + 2;
  while (line + 2 < head.size()) {
    const size_t end = head.find("\r\n", line);
    const size_t colon = head.find(": ", line);
    if (colon < end) out.headers[Lower(head.substr(line, colon - line))] = head.substr(colon + 2, end - colon - 2);
    line = end + 2;
  }
  if (out.headers.contains("transfer-encoding")) {
    while (true) {
      const size_t size = std::strtoul(ReadUntil("\r\n", left()).c_str(), nullptr, 16);
      while (buffer_.size() < size + 2 && Fill(left())) {
      }
      out.body += buffer_.substr(0, size);
      buffer_.erase(0, size + 2);
      if (size == 0) return out;
    }
  }
  const auto length = out.headers.find("content-length");
  const size_t want = length == out.headers.end() ? (out.status == 204 || out.status == 100 ? 0 : SIZE_MAX)
                                                  : std::strtoul(length->second.c_str(), nullptr, 10);
  while (buffer_.size() < want && Fill(left())) {
  }
  out.body = buffer_.substr(0, want);
  buffer_.erase(0, std::min(want, buffer_.size()));
  return out;
}

std::string Post(std::string_view path, std::string_view body, std::string_view extra_headers) {
  return base::StrCat("POST ", path, " HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n", extra_headers,
                      "content-length: ", body.size(), "\r\n\r\n", body);
}

std::string Get(std::string_view path, std::string_view extra_headers) {
  return base::StrCat("GET ", path, " HTTP/1.1\r\nhost: test\r\n", extra_headers, "\r\n");
}

}  // namespace agentserve::gateway::testing
