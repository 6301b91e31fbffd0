// Ports and readiness on this machine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unix_fd.h"

namespace agentserve::tools {

// OK if a server could listen on host:port now. ALREADY_EXISTS if the port is taken; INVALID_ARGUMENT for a host that
// is no IPv4 or IPv6 address of this machine.
absl::Status CheckPortFree(const std::string& host, int port);

// `count` different ports that are free on 127.0.0.1, below the range from which the kernel takes ports of outgoing
// connections: a child that restarts finds its port still free.
absl::StatusOr<std::vector<int>> PickPorts(size_t count);

// Asks `GET path` once in a while without blocking. Single-threaded; poll `fd()` for input.
class HttpProbe {
 public:
  HttpProbe(std::string host, int port, std::string path);

  // Starts a question if none is open and the last was `kInterval` ago; gives up on one that takes `kTimeout`.
  void Tick(base::TimeNs now);
  // To be called when fd() has input. Returns the status code once it is known.
  std::optional<int> OnReadable();
  int fd() const { return socket_.get(); }

  static constexpr base::TimeNs kInterval = 25 * base::kNsPerMs;
  static constexpr base::TimeNs kTimeout = 2 * base::kNsPerSecond;

 private:
  std::string host_, path_;
  int port_;
  base::UniqueFd socket_;
  base::TimeNs asked_ = 0;
  std::string answer_;
};

// The status code of "HTTP/1.x NNN ..."; nothing if `head` is too short, 0 if it is no HTTP.
std::optional<int> ParseHttpStatus(std::string_view head);

}  // namespace agentserve::tools
