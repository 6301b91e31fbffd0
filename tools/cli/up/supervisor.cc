#include "tools/cli/up/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/flags.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;
using base::TimeNs;

namespace {

// Shown again when a component is the reason for the end: enough for a message with its context.
constexpr size_t kKeptLines = 12;
constexpr TimeNs kProgressOnTerminal = 100 * base::kNsPerMs;
constexpr TimeNs kProgressElsewhere = 5 * base::kNsPerSecond;

std::vector<ChildRule> Rules(const SupervisorConfig& config) {
  std::vector<ChildRule> rules;
  for (const ManagedChild& c : config.children) rules.push_back(c.rule);
  return rules;
}

std::vector<std::string> Names(const SupervisorConfig& config) {
  std::vector<std::string> names;
  for (const ManagedChild& c : config.children) names.push_back(c.rule.name);
  return names;
}

std::string Seconds(double s) {
  char buf[32];
  std::snprintf(buf, sizeof(buf), "%.2f s", s);
  return buf;
}

double ToSeconds(TimeNs ns) { return static_cast<double>(ns) / 1e9; }

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&set, s);
  return set;
}

}  // namespace

Supervisor::Supervisor(SupervisorConfig config)
    : config_(std::move(config)),
      core_(Rules(config_), config_.core),
      console_(Names(config_), config_.console),
      probe_(config_.ready_host, config_.ready_port, config_.ready_path),
      live_(config_.children.size()) {}

Supervisor::~Supervisor() = default;

int Supervisor::Run() {
  const sigset_t handled = HandledSignals();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &handled, &before);
  auto* const pipe_before = signal(SIGPIPE, SIG_IGN);
  signals_.Reset(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  OpenLogs();
  begin_ = clock_.Now();
  core_.Begin(begin_);
  RunLoop();
  console_.Status("");
  ReportEnd();
  if (!config_.state_file.empty()) unlink(config_.state_file.c_str());
  signal(SIGPIPE, pipe_before);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return core_.exit_code();
}

void Supervisor::OpenLogs() {
  if (config_.log_dir.empty()) return;
  for (size_t i = 0; i < live_.size(); ++i) {
    const std::string path = StrCat(config_.log_dir, "/", config_.children[i].rule.name, ".log");
    live_[i].log_file.Reset(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!live_[i].log_file.valid()) console_.Error(StrCat("cannot write ", path, ": ", strerror(errno)));
  }
}

void Supervisor::RunLoop() {
  while (true) {
    core_.OnTick(clock_.Now());
    RunCommands();
    if (core_.done()) return;
    CheckReady();
    ShowProgress();
    WaitForWork();
    HandleSignals();
    Reap();
  }
}

// Sleeps until a signal, output of a child, an answer of the probe, or the next timer.
void Supervisor::WaitForWork() {
  const TimeNs now = clock_.Now();
  TimeNs wake = now + base::kNsPerSecond;
  if (const auto t = core_.NextWake()) wake = std::min(wake, *t);
  const bool probing = !is_ready_ && !core_.stopping();
  if (probing) wake = std::min({wake, now + HttpProbe::kInterval, next_progress_});
  std::vector<pollfd> fds = {{signals_.get(), POLLIN, 0}};
  std::vector<size_t> owner = {0};
  for (size_t i = 0; i < live_.size(); ++i) {
    if (!live_[i].output.valid()) continue;
    fds.push_back({live_[i].output.get(), POLLIN, 0});
    owner.push_back(i);
  }
  const bool asks = probing && probe_.fd() >= 0;
  if (asks) fds.push_back({probe_.fd(), POLLIN, 0});
  const int timeout_ms = static_cast<int>(std::max<TimeNs>(0, (wake - now + base::kNsPerMs - 1) / base::kNsPerMs));
  if (poll(fds.data(), fds.size(), timeout_ms) <= 0) return;
  for (size_t k = 1; k < owner.size(); ++k) {
    if (fds[k].revents != 0) ReadOutput(owner[k], false);
  }
  if (asks && fds.back().revents != 0) gateway_ok_ = probe_.OnReadable().value_or(0) == 200;
}

