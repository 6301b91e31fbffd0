#include "base/unix_fd.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/strings.h"

namespace agentserve::base {
namespace {

constexpr size_t kMaxPayload = 4096;

absl::Status Errno(const std::string& what) { return absl::UnavailableError(StrCat(what, ": ", strerror(errno))); }

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  if (path.size() >= sizeof(addr.sun_path)) {
    return absl::InvalidArgumentError(
        StrCat("unix socket path is longer than ", sizeof(addr.sun_path) - 1, " bytes: ", path));
  }
  std::memcpy(addr.sun_path, path.c_str(), path.size() + 1);
  return addr;
}

absl::Status WaitFor(int fd, short events, int timeout_ms, const std::string& what) {
  pollfd p{fd, events, 0};
  const int n = poll(&p, 1, timeout_ms);
  if (n < 0) return Errno(what);
  if (n == 0) return absl::DeadlineExceededError(StrCat(what, ": no answer within ", timeout_ms, " ms"));
  return absl::OkStatus();
}

}  // namespace

void UniqueFd::Reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path) {
  auto addr = UnixAddress(path);
  if (!addr.ok()) return addr.status();
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Errno("socket");
  unlink(path.c_str());
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&*addr), sizeof(*addr)) != 0) return Errno("bind " + path);
  if (chmod(path.c_str(), 0600) != 0) return Errno("chmod " + path);
  if (listen(fd.get(), 64) != 0) return Errno("listen " + path);
  return fd;
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path, int timeout_ms) {
  auto addr = UnixAddress(path);
  if (!addr.ok()) return addr.status();
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return Errno("socket");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&*addr), sizeof(*addr)) != 0) {
    if (errno != EAGAIN && errno != EINPROGRESS) return Errno("connect " + path);
    absl::Status s = WaitFor(fd.get(), POLLOUT, timeout_ms, "connect " + path);
    if (!s.ok()) return s;
  }
  return fd;
}

absl::Status SendFds(int socket, std::span<const int> fds, const std::string& payload) {
  if (payload.empty() || payload.size() > kMaxPayload) return absl::InvalidArgumentError("payload is 1..4096 bytes");
  if (fds.empty() || fds.size() > kMaxSentFds) return absl::InvalidArgumentError("1..4 descriptors");
  iovec io{const_cast<char*>(payload.data()), payload.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSentFds * sizeof(int))] = {};
  msghdr msg{};
  msg.msg_iov = &io;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* c = CMSG_FIRSTHDR(&msg);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
  const ssize_t n = sendmsg(socket, &msg, MSG_NOSIGNAL);
  if (n != static_cast<ssize_t>(payload.size())) return Errno("sendmsg");
  return absl::OkStatus();
}

absl::StatusOr<std::pair<std::vector<UniqueFd>, std::string>> ReceiveFds(int socket, int timeout_ms) {
  absl::Status ready = WaitFor(socket, POLLIN, timeout_ms, "receive descriptor");
  if (!ready.ok()) return ready;
  std::string payload(kMaxPayload, '\0');
  iovec io{payload.data(), payload.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSentFds * sizeof(int))] = {};
  msghdr msg{};
  msg.msg_iov = &io;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
  if (n < 0) return Errno("recvmsg");
  if (n == 0) return absl::UnavailableError("peer closed the socket before it sent a descriptor");
  payload.resize(static_cast<size_t>(n));
  std::vector<UniqueFd> fds;
  for (const cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr; c = CMSG_NXTHDR(&msg, const_cast<cmsghdr*>(c))) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      fds.emplace_back(fd);
    }
  }
  if (fds.empty()) return absl::DataLossError("message without a descriptor");
  return std::make_pair(std::move(fds), std::move(payload));
}

absl::StatusOr<std::pair<UniqueFd, std::string>> ReceiveFd(int socket, int timeout_ms) {
  auto received = ReceiveFds(socket, timeout_ms);
  if (!received.ok()) return received.status();
  return std::make_pair(std::move(received->first[0]), std::move(received->second));
}

}  // namespace agentserve::base
