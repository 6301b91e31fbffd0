// Starting child processes that cannot outlive this one.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unix_fd.h"

namespace agentserve::tools {

struct ProcessSpec {
  std::vector<std::string> argv;       // argv[0] is the file to run, not searched in PATH
  std::vector<std::string> extra_env;  // "NAME=value", over this process's environment
};

struct Process {
  pid_t pid = -1;
  base::UniqueFd output;  // non-blocking read end of its stdout and stderr together
};

// Forks and executes. The child has its own process group (a terminal's Ctrl-C reaches only us), default signal
// handling, stdin from /dev/null, no other descriptor, and is killed if the calling thread ends. A file that cannot be
// executed shows up as exit code 127 with a line of output. Call from a thread that lives as long as the child should.
absl::StatusOr<Process> Spawn(const ProcessSpec& spec);

}  // namespace agentserve::tools
