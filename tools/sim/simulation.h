// A cluster under virtual time: the production router core, simulated workers, clients that replay a workload. Events
// lie in a heap ordered by (time, sequence number); there is no clock, thread or unordered iteration, so one seed gives
// one event log.
//
// Links take Calibration::message_ms each way and keep order. Workers neither heartbeat nor lose leases; deaths are
// broken connections.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/core/config.h"
#include "tools/sim/metrics.h"
#include "tools/sim/step_model.h"
#include "tools/workload/arrivals.h"
#include "tools/workload/workload.h"

namespace agentserve::sim {

// What clients tell the router of themselves.
enum class Hints : uint8_t {
  kNone,  // tenant only
  kIds,   // program, class, step of the job, tool names
  kFull,  // and true sizes: output length, calls left, tool gap, final
};

struct SimOptions {
  std::string policy = "fifo";
  uint64_t seed = 1;
  uint32_t decode_workers = 1, prefill_workers = 0;
  bool core_workers = false;  // the production worker cores instead of the fast model
  uint32_t block_tokens = 16;
  // 0: the calibration's.
  uint32_t num_blocks = 0, max_batch = 0;
  double host_gib = 0;  // of a decode worker's host tier
  bool infinite_cache = false;
  Hints hints = Hints::kIds;
  uint32_t tenants = 0;  // > 0: sessions are dealt to so many tenants instead of the workload's own

  workload::ArrivalKind arrivals = workload::ArrivalKind::kPoisson;
  double rate = 1;            // sessions a second, open arrivals
  uint32_t population = 100;  // sessions at once, closed
  // Arrivals end after this; jobs that start before `warmup_s` or after it are not counted.
  double duration_s = 600, warmup_s = 120;
  // Virtual time at which the run is given up although counted jobs are not done.
  double limit_s = 1e7;
  // Call sizes are what clients set as max_tokens (published bursts); else max_tokens is a generous cap.
  bool exact_max_tokens = false;
  Slo slo;
  // Seconds at which a decode worker dies (index chosen by the seed); it is back 5 s later.
  std::vector<double> kill_at_s;
  // Changes to the router's configuration after the simulator's own.
  std::function<void(router::CoreConfig*)> configure;
  uint32_t check_every = 0;  // events between checks of all invariants; 0 = never (O(everything) each)
  std::function<void(double virtual_s, size_t jobs_done)> progress;
};

struct SimResult {
  Figures figures;
  uint64_t event_hash = 0;
  uint64_t events = 0;
  uint64_t calls_ended = 0;
  double virtual_s = 0;
  double busy_share = 0;  // of decode workers
  uint64_t preemptions = 0, migrations = 0;
  bool gave_up = false;  // at limit_s, or because arrivals outran the router's bounds
  RunRecords records;
};

absl::StatusOr<SimResult> Simulate(const workload::Workload& w, const Calibration& calibration,
                                   const SimOptions& options);

}  // namespace agentserve::sim
