#include "router/core/dag.h"

#include <algorithm>

#include "base/check.h"
#include "base/strings.h"
#include "router/core/program_table.h"

namespace agentserve::router {
namespace {

using base::StrCat;

std::string Quoted(std::string_view s) { return StrCat("\"", s.substr(0, 128), "\""); }

}  // namespace

// Two zero bytes keep calls apart from programs: names hold none.
std::string Dag::CallKey(const std::string& program, std::string_view call) {
  if (program.empty()) return "";
  std::string key = program;
  key.append(2, '\0');
  key.append(call);
  return key;
}

const Dag::Node* Dag::NodeOf(RequestKey request) const {
  const auto it = by_request_.find(request);
  return it == by_request_.end() ? nullptr : &nodes_.at(it->second);
}

// ---- nodes ----

uint64_t Dag::Insert(Node node) {
  const uint64_t id = next_node_++;
  if (!node.key.empty()) by_key_.emplace(node.key, id);
  if (!node.program.empty()) calls_of_[node.program].insert(id);
  if (node.request.value != 0) by_request_.emplace(node.request, id);
  std::vector<Need> needs = std::move(node.needs);
  node.needs.clear();
  nodes_.emplace(id, std::move(node));
  SetNeeds(id, std::move(needs));
  return id;
}

void Dag::SetNeeds(uint64_t id, std::vector<Need> needs) {
  Node& n = nodes_.at(id);
  const auto leave = [&](const std::string& key) {
    const auto it = watchers_.find(key);
    if (it == watchers_.end()) return;
    it->second.erase(id);
    if (it->second.empty()) watchers_.erase(it);
  };
  for (const Need& d : n.needs) {
    leave(d.call);
    leave(d.program);
  }
  n.needs = std::move(needs);
  n.width = std::max(n.width, static_cast<uint32_t>(n.needs.size()));
  for (const Need& d : n.needs) {
    if (!d.call.empty()) watchers_[d.call].insert(id);
    watchers_[d.program].insert(id);
  }
  if (n.request.value == 0) return;
  if (n.needs.empty()) {
    waiting_.erase(n.request);
  } else {
    waiting_.insert(n.request);
  }
}

void Dag::Erase(uint64_t id) {
  SetNeeds(id, {});
  const Node& n = nodes_.at(id);
  if (!n.key.empty()) by_key_.erase(n.key);
  if (n.request.value != 0) by_request_.erase(n.request);
  if (const auto it = calls_of_.find(n.program); it != calls_of_.end()) {
    it->second.erase(id);
    if (it->second.empty()) calls_of_.erase(it);
  }
  nodes_.erase(id);
}

// ---- names ----

absl::StatusOr<std::vector<Dag::Need>> Dag::ToNeeds(const std::string& program, std::string_view tenant,
                                                    const std::vector<std::string>& names) const {
  if (names.size() > limits_.depends_on) {
    return absl::InvalidArgumentError(StrCat("depends_on has ", names.size(), " names; at most ", limits_.depends_on));
  }
  std::vector<Need> out;
  for (const std::string& name : names) {
    if (name.empty()) return absl::InvalidArgumentError("depends_on holds an empty name");
    const bool repeated = std::any_of(out.begin(), out.end(), [&](const Need& d) { return d.label == name; });
    Need need{CallKey(program, name), ProgramTable::Key(tenant, name), name};
    if (!repeated && !Ended(need)) out.push_back(std::move(need));
  }
  return out;
}

bool Dag::Ended(const Need& d) const {
  if (!d.call.empty() && by_key_.count(d.call) > 0) return false;
  if (!d.call.empty() && ended_.count(d.call) > 0) return true;
  return ended_.count(d.program) > 0;
}

bool Dag::Means(const Need& d, const std::string& key) const {
  return d.call == key || (d.program == key && (d.call.empty() || by_key_.count(d.call) == 0));
}

void Dag::RememberEnded(const std::string& key) {
  if (key.empty() || !ended_.insert(key).second) return;
  ended_order_.push_back(key);
  if (ended_order_.size() <= limits_.ended) return;
  ended_.erase(ended_order_.front());
  ended_order_.pop_front();
}

// ---- circles ----

void Dag::Targets(const Need& d, std::vector<uint64_t>* out) const {
  if (const auto call = by_key_.find(d.call); !d.call.empty() && call != by_key_.end()) {
    out->push_back(call->second);
  } else if (const auto calls = calls_of_.find(d.program); calls != calls_of_.end()) {
    out->insert(out->end(), calls->second.begin(), calls->second.end());
  }
}

std::string Dag::CircleAt(uint64_t id) const {
  const Node& start = nodes_.at(id);
  for (const Need& first : start.needs) {
    // A program ends after its calls, so a call that waits for its own program waits for itself.
    if (first.program == start.program && Means(first, first.program)) return first.label;
    std::vector<uint64_t> todo;
    std::set<uint64_t> seen;
    Targets(first, &todo);
    while (!todo.empty()) {
      const uint64_t at = todo.back();
      todo.pop_back();
      if (at == id) return first.label;
      if (!seen.insert(at).second) continue;
      // A graph too large to check is refused like a circle.
      if (seen.size() > limits_.visits) return first.label;
      for (const Need& d : nodes_.at(at).needs) Targets(d, &todo);
    }
  }
  return "";
}

// ---- calls ----

absl::StatusOr<bool> Dag::Arrive(RequestKey request, const std::string& program, const AgentInfo& agent) {
  const std::string key = agent.call_id.empty() ? "" : CallKey(program, agent.call_id);
  if (key.empty() && agent.depends_on.empty()) return true;
  auto needs = ToNeeds(program, agent.tenant_id, agent.depends_on);
  if (!needs.ok()) return needs.status();
  const auto known = key.empty() ? by_key_.end() : by_key_.find(key);
  const bool declared = known != by_key_.end();
  if (declared && nodes_.at(known->second).request.value != 0) {
    return absl::InvalidArgumentError(
        StrCat("a call named ", Quoted(agent.call_id), " of this program is running; give each call its own call_id"));
  }
  // What was declared holds besides what the call says itself.
  std::vector<Need> before;
  if (declared) {
    before = nodes_.at(known->second).needs;
    for (const Need& d : before) {
      const bool said = std::any_of(needs->begin(), needs->end(), [&](const Need& n) { return n.label == d.label; });
      if (!said) needs->push_back(d);
    }
  }
  if (key.empty() && needs->empty()) return true;
  if (!declared && nodes_.size() >= limits_.nodes) {
    return absl::ResourceExhaustedError(StrCat("the router follows ", nodes_.size(), " named calls, its most"));
  }
  if (!needs->empty() && waiting_.size() >= limits_.waiting) {
    return absl::ResourceExhaustedError(
        StrCat(waiting_.size(), " calls wait for others, the most; send calls when their dependencies have ended"));
  }
  const bool ready = needs->empty();
  uint64_t id = 0;
  if (declared) {
    id = known->second;
    nodes_.at(id).request = request;
    by_request_.emplace(request, id);
    SetNeeds(id, std::move(*needs));
  } else {
    id = Insert({key, program, request, agent.osl_hint.value_or(0), std::move(*needs), 0});
  }
  const std::string circle = CircleAt(id);
  if (circle.empty()) return ready;
  if (declared) {
    SetNeeds(id, {});
    nodes_.at(id).request = RequestKey();
    by_request_.erase(request);
    SetNeeds(id, std::move(before));
  } else {
    Erase(id);
  }
  return absl::InvalidArgumentError(
      StrCat("depends_on ", Quoted(circle), " closes a circle: that one waits for this call"));
}

void Dag::KeyEnded(const std::string& key, std::vector<RequestKey>* released) {
  const auto it = watchers_.find(key);
  if (it == watchers_.end()) return;
  const std::set<uint64_t> nodes = it->second;
  for (uint64_t id : nodes) {
    Node& n = nodes_.at(id);
    std::vector<Need> left;
    for (const Need& d : n.needs) {
      if (!Means(d, key)) left.push_back(d);
    }
    if (left.size() == n.needs.size()) continue;
    const bool done = left.empty();
    SetNeeds(id, std::move(left));
    if (done && n.request.value != 0) released->push_back(n.request);
  }
}

void Dag::EndCall(RequestKey request, std::vector<RequestKey>* released) {
  const auto it = by_request_.find(request);
  if (it == by_request_.end()) return;
  const std::string key = nodes_.at(it->second).key;
  const size_t before = released->size();
  // Before the node goes: names mean this call only while it is there.
  if (!key.empty()) KeyEnded(key, released);
  Erase(it->second);
  RememberEnded(key);
  std::sort(released->begin() + static_cast<std::ptrdiff_t>(before), released->end());
}

void Dag::EndProgram(const std::string& program, std::vector<RequestKey>* released) {
  const size_t before = released->size();
  if (const auto it = calls_of_.find(program); it != calls_of_.end()) {
    const std::set<uint64_t> calls = it->second;
    for (uint64_t id : calls) {
      const Node& n = nodes_.at(id);
      if (n.request.value != 0) continue;  // runs or waits; its own end counts
      const std::string key = n.key;
      KeyEnded(key, released);
      Erase(id);
      RememberEnded(key);
    }
  }
  KeyEnded(program, released);
  RememberEnded(program);
  std::sort(released->begin() + static_cast<std::ptrdiff_t>(before), released->end());
}

absl::Status Dag::Declare(const std::string& program, std::string_view tenant,
                          std::span<const DeclaredCallInfo> calls) {
  AS_CHECK(!program.empty());
  if (calls.size() > limits_.declared_at_once) {
    return absl::InvalidArgumentError(
        StrCat("calls has ", calls.size(), " entries; at most ", limits_.declared_at_once, " in one message"));
  }
  if (nodes_.size() + calls.size() > limits_.nodes) {
    return absl::ResourceExhaustedError(StrCat("the router follows ", nodes_.size(), " named calls, nearly its most"));
  }
  std::vector<uint64_t> made;
  std::map<uint64_t, std::vector<Need>> before;
  const auto undo = [&](absl::Status error) {
    for (auto& [id, needs] : before) SetNeeds(id, std::move(needs));
    for (uint64_t id : made) Erase(id);
    return error;
  };
  // All names first, so that the calls of one message may refer to each other in any order.
  for (const DeclaredCallInfo& c : calls) {
    if (c.call_id.empty()) return undo(absl::InvalidArgumentError("a declared call has no call_id"));
    const std::string key = CallKey(program, c.call_id);
    if (by_key_.count(key) == 0) made.push_back(Insert({key, program, RequestKey(), c.osl_hint, {}, 0}));
  }
  for (const DeclaredCallInfo& c : calls) {
    const uint64_t id = by_key_.at(CallKey(program, c.call_id));
    if (nodes_.at(id).request.value != 0) continue;  // has arrived: too late to change
    auto needs = ToNeeds(program, tenant, c.depends_on);
    if (!needs.ok()) return undo(needs.status());
    before.emplace(id, nodes_.at(id).needs);
    SetNeeds(id, std::move(*needs));
    if (c.osl_hint > 0) nodes_.at(id).osl_hint = c.osl_hint;
    if (const std::string circle = CircleAt(id); !circle.empty()) {
      return undo(absl::InvalidArgumentError(
          StrCat("call ", Quoted(c.call_id), ": depends_on ", Quoted(circle), " closes a circle")));
    }
  }
  return absl::OkStatus();
}

uint32_t Dag::DeclaredLeft(const std::string& program) const {
  const auto it = calls_of_.find(program);
  if (it == calls_of_.end()) return 0;
  return static_cast<uint32_t>(std::count_if(it->second.begin(), it->second.end(),
                                             [&](uint64_t id) { return nodes_.at(id).request.value == 0; }));
}

// ---- what policies see ----

void Dag::Watchers(const std::string& key, std::vector<uint64_t>* out) const {
  const auto it = watchers_.find(key);
  if (key.empty() || it == watchers_.end()) return;
  for (uint64_t id : it->second) {
    const auto& needs = nodes_.at(id).needs;
    if (std::any_of(needs.begin(), needs.end(), [&](const Need& d) { return Means(d, key); })) out->push_back(id);
  }
}

Dag::Path Dag::PathBehind(uint64_t id, std::map<uint64_t, Path>* done) const {
  if (const auto it = done->find(id); it != done->end()) return it->second;
  const Node& n = nodes_.at(id);
  Path best;
  if (done->size() < limits_.visits) {
    std::vector<uint64_t> next;
    Watchers(n.key, &next);
    for (uint64_t w : next) {
      const Path p = PathBehind(w, done);
      best.calls = std::max(best.calls, p.calls);
      best.tokens = std::max(best.tokens, p.tokens);
    }
  }
  best.calls += 1;
  best.tokens += n.osl_hint;
  done->emplace(id, best);
  return best;
}

GraphView Dag::ViewOf(const std::string& program, const std::string& call_id) const {
  GraphView out;
  if (watchers_.empty() || program.empty()) return out;
  std::vector<uint64_t> watchers;
  if (!call_id.empty()) Watchers(CallKey(program, call_id), &watchers);
  Watchers(program, &watchers);
  std::map<uint64_t, Path> done;
  for (uint64_t id : watchers) {
    const Node& n = nodes_.at(id);
    const auto left = static_cast<uint32_t>(n.needs.size());
    if (out.dependents == 0 || left < out.join_left || (left == out.join_left && n.width > out.join_width)) {
      out.join_left = left;
      out.join_width = n.width;
    }
    ++out.dependents;
    const Path p = PathBehind(id, &done);
    out.path_calls = std::max(out.path_calls, p.calls);
    out.path_tokens = std::max(out.path_tokens, p.tokens);
  }
  return out;
}

void Dag::CheckInvariants() const {
  AS_CHECK_LE(nodes_.size(), limits_.nodes);
  AS_CHECK_LE(waiting_.size(), limits_.waiting);
  AS_CHECK_LE(ended_.size(), limits_.ended);
  AS_CHECK_EQ(ended_.size(), ended_order_.size());
  size_t waiting = 0, named = 0, arrived = 0;
  for (const auto& [id, n] : nodes_) {
    named += n.key.empty() ? 0 : 1;
    arrived += n.request.value != 0 ? 1 : 0;
    if (n.request.value != 0 && !n.needs.empty()) {
      ++waiting;
      AS_CHECK_EQ(waiting_.count(n.request), 1u);
    }
    for (const Need& d : n.needs) AS_CHECK_EQ(watchers_.at(d.program).count(id), 1u);
    AS_CHECK(CircleAt(id).empty());
  }
  AS_CHECK_EQ(waiting, waiting_.size());
  AS_CHECK_EQ(named, by_key_.size());
  AS_CHECK_EQ(arrived, by_request_.size());
  for (const auto& [key, ids] : watchers_) AS_CHECK(!ids.empty());
}

}  // namespace agentserve::router
