// Holds many streams open without reading them, and looks at what that costs the server.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/cli/bench/load.h"

namespace agentserve::tools {

// Memory and descriptors of one process; from /proc.
struct ProcessUse {
  std::string name;
  int pid = 0;
  double rss_mib = 0;
  int open_files = 0;
};
// The processes that `state_file` of `agentserve up` names. Processes that are gone are left out.
absl::StatusOr<std::vector<ProcessUse>> ReadProcessUse(const std::string& state_file);

struct HoldReport {
  int64_t connected = 0;  // connections that stood
  int64_t streaming = 0;  // of these: answered with status 200
  int64_t refused = 0;    // of these: answered with another status
  int64_t silent = 0;     // of these: no answer yet
  int64_t dropped = 0;    // closed by the server before the end
  std::vector<ProcessUse> before, during, after;
};

// Opens `streams` connections, each asking for a stream of the workload's length, reads the head of each answer and
// then nothing for `seconds`; closes all and waits a moment before the last look.
absl::StatusOr<HoldReport> HoldStreams(const LoadConfig& config, const Workload& workload, int streams, double seconds,
                                       const std::string& state_file);
std::string HoldTable(const HoldReport& report);
std::string HoldJson(const HoldReport& report);

}  // namespace agentserve::tools
