// Runs the processes of a cluster: the shell around ClusterCore. One thread, one poll loop over signals, the children's
// output and the readiness probe.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tools/cli/core/cluster_core.h"
#include "tools/cli/core/line_splitter.h"
#include "tools/cli/up/console.h"
#include "tools/cli/up/net.h"
#include "tools/cli/up/process.h"

namespace agentserve::tools {

struct ManagedChild {
  ChildRule rule;
  std::string role;  // "gateway", "router", "kvstore", "prefill", "decode"
  ProcessSpec process;
  std::string host = "127.0.0.1";
  int port = 0;
  int metrics_port = 0;  // 0 = none of its own
};

// What is known once the cluster answered as ready.
struct ReadyReport {
  double total_s = 0;
  // From the start to the child's own `service.ready`; negative if it never said so.
  std::vector<double> child_s;
};

struct SupervisorConfig {
  std::vector<ManagedChild> children;
  CoreOptions core;
  ConsoleOptions console;
  // JSON with the processes, rewritten on each change and removed at the end; empty = none.
  std::string state_file;
  // One file per component gets its raw lines; empty = none. Must exist.
  std::string log_dir;
  // Ready when `GET ready_path` there answers 200; port 0 = when each child said that it is ready.
  std::string ready_host;
  int ready_port = 0;
  std::string ready_path = "/ready";
  // Also wait until each child said that it is ready; set it only if their log level lets them say so.
  bool wait_for_all = false;
  base::TimeNs ready_timeout = 600 * base::kNsPerSecond;
  // Top-level fields of the state file, as JSON text of an object.
  std::string state_fields_json = "{}";
  // Called once, from the loop: must not block for long.
  std::function<void(const ReadyReport&)> on_ready;
};

class Supervisor {
 public:
  explicit Supervisor(SupervisorConfig config);
  ~Supervisor();
  // Blocks until the cluster ended; returns the exit code. SIGINT, SIGTERM and SIGHUP stop it. Once per object; no
  // other thread may exist when it is called (signals are blocked in this thread only).
  int Run();

 private:
  struct Live {
    pid_t pid = -1;
    base::UniqueFd output;
    base::UniqueFd log_file;
    LineSplitter lines;
    std::deque<std::string> last_lines;  // at most kKeptLines
    double ready_s = -1;
  };
  void OpenLogs();
  void RunLoop();
  void WaitForWork();
  void RunCommands();
  void StartChild(size_t i);
  void ReadOutput(size_t i, bool until_end);
  void OnLine(size_t i, std::string_view line);
  void HandleSignals();
  void Reap();
  void OnChildExit(size_t i, ExitInfo info);
  void CheckReady();
  void BecomeReady();
  void ShowProgress();
  void WriteState();
  void ReportEnd();

  SupervisorConfig config_;
  base::MonotonicClock clock_;
  ClusterCore core_;
  Console console_;
  HttpProbe probe_;
  std::vector<Live> live_;
  base::UniqueFd signals_;
  base::TimeNs begin_ = 0;
  base::TimeNs next_progress_ = 0;
  bool gateway_ok_ = false;
  bool is_ready_ = false;
  std::optional<size_t> failed_child_;  // whose end ended the cluster
};

}  // namespace agentserve::tools
