#include "tools/cli/core/cluster_core.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/flags.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;
using base::TimeNs;

std::string ExitInfo::Text() const {
  if (signal != 0) return StrCat("was killed by signal ", signal, " (", strsignal(signal), ")");
  return StrCat("ended with exit code ", code);
}

ClusterCore::ClusterCore(std::vector<ChildRule> children, CoreOptions options) : options_(options) {
  for (ChildRule& rule : children) {
    Child child;
    child.rule = std::move(rule);
    child.backoff = options_.backoff_first;
    children_.push_back(std::move(child));
  }
}

void ClusterCore::Begin(TimeNs now) {
  for (size_t i = 0; i < children_.size(); ++i) StartChild(i, now);
}

void ClusterCore::StartChild(size_t child, TimeNs now) {
  Child& c = children_[child];
  AS_CHECK(!stopping_ && c.state != State::kRunning) << c.rule.name;
  c.state = State::kRunning;
  c.ready = false;
  c.started = now;
  commands_.push_back({Command::Kind::kStart, child});
}

void ClusterCore::OnReady(size_t child) {
  children_[child].ready = true;
  children_[child].ever_ready = true;
}

void ClusterCore::OnExit(size_t child, ExitInfo info, TimeNs now) {
  Child& c = children_[child];
  AS_CHECK(c.state == State::kRunning) << c.rule.name;
  c.ready = false;
  if (stopping_) {
    c.state = State::kStopped;
    EnterStage(now);
    return;
  }
  // Wrong settings, model or accelerator: another try would end the same way.
  const bool hopeless = info.signal == 0 && info.code >= base::kExitConfig && info.code <= base::kExitGpu;
  const bool gives_up = !c.ever_ready && (hopeless || ++c.start_failures >= options_.max_start_failures);
  if (gives_up) {
    c.state = State::kStopped;
    Fail(hopeless ? info.code : base::kExitFailure,
         hopeless ? StrCat(c.rule.name, " cannot start: it ", info.Text())
                  : StrCat(c.rule.name, " ended ", c.start_failures, " times before it was ready; the last time it ",
                           info.Text()),
         now);
    return;
  }
  if (now - c.started >= options_.healthy_after) c.backoff = options_.backoff_first;
  c.state = State::kBackoff;
  c.start_at = now + c.backoff;
  c.backoff = std::min(2 * c.backoff, options_.backoff_most);
  ++c.restarts;
}

void ClusterCore::Fail(int exit_code, std::string reason, TimeNs now) {
  if (stopping_) return;
  exit_code_ = exit_code;
  failure_ = std::move(reason);
  BeginStop(now);
}

void ClusterCore::OnStop(TimeNs now) {
  if (!stopping_) {
    BeginStop(now);
    return;
  }
  if (forced_) return;
  forced_ = true;
  for (size_t i = 0; i < children_.size(); ++i) {
    if (children_[i].state == State::kRunning) commands_.push_back({Command::Kind::kKill, i});
  }
}

void ClusterCore::BeginStop(TimeNs now) {
  stopping_ = true;
  drain_deadline_ = now + options_.drain_timeout;
  // A start that was decided but not yet carried out must not happen any more.
  for (const Command& command : commands_) {
    if (command.kind == Command::Kind::kStart) children_[command.child].state = State::kStopped;
  }
  commands_.clear();
  for (Child& c : children_) {
    if (c.state != State::kRunning) c.state = State::kStopped;
  }
  EnterStage(now);
}

std::optional<int> ClusterCore::LowestRunningStage() const {
  std::optional<int> lowest;
  for (const Child& c : children_) {
    if (c.state == State::kRunning) lowest = std::min(lowest.value_or(c.rule.stop_stage), c.rule.stop_stage);
  }
  return lowest;
}

void ClusterCore::EnterStage(TimeNs now) {
  const std::optional<int> lowest = LowestRunningStage();
  if (!lowest || lowest == stage_) return;
  stage_ = lowest;
  stage_killed_ = false;
  stage_deadline_ = std::max(drain_deadline_, now + options_.late_stage);
  for (size_t i = 0; i < children_.size(); ++i) {
    const Child& c = children_[i];
    if (c.state != State::kRunning || c.rule.stop_stage != *lowest || forced_) continue;
    commands_.push_back({Command::Kind::kTerminate, i});
  }
}

void ClusterCore::OnTick(TimeNs now) {
  if (!stopping_) {
    for (size_t i = 0; i < children_.size(); ++i) {
      if (children_[i].state == State::kBackoff && now >= children_[i].start_at) StartChild(i, now);
    }
    return;
  }
  if (!stage_ || stage_killed_ || forced_ || now < stage_deadline_) return;
  stage_killed_ = true;
  for (size_t i = 0; i < children_.size(); ++i) {
    const Child& c = children_[i];
    if (c.state == State::kRunning && c.rule.stop_stage == *stage_) commands_.push_back({Command::Kind::kKill, i});
  }
}

std::vector<Command> ClusterCore::TakeCommands() {
  CheckInvariants();
  return std::exchange(commands_, {});
}

std::optional<TimeNs> ClusterCore::NextWake() const {
  if (stopping_) {
    if (done() || forced_ || stage_killed_) return std::nullopt;
    return stage_deadline_;
  }
  std::optional<TimeNs> wake;
  for (const Child& c : children_) {
    if (c.state == State::kBackoff) wake = std::min(wake.value_or(c.start_at), c.start_at);
  }
  return wake;
}

bool ClusterCore::done() const { return stopping_ && !LowestRunningStage(); }

bool ClusterCore::all_ready() const {
  return std::all_of(children_.begin(), children_.end(), [](const Child& c) { return c.ready; });
}

void ClusterCore::CheckInvariants() const {
  for (const Command& command : commands_) {
    AS_CHECK(command.kind != Command::Kind::kStart || !stopping_);
    AS_CHECK(children_[command.child].state == State::kRunning) << children_[command.child].rule.name;
  }
  for (const Child& c : children_) {
    AS_CHECK(!c.ready || c.state == State::kRunning) << c.rule.name;
    AS_CHECK(!stopping_ || c.state == State::kRunning || c.state == State::kStopped) << c.rule.name;
  }
}

}  // namespace agentserve::tools
