// When to start, restart and stop the processes of one machine's cluster: a stepped machine without clock or processes.
// The shell (supervisor.cc) runs the commands and reports what happened. Single-threaded.
//
// Invariants:
//  1. A child is started only when it is not running, and never after stopping began.
//  2. Stages end in ascending order; a child of stage s+1 gets no signal while a child of stage s runs.
//  3. Once stopping began, done() becomes true as soon as no child runs.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"

namespace agentserve::tools {

struct CoreOptions {
  base::TimeNs backoff_first = 200 * base::kNsPerMs;
  base::TimeNs backoff_most = 5 * base::kNsPerSecond;
  // A child that ran this long starts over with the first back-off.
  base::TimeNs healthy_after = 10 * base::kNsPerSecond;
  // Time for all stages together; then the running stage is killed and each later one gets `late_stage`.
  base::TimeNs drain_timeout = 10 * base::kNsPerSecond;
  base::TimeNs late_stage = base::kNsPerSecond;
  // A child that dies this often without ever having been ready stops the cluster: 5 tries are about 3 s of back-off,
  // enough for a passing cause and short enough for a person who waits.
  int max_start_failures = 5;
};

struct ChildRule {
  std::string name;
  int stop_stage = 0;
};

// How a child ended: by exit code, or by signal when `signal` is not 0.
struct ExitInfo {
  int code = 0;
  int signal = 0;
  std::string Text() const;
};

struct Command {
  enum class Kind { kStart, kTerminate, kKill };
  Kind kind = Kind::kStart;
  size_t child = 0;
  bool operator==(const Command&) const = default;
};

class ClusterCore {
 public:
  enum class State { kWaiting, kRunning, kBackoff, kStopped };

  ClusterCore(std::vector<ChildRule> children, CoreOptions options);

  // Starts all children.
  void Begin(base::TimeNs now);
  // The child said that it serves.
  void OnReady(size_t child);
  void OnExit(size_t child, ExitInfo info, base::TimeNs now);
  // A person or a program asks to stop: the first time gracefully, the second time by force.
  void OnStop(base::TimeNs now);
  // Stops with an error, e.g. nothing became ready in time.
  void Fail(int exit_code, std::string reason, base::TimeNs now);
  void OnTick(base::TimeNs now);

  std::vector<Command> TakeCommands();
  // When OnTick has work to do, if ever.
  std::optional<base::TimeNs> NextWake() const;

  bool stopping() const { return stopping_; }
  bool done() const;
  int exit_code() const { return exit_code_; }
  // Why the cluster stopped by itself; empty otherwise.
  const std::string& failure() const { return failure_; }
  State state(size_t child) const { return children_[child].state; }
  // Ready since its last start.
  bool ready(size_t child) const { return children_[child].ready; }
  bool all_ready() const;
  int restarts(size_t child) const { return children_[child].restarts; }
  // Time until a child in back-off starts again.
  base::TimeNs wait_left(size_t child, base::TimeNs now) const { return children_[child].start_at - now; }
  void CheckInvariants() const;

 private:
  struct Child {
    ChildRule rule;
    State state = State::kWaiting;
    bool ready = false;
    bool ever_ready = false;
    int restarts = 0;
    int start_failures = 0;
    base::TimeNs started = 0;
    base::TimeNs start_at = 0;  // in back-off
    base::TimeNs backoff = 0;   // the next one
  };
  void StartChild(size_t child, base::TimeNs now);
  void BeginStop(base::TimeNs now);
  // Signals the lowest stage that still runs.
  void EnterStage(base::TimeNs now);
  std::optional<int> LowestRunningStage() const;

  const CoreOptions options_;
  std::vector<Child> children_;
  std::vector<Command> commands_;
  bool stopping_ = false;
  bool forced_ = false;
  std::optional<int> stage_;
  base::TimeNs drain_deadline_ = 0;
  base::TimeNs stage_deadline_ = 0;
  bool stage_killed_ = false;
  int exit_code_ = 0;
  std::string failure_;
};

}  // namespace agentserve::tools
