// A bare TCP client: what is sent and received is seen byte by byte.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace agentserve::gateway::testing {

// One parsed HTTP/1.1 response.
struct RawResponse {
  int status = 0;                              // 0 = none came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunked framing removed
};

// Single-threaded. Reads give up after the timeout of the call.
class RawClient {
 public:
  explicit RawClient(int port, int receive_buffer = 0);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return fd_ >= 0; }
  bool Send(std::string_view bytes);
  // Next complete response.
  RawResponse Read(int timeout_ms = 5000);
  // Bytes until `needle` was seen (included) or time ran out.
  std::string ReadUntil(std::string_view needle, int timeout_ms = 5000);
  // True if the peer closed within the time; received bytes are dropped.
  bool WaitClosed(int timeout_ms = 5000);
  void ShutdownSend();
  // Sends RST.
  void Reset();
  void Close();

 private:
  bool Fill(int timeout_ms);  // false: closed or time-out

  int fd_ = -1;
  bool eof_ = false;
  std::string buffer_;
};

// A request with host and content-length.
std::string Post(std::string_view path, std::string_view body, std::string_view extra_headers = "");
std::string Get(std::string_view path, std::string_view extra_headers = "");

}  // namespace agentserve::gateway::testing
