// Server-sent events out of a byte stream (HTML Living Standard, "Interpreting an event stream"; field `data` only).
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace agentserve::tools {

// Single-threaded.
class SseParser {
 public:
  // The data of one event: its `data:` lines joined by line feeds. False = stop feeding.
  using Sink = std::function<bool(std::string_view data)>;
  // 4 MiB: far above the largest chunk a chat answer has; more than that is a broken server.
  static constexpr size_t kMaxEventBytes = 4 << 20;

  // False if the sink stopped or an event is too long; then do not feed more.
  bool Feed(std::string_view bytes, const Sink& sink);
  bool too_long() const { return too_long_; }

 private:
  bool OnLine(std::string_view line, const Sink& sink);
  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool too_long_ = false;
};

}  // namespace agentserve::tools
