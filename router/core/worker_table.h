// The workers the router knows: membership with heartbeat leases and incarnations, link phases, loads, and how many KV
// blocks of each are spoken for. Single-threaded, owned by the core.
//
// Invariants
//  1. At most one entry per worker name; a removed WorkerId never comes back.
//  2. All entries share one model fingerprint and one KV layout; another one may come when the table is empty.
//  3. unreflected_blocks and growth_blocks are the sums over the worker's bookings.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "router/core/config.h"
#include "router/core/types.h"

namespace agentserve::router {

// Blocks a sequence is expected to take on its decode worker.
struct Booking {
  uint32_t unreflected = 0;  // reserved (or about to be) but not yet part of the worker's own load report
  uint32_t growth = 0;       // for output still to come
};

struct Worker {
  WorkerId id;
  WorkerInfo info;
  WorkerPhase phase = WorkerPhase::kBackoff;
  TimeNs lease_until = 0;
  TimeNs last_message = 0;  // on the link
  TimeNs retry_at = 0;      // kBackoff: when to open the link
  uint32_t link_failures = 0;
  bool linked = false;
  bool drain_asked = false;  // by an operator; survives heartbeats
  bool has_load = false;
  bool saturated = false;  // refused work; until its next load report
  bool gated = false;      // L1: takes no calls of new programs
  WorkerLoad load;
  int64_t last_step = -1;  // of this link
  // Decode: sequences placed here. Prefill: prompts started or held here.
  std::set<SeqId> sequences;
  // Decode only.
  std::set<SeqId> reserved_since_load;
  int64_t unreflected_blocks = 0;
  int64_t growth_blocks = 0;
  std::set<WorkerId> peers;  // prefill workers whose pools it can read

  bool ready() const { return phase == WorkerPhase::kReady; }
  uint32_t Blocks(uint64_t tokens) const {
    return static_cast<uint32_t>((tokens + info.block_tokens - 1) / info.block_tokens);
  }
  uint32_t TotalBlocks() const { return has_load && load.total_blocks > 0 ? load.total_blocks : info.num_blocks; }
  // Blocks nobody speaks for; may be negative when estimates were too small.
  int64_t FreeBlocks() const {
    return int64_t{has_load ? load.available_blocks : info.num_blocks} - unreflected_blocks - growth_blocks;
  }
};

class WorkerTable {
 public:
  explicit WorkerTable(const CoreConfig& config) : config_(config) {}

  struct Registered {
    WorkerId id;
    bool fresh = false;                // a new entry
    std::optional<WorkerId> replaced;  // entry of an older incarnation: the caller must end it with Remove
  };
  // Adds or refreshes. Errors: FAILED_PRECONDITION (other model or layout, superseded incarnation), INVALID_ARGUMENT
  // (unusable fields), RESOURCE_EXHAUSTED (table full).
  absl::StatusOr<Registered> Register(const WorkerInfo& info, TimeNs now);
  void Remove(WorkerId id);

  Worker* Find(WorkerId id);
  const Worker* Find(WorkerId id) const;
  Worker* FindByName(std::string_view name);
  const Worker* FindByName(std::string_view name) const;
  // In order of registration.
  std::map<WorkerId, Worker>& all() { return workers_; }
  const std::map<WorkerId, Worker>& all() const { return workers_; }
  bool AnyDecode() const;
  bool AnyReadyDecode() const;

  void Book(Worker* w, SeqId seq, const Booking& b);
  void Unbook(Worker* w, SeqId seq, const Booking& b);
  void CheckInvariants() const;

 private:
  absl::Status Acceptable(const WorkerInfo& info) const;

  const CoreConfig& config_;
  uint64_t next_id_ = 1;
  std::map<WorkerId, Worker> workers_;
  std::map<std::string, WorkerId, std::less<>> by_name_;
  // Incarnations replaced by a newer one: their heartbeats must not bring them back.
  std::deque<std::pair<std::string, uint64_t>> superseded_;
};

}  // namespace agentserve::router
