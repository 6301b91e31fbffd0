// Cuts a byte stream into lines. Single-threaded.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace agentserve::tools {

class LineSplitter {
 public:
  using Sink = std::function<void(std::string_view line)>;
  // 16 KiB: fifteen fields of the logger's longest value; a longer line is passed on in pieces, so that a child that
  // never ends its line cannot fill the memory.
  static constexpr size_t kMaxLineBytes = 16 << 10;

  // Calls `sink` for each complete line, without its line end ("\n" or "\r\n").
  void Feed(std::string_view bytes, const Sink& sink);
  // Passes on what is left when the stream ended.
  void Finish(const Sink& sink);

 private:
  void Emit(const Sink& sink);
  std::string pending_;
};

}  // namespace agentserve::tools
