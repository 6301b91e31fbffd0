// Owned file descriptors and passing them over unix sockets (SCM_RIGHTS).
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::base {

// Closes its descriptor when destroyed.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& o) noexcept {
    Reset(std::exchange(o.fd_, -1));
    return *this;
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

// Listens on a unix stream socket at `path` (at most 107 bytes; a stale socket file is replaced; mode 0600).
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path);
// Connects within `timeout_ms`.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path, int timeout_ms);
// Most descriptors in one message.
inline constexpr size_t kMaxSentFds = 4;
// Sends `payload` (1..4096 bytes) with 1..kMaxSentFds descriptors attached.
absl::Status SendFds(int socket, std::span<const int> fds, const std::string& payload);
inline absl::Status SendFd(int socket, int fd, const std::string& payload) {
  return SendFds(socket, std::span(&fd, 1), payload);
}
// Receives what SendFds sent, at least one descriptor; waits at most `timeout_ms`.
absl::StatusOr<std::pair<std::vector<UniqueFd>, std::string>> ReceiveFds(int socket, int timeout_ms);
// The first descriptor of such a message; further ones are closed.
absl::StatusOr<std::pair<UniqueFd, std::string>> ReceiveFd(int socket, int timeout_ms);

}  // namespace agentserve::base