void Supervisor::RunCommands() {
  bool changed = false;
  for (const Command& command : core_.TakeCommands()) {
    changed = true;
    if (command.kind == Command::Kind::kStart) {
      StartChild(command.child);
    } else {
      const bool kill_it = command.kind == Command::Kind::kKill;
      if (kill_it) console_.Note(StrCat("killing ", config_.children[command.child].rule.name));
      // Before the child is reaped its pid cannot belong to anyone else.
      if (live_[command.child].pid > 0) kill(live_[command.child].pid, kill_it ? SIGKILL : SIGTERM);
    }
  }
  if (changed) WriteState();
}

void Supervisor::StartChild(size_t i) {
  auto process = Spawn(config_.children[i].process);
  if (!process.ok()) {
    console_.Error(base::MessageOf(process.status()));
    core_.OnExit(i, {base::kExitFailure, 0}, clock_.Now());
    return;
  }
  live_[i].pid = process->pid;
  live_[i].output = std::move(process->output);
  live_[i].lines = LineSplitter();
}

void Supervisor::ReadOutput(size_t i, bool until_end) {
  char buf[16 << 10];
  const auto sink = [this, i](std::string_view line) { OnLine(i, line); };
  // Bounded per turn unless the child is gone, so that one that floods its log cannot starve the others.
  for (int turn = 0; until_end || turn < 8; ++turn) {
    const ssize_t n = read(live_[i].output.get(), buf, sizeof(buf));
    if (n > 0) {
      live_[i].lines.Feed({buf, static_cast<size_t>(n)}, sink);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n == 0 || until_end) {
      live_[i].lines.Finish(sink);
      live_[i].output.Reset();
    }
    return;
  }
}

void Supervisor::OnLine(size_t i, std::string_view line) {
  Live& live = live_[i];
  if (live.log_file.valid()) {
    [[maybe_unused]] const ssize_t n = write(live.log_file.get(), StrCat(line, "\n").data(), line.size() + 1);
  }
  live.last_lines.emplace_back(line);
  if (live.last_lines.size() > kKeptLines) live.last_lines.pop_front();
  // While services stop one after the other, the later ones complain of the earlier: expected, so not for quiet eyes.
  const bool expected = config_.console.quiet && core_.stopping() && core_.failure().empty();
  if (!expected) console_.Line(i, line);
  if (core_.state(i) != ClusterCore::State::kRunning || core_.ready(i) || !IsReadyLine(line)) return;
  core_.OnReady(i);
  if (live.ready_s < 0) live.ready_s = ToSeconds(clock_.Now() - begin_);
  if (is_ready_) console_.Note(StrCat(config_.children[i].rule.name, " is back"));
  WriteState();
}

void Supervisor::HandleSignals() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGCHLD) continue;  // Reap looks at every child anyway
    console_.Status("");
    console_.Note(core_.stopping() ? "stopping at once" : "stopping (once more to stop at once)");
    core_.OnStop(clock_.Now());
  }
}

void Supervisor::Reap() {
  for (size_t i = 0; i < live_.size(); ++i) {
    int status = 0;
    if (live_[i].pid <= 0 || waitpid(live_[i].pid, &status, WNOHANG) != live_[i].pid) continue;
    if (WIFEXITED(status)) OnChildExit(i, {WEXITSTATUS(status), 0});
    if (WIFSIGNALED(status)) OnChildExit(i, {0, WTERMSIG(status)});
  }
}

void Supervisor::OnChildExit(size_t i, ExitInfo info) {
  if (live_[i].output.valid()) ReadOutput(i, true);
  live_[i].pid = -1;
  const bool was_stopping = core_.stopping();
  const TimeNs now = clock_.Now();
  core_.OnExit(i, info, now);
  const std::string& name = config_.children[i].rule.name;
  if (!core_.stopping()) {
    console_.Note(
        StrCat(name, " ", info.Text(), "; starting it again in ", Seconds(ToSeconds(core_.wait_left(i, now)))));
  } else if (!was_stopping) {
    failed_child_ = i;
  } else if (info.signal != 0 || info.code != 0) {
    console_.Note(StrCat(name, " ", info.Text(), " while stopping"));
  }
  WriteState();
}

