// A child process of a test: started with its output in a file, ended for sure.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::testing {

class Process {
 public:
  // Runs argv[0] with stdout and stderr appended to `log_path` and `env` ("K=V") added to the environment. The child
  // gets SIGKILL if this process dies.
  static absl::StatusOr<std::unique_ptr<Process>> Start(const std::vector<std::string>& argv,
                                                        const std::string& log_path,
                                                        const std::vector<std::string>& env = {});
  ~Process();  // SIGKILL if still there

  pid_t pid() const { return pid_; }
  // False once it has ended.
  bool Running();
  // Sends `signal`; SIGKILL also reaps and verifies that the process is gone.
  void Signal(int signal);
  // Exit code, or 128 + signal; nullopt if still running after `timeout_ms`.
  std::optional<int> Wait(int timeout_ms);
  // Everything written so far.
  std::string Log() const;
  // Waits until the log holds `text`; false on timeout or death.
  bool WaitForLog(const std::string& text, int timeout_ms);
  // Resident memory in KiB.
  int64_t ResidentKib() const;

 private:
  Process(pid_t pid, std::string log_path) : pid_(pid), log_path_(std::move(log_path)) {}
  pid_t pid_;
  std::string log_path_;
  std::optional<int> exit_;
};

// A loopback TCP port nobody listens on now. Distinct within this process.
int PickPort();
// Fresh directory under TMPDIR; removed with its content by RemoveTree.
std::string MakeTempDir();
void RemoveTree(const std::string& dir);
// build/bin/<name>, from AGENTSERVE_BIN (set by ctest) or beside the test.
std::string BinaryPath(const std::string& name);
// Repository root, from AGENTSERVE_SOURCE or the working directory.
std::string SourcePath(const std::string& relative);

}  // namespace agentserve::testing
