// What the router remembers of agent programs (one agent run each). Bounded; the least recently used one is forgotten.
// Single-threaded, owned by the core.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

#include "router/core/policy.h"
#include "router/core/types.h"

namespace agentserve::router {

struct Program {
  enum class Phase : uint8_t { kIdle, kCalling, kTool };
  std::string key;  // ProgramTable::Key
  int64_t first_arrival = 0;
  uint32_t calls = 0;
  uint32_t live_calls = 0;
  uint64_t attained_tokens = 0;  // prompt computed + generated
  Phase phase = Phase::kIdle;
  WorkerId last_decode;  // where its KV is
  std::string workflow_class;
  std::string tool_name;
  TimeNs tool_started = 0;
  uint32_t tool_gaps = 0;
  double tool_gap_ms_mean = 0;
  AgentInfo last_agent;  // as sent with the latest call

  ProgramView View() const { return {first_arrival, calls, attained_tokens}; }
};

class ProgramTable {
 public:
  explicit ProgramTable(size_t most) : most_(most) {}

  // Tenants never share programs.
  static std::string Key(std::string_view tenant, std::string_view program);

  // The entry, made if absent. May forget the least recently used other entry. Valid until the next Touch or Erase.
  Program& Touch(const std::string& key, int64_t arrival);
  // Null if unknown.
  Program* Find(const std::string& key);
  const Program* Find(const std::string& key) const;
  void Erase(const std::string& key);
  size_t size() const { return index_.size(); }
  // Aborts when broken.
  void CheckInvariants() const;

 private:
  const size_t most_;
  std::list<Program> lru_;                                                    // most recently used first
  std::unordered_map<std::string_view, std::list<Program>::iterator> index_;  // keys point into lru_
};

}  // namespace agentserve::router
