// A small OpenAI-like server for tests: one thread per connection, behaviour chosen by the test.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/unix_fd.h"
#include "tools/cli/http/url.h"

namespace agentserve::tools {

class FakeServer {
 public:
  // Gets the whole request; writes the answer with Send and returns. The connection is then closed.
  using Handler = std::function<void(const std::string& request, int socket)>;
  explicit FakeServer(Handler handler);
  ~FakeServer();
  Url url() const { return {"127.0.0.1", port_, ""}; }
  int connections() const { return connections_; }

  static void Send(int socket, const std::string& bytes) {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = send(socket, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return;
      done += static_cast<size_t>(n);
    }
  }
  // Head of a chunked event stream, one event, and its end.
  static std::string StreamHead();
  static std::string Event(const std::string& data);
  static std::string StreamEnd() { return "0\r\n\r\n"; }
  static std::string Answer(int status, const std::string& body);

 private:
  void Accept();
  void Serve(int socket);

  const Handler handler_;
  base::UniqueFd listener_;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<int> connections_{0};
  std::vector<std::thread> threads_;  // of connections; owned by the accepting thread
  std::thread acceptor_;
};

}  // namespace agentserve::tools