void Supervisor::CheckReady() {
  if (is_ready_ || core_.stopping()) return;
  const TimeNs now = clock_.Now();
  if (config_.ready_port != 0) probe_.Tick(now);
  const bool answered = config_.ready_port == 0 || gateway_ok_;
  const bool all_said_so = core_.all_ready() || (config_.ready_port != 0 && !config_.wait_for_all);
  const bool ready = answered && all_said_so;
  if (ready) {
    BecomeReady();
  } else if (now - begin_ > config_.ready_timeout) {
    core_.Fail(base::kExitFailure,
               StrCat("not ready after ", Seconds(ToSeconds(config_.ready_timeout)), " (--ready-timeout)"), now);
  }
}

void Supervisor::BecomeReady() {
  is_ready_ = true;
  console_.Status("");
  ReadyReport report;
  report.total_s = ToSeconds(clock_.Now() - begin_);
  for (const Live& live : live_) report.child_s.push_back(live.ready_s);
  WriteState();
  if (config_.on_ready) config_.on_ready(report);
}

void Supervisor::ShowProgress() {
  const TimeNs now = clock_.Now();
  if (is_ready_ || core_.stopping() || now < next_progress_) return;
  const bool first = next_progress_ == 0;
  next_progress_ = now + (config_.console.color ? kProgressOnTerminal : kProgressElsewhere);
  std::string waiting;
  size_t up = 0;
  for (size_t i = 0; i < live_.size(); ++i) {
    if (core_.ready(i)) {
      ++up;
    } else {
      base::StrAppend(&waiting, waiting.empty() ? "" : ", ", config_.children[i].rule.name);
    }
  }
  if (waiting.empty()) waiting = "the cluster to join up";
  const std::string text = StrCat("starting: ", up, " of ", live_.size(), " services up, waiting for ", waiting, " (",
                                  Seconds(ToSeconds(now - begin_)), ")");
  if (config_.console.color) {
    console_.Status(text);
  } else if (!first) {
    console_.Note(text);
  }
}

void Supervisor::WriteState() {
  if (config_.state_file.empty()) return;
  nlohmann::json state = nlohmann::json::parse(config_.state_fields_json);
  state["pid"] = getpid();
  state["ready"] = is_ready_;
  state["processes"] = nlohmann::json::array();
  for (size_t i = 0; i < live_.size(); ++i) {
    const ManagedChild& c = config_.children[i];
    state["processes"].push_back({{"name", c.rule.name},
                                  {"role", c.role},
                                  {"pid", live_[i].pid},
                                  {"host", c.host},
                                  {"port", c.port},
                                  {"metrics_port", c.metrics_port},
                                  {"ready", core_.ready(i)},
                                  {"restarts", core_.restarts(i)}});
  }
  // Written beside and renamed, so that a reader never sees half a file.
  const std::string temporary = config_.state_file + ".tmp";
  {
    std::ofstream out(temporary);
    out << state.dump(2) << "\n";
  }
  if (rename(temporary.c_str(), config_.state_file.c_str()) != 0) {
    console_.Error(StrCat("cannot write --state-file ", config_.state_file, ": ", strerror(errno)));
  }
}

void Supervisor::ReportEnd() {
  if (core_.failure().empty()) {
    console_.Note("stopped");
    return;
  }
  if (config_.console.quiet && failed_child_) {
    for (const std::string& line : live_[*failed_child_].last_lines) {
      if (!IsLoudLine(line)) console_.Note(StrCat(config_.children[*failed_child_].rule.name, ": ", line));
    }
  }
  console_.Error(core_.failure());
}

}  // namespace agentserve::tools
