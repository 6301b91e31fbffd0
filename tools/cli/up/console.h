// What `agentserve up` writes on stderr: log lines with the name of their component, notes of its own, and on a
// terminal one status line that is redrawn below them. Single-threaded.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace agentserve::tools {

struct ConsoleOptions {
  bool color = false;  // colours and the status line
  bool quiet = false;  // of the components' lines show only warnings, errors and what is no log line
  bool json = false;   // lines are JSON: pass them on untouched
  int fd = 2;
};

class Console {
 public:
  Console(std::vector<std::string> names, ConsoleOptions options);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  void Line(size_t component, std::string_view line);
  // A line of the supervisor itself.
  void Note(std::string_view text);
  void Error(std::string_view text);
  // Replaces the status line; empty removes it. Nothing happens off a terminal.
  void Status(std::string_view text);

 private:
  void Write(const std::string& text);
  std::string ClearStatus();

  const ConsoleOptions options_;
  std::vector<std::string> prefixes_;
  std::string own_prefix_;
  std::string status_;
};

// True if the line announces that the service is ready (event `service.ready`, text or JSON form).
bool IsReadyLine(std::string_view line);
// True for warnings, errors and lines that are not in the log's format.
bool IsLoudLine(std::string_view line);

}  // namespace agentserve::tools
