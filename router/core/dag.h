// Which calls wait for which: graphs of calls and programs, declared ahead or revealed call by call.
//
//   call with depends_on ──► all ended?  ── yes ──► may queue
//                               │ no
//                               ▼
//                            waits here, apart from the queue ── last dependency ends ──► may queue
//
// A dependency names a call of the same program (its call_id), or else a program of the same tenant. A call ends with
// its request, however that ends; a program with its final call or EndProgram. A name that nobody has used yet is
// waited for as well (for how long is the caller's business), so that parallel senders need no order. What would close
// a circle is refused.
//
// Pure, single-threaded, bounded. Nodes exist for calls that have a name, wait, or are declared; any other call costs
// two look-ups.
//
// Invariants
//  1. A waiting request has at least one dependency that has not ended.
//  2. No node waits for itself, whatever way round.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router/core/types.h"

namespace agentserve::router {

// A call to come, as declared.
struct DeclaredCallInfo {
  std::string call_id;
  std::vector<std::string> depends_on;
  uint32_t osl_hint = 0;
};

// Where a call stands in its graph; all zero = nothing is known.
struct GraphView {
  uint32_t dependents = 0;   // calls that wait for this one or its program, directly
  uint32_t join_left = 0;    // of these, the least number of names one still waits for; 1 = only this is missing
  uint32_t join_width = 0;   // and how many names that one had at first
  uint32_t path_calls = 0;   // longest chain of calls behind this one
  uint64_t path_tokens = 0;  // expected output tokens along the chain that has most
};

class Dag {
 public:
  struct Limits {
    // A node takes about 300 bytes.
    size_t nodes = 65'536;
    // Names of ended calls and programs remembered, so that later calls may refer to them; about 150 bytes each.
    size_t ended = 65'536;
    // Requests waiting. They hold their prompts; more would be a second queue.
    size_t waiting = 10'000;
    // Nodes visited when looking for a circle or a path: graphs of agents are far smaller.
    size_t visits = 4'096;
    size_t depends_on = 64;
    size_t declared_at_once = 1'024;
  };
  explicit Dag(Limits limits) : limits_(limits) {}

  // Takes in the call of `request`; `program` is a ProgramTable::Key ("" = none). True: it may queue. False: it waits.
  // INVALID_ARGUMENT: a circle, or a name that a live call has; RESOURCE_EXHAUSTED: too many. On an error nothing has
  // changed.
  absl::StatusOr<bool> Arrive(RequestKey request, const std::string& program, const AgentInfo& agent);
  // The call's request is over. Appends requests that may queue now, oldest first.
  void EndCall(RequestKey request, std::vector<RequestKey>* released);
  // The program is over, with all that was declared of it.
  void EndProgram(const std::string& program, std::vector<RequestKey>* released);

  // Calls to come. Errors as Arrive; nothing has changed then.
  absl::Status Declare(const std::string& program, std::string_view tenant, std::span<const DeclaredCallInfo> calls);
  // Declared and not arrived.
  uint32_t DeclaredLeft(const std::string& program) const;

  bool Waits(RequestKey request) const { return waiting_.count(request) > 0; }
  // What the request still waits for. Unknown = neither declared nor seen; whether a program (by key) lives is asked of
  // `known_program`.
  struct Missing {
    std::vector<std::string> names, unknown;
  };
  template <typename KnownProgram>
  Missing MissingOf(RequestKey request, const KnownProgram& known_program) const {
    Missing out;
    const Node* n = NodeOf(request);
    if (n == nullptr) return out;
    for (const Need& d : n->needs) {
      out.names.push_back(d.label);
      if (by_key_.count(d.call) == 0 && calls_of_.count(d.program) == 0 && !known_program(d.program)) {
        out.unknown.push_back(d.label);
      }
    }
    return out;
  }
  GraphView ViewOf(const std::string& program, const std::string& call_id) const;
  size_t waiting() const { return waiting_.size(); }
  size_t nodes() const { return nodes_.size(); }
  size_t ended() const { return ended_.size(); }
  void CheckInvariants() const;

 private:
  // A dependency that has not ended: a call if there is one of that name, else a program.
  struct Need {
    std::string call, program;  // keys; `call` is empty for calls outside programs
    std::string label;          // as written
  };
  struct Node {
    std::string key;      // CallKey, or "" for a waiting call without a name
    std::string program;  // ProgramTable key or ""
    RequestKey request;   // 0: declared, not arrived
    uint32_t osl_hint = 0;
    std::vector<Need> needs;
    uint32_t width = 0;  // most needs it ever had
  };

  static std::string CallKey(const std::string& program, std::string_view call);
  const Node* NodeOf(RequestKey request) const;
  absl::StatusOr<std::vector<Need>> ToNeeds(const std::string& program, std::string_view tenant,
                                            const std::vector<std::string>& names) const;
  bool Ended(const Need& d) const;
  uint64_t Insert(Node node);
  void Erase(uint64_t id);
  void SetNeeds(uint64_t id, std::vector<Need> needs);
  // The name of the dependency by which node `id` waits for itself, or "".
  std::string CircleAt(uint64_t id) const;
  void Targets(const Need& d, std::vector<uint64_t>* out) const;
  bool Means(const Need& d, const std::string& key) const;
  void KeyEnded(const std::string& key, std::vector<RequestKey>* released);
  void RememberEnded(const std::string& key);
  struct Path {
    uint32_t calls = 0;
    uint64_t tokens = 0;
  };
  Path PathBehind(uint64_t id, std::map<uint64_t, Path>* done) const;
  void Watchers(const std::string& key, std::vector<uint64_t>* out) const;

  const Limits limits_;
  uint64_t next_node_ = 1;
  std::map<uint64_t, Node> nodes_;
  std::unordered_map<std::string, uint64_t> by_key_;
  std::unordered_map<RequestKey, uint64_t> by_request_;
  std::set<RequestKey> waiting_;
  std::unordered_map<std::string, std::set<uint64_t>> calls_of_;  // program key -> its nodes
  std::unordered_map<std::string, std::set<uint64_t>> watchers_;  // key -> nodes with a need that names it
  std::unordered_set<std::string> ended_;
  std::deque<std::string> ended_order_;
};

}  // namespace agentserve::router
