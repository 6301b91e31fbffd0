#include "tools/cli/up/net.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;

namespace {

struct AddrInfoFree {
  void operator()(addrinfo* a) const { freeaddrinfo(a); }
};
using AddrInfo = std::unique_ptr<addrinfo, AddrInfoFree>;

absl::StatusOr<AddrInfo> Resolve(const std::string& host, int port, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* out = nullptr;
  const int rc = getaddrinfo(host.c_str(), StrCat(port).c_str(), &hints, &out);
  if (rc != 0) {
    return absl::InvalidArgumentError(
        StrCat("--host ", host, " is not an address of this machine: ", gai_strerror(rc)));
  }
  return AddrInfo(out);
}

bool CanBindLoopback(int port) { return CheckPortFree("127.0.0.1", port).ok(); }

// First port of the range for outgoing connections; 32768 on Linux unless tuned.
int FirstEphemeralPort() {
  std::ifstream in("/proc/sys/net/ipv4/ip_local_port_range");
  int first = 0;
  return (in >> first) && first > 0 ? first : 32768;
}

}  // namespace

absl::Status CheckPortFree(const std::string& host, int port) {
  AS_ASSIGN_OR_RETURN(const AddrInfo addr, Resolve(host, port, true));
  base::UniqueFd fd(socket(addr->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;  // connections of a finished server that linger in TIME_WAIT are no obstacle
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd.get(), addr->ai_addr, addr->ai_addrlen) == 0 && listen(fd.get(), 1) == 0) return absl::OkStatus();
  if (errno == EADDRINUSE) {
    return absl::AlreadyExistsError(StrCat("port ", port, " on ", host, " is already in use"));
  }
  return absl::InvalidArgumentError(StrCat("cannot listen on ", host, ":", port, ": ", strerror(errno)));
}

absl::StatusOr<std::vector<int>> PickPorts(size_t count) {
  constexpr int kFirst = 10240;
  constexpr int kTries = 2000;  // with a tenth of the range free, 20 ports are found practically always
  const int end = std::max(FirstEphemeralPort(), kFirst + 2048);
  base::SplitMix64 rng(base::EntropyUint64());
  std::vector<int> ports;
  for (int i = 0; i < kTries && ports.size() < count; ++i) {
    const int port = kFirst + static_cast<int>(rng.Below(static_cast<uint64_t>(end - kFirst)));
    if (std::find(ports.begin(), ports.end(), port) == ports.end() && CanBindLoopback(port)) ports.push_back(port);
  }
  if (ports.size() < count) {
    return absl::ResourceExhaustedError(StrCat("found only ", ports.size(), " of ", count, " free ports on 127.0.0.1"));
  }
  return ports;
}

std::optional<int> ParseHttpStatus(std::string_view head) {
  constexpr std::string_view kPrefix = "HTTP/1.";
  constexpr size_t kNeeded = 12;  // "HTTP/1.1 200"
  if (head.substr(0, kPrefix.size()) != kPrefix.substr(0, head.size())) return 0;
  if (head.size() < kNeeded) return std::nullopt;
  int code = 0;
  for (const char c : head.substr(9, 3)) {
    if (c < '0' || c > '9') return 0;
    code = code * 10 + (c - '0');
  }
  return code;
}

HttpProbe::HttpProbe(std::string host, int port, std::string path)
    : host_(std::move(host)), path_(std::move(path)), port_(port) {
  // A server on a wildcard address is asked over loopback.
  if (host_ == "0.0.0.0" || host_.empty()) host_ = "127.0.0.1";
  if (host_ == "::") host_ = "::1";
}

void HttpProbe::Tick(base::TimeNs now) {
  if (socket_.valid() && now - asked_ > kTimeout) socket_.Reset();
  if (socket_.valid() || (asked_ != 0 && now - asked_ < kInterval)) return;
  asked_ = now;
  answer_.clear();
  auto addr = Resolve(host_, port_, false);
  if (!addr.ok()) return;
  base::UniqueFd fd(socket((*addr)->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // Connecting on this machine succeeds or fails at once, so it may block.
  if (connect(fd.get(), (*addr)->ai_addr, (*addr)->ai_addrlen) != 0) return;
  const std::string ask = StrCat("GET ", path_, " HTTP/1.1\r\nHost: ", host_, "\r\nConnection: close\r\n\r\n");
  if (send(fd.get(), ask.data(), ask.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(ask.size())) return;
  socket_ = std::move(fd);
}

std::optional<int> HttpProbe::OnReadable() {
  char buf[256];
  const ssize_t n = recv(socket_.get(), buf, sizeof(buf), MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return std::nullopt;
  if (n > 0) answer_.append(buf, static_cast<size_t>(n));
  const std::optional<int> status = ParseHttpStatus(answer_);
  if (status || n <= 0) socket_.Reset();
  return status;
}

}  // namespace agentserve::tools
