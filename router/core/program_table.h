// What the router remembers of agent programs (one agent run each). Bounded; the least recently used one is forgotten.
// Single-threaded, owned by the core.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "router/core/policy.h"
#include "router/core/predictor.h"
#include "router/core/tool_stats.h"
#include "router/core/types.h"

namespace agentserve::router {

struct Program {
  enum class Phase : uint8_t { kIdle, kCalling, kTool };
  std::string key;      // ProgramTable::Key
  uint64_t serial = 0;  // 1, 2, 3, ... in order of creation; never reused
  int64_t first_arrival = 0;
  int64_t age = 0;  // first_arrival of its oldest ancestor
  uint32_t calls = 0;
  uint32_t live_calls = 0;
  uint32_t waiting_calls = 0;    // of those, the ones that wait for other calls
  uint32_t width = 0;            // most calls queued or running at once since it was last idle
  uint64_t attained_tokens = 0;  // prompts and outputs
  // In units of CostModel.
  double attained = 0;        // of calls that ended
  double path = 0;            // along the most costly chain of calls, its parent's included
  double virtual_finish = 0;  // Justitia; 0 = not set
  Phase phase = Phase::kIdle;
  WorkerId last_decode;         // where its KV is
  uint32_t context_tokens = 0;  // prompt and output of its last call
  std::string tenant;
  std::string workflow_class;
  std::string tool_name;
  TimeNs tool_started = 0;
  TimeNs retire_at = 0;  // idle: when it counts as ended
  GapSummary gaps;
  LengthSummary outputs;
  AgentInfo last_agent;  // as sent with the latest call
  // Queued sequences, ordered again when what is known of the program changes.
  std::vector<SeqId> queued;
  uint32_t Running() const { return live_calls - std::min(live_calls, waiting_calls); }  // or queued
  bool Straggler() const { return width > 1 && Running() == 1; }
  double ordered_at = 0;  // `attained` when they were last ordered
  bool ordered_straggler = false;
};

class ProgramTable {
 public:
  explicit ProgramTable(size_t most) : most_(most) {}

  // Tenants never share programs.
  static std::string Key(std::string_view tenant, std::string_view program);

  // The entry, made if absent (`serial` is set, `calls` is 0). Valid until the next Touch or Erase. The least recently
  // used entry is forgotten for it when the table is full; then `forgotten` is that entry, else its key is empty.
  Program& Touch(const std::string& key, int64_t arrival, Program* forgotten = nullptr);
  // Null if unknown.
  Program* Find(const std::string& key);
  const Program* Find(const std::string& key) const;
  void Erase(const std::string& key);
  size_t size() const { return index_.size(); }
  // Aborts when broken.
  void CheckInvariants() const;

 private:
  const size_t most_;
  uint64_t next_serial_ = 1;
  std::list<Program> lru_;                                                    // most recently used first
  std::unordered_map<std::string_view, std::list<Program>::iterator> index_;  // keys point into lru_
};

}  // namespace agentserve::router
