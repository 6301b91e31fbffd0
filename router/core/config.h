// Limits and terms of the router core. Every bound says why it has its size.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/ids.h"
#include "router/core/agent_options.h"
#include "router/core/identity.h"

namespace agentserve::router {

struct CoreConfig {
  std::string policy = "program-fifo";
  // Policies by tenant class; a tenant without a class of its own is its own class. Others use `policy`.
  std::map<std::string, std::string> tenant_policy;
  std::map<std::string, std::string> tenant_class;
  // Weights of tenants (layer L8), > 0; those not named have 1. Unused shares are lent.
  std::map<std::string, double> tenant_share;
  AgentPolicyOptions agent;
  // Most sequences the router puts on one decode worker; 0 = the worker's own batch. The policies with an overflow
  // exceed it, never the worker's.
  uint32_t batch_cap = 0;

  // Queue. A queued 8k-token prompt holds ~100 KiB (tokens, hashes, labels): 10,000 calls or 256 MiB, whichever is
  // less; 16 M tokens are about half an hour of work for one GPU worker, beyond which waiting is pointless.
  uint32_t max_queued = 10'000;
  uint64_t max_queued_bytes = 256ull << 20;
  uint64_t max_queued_tokens = 16'000'000;
  // Requests dispatched and not ended: bounds per-stream memory (about 20 KiB each with gRPC).
  uint32_t max_live = 20'000;
  uint32_t max_n = 128;

  base::TimeNs max_queue_wait = 120 * base::kNsPerSecond;
  // Without any decode worker for this long, waiting requests end with NO_WORKERS. Longer than a supervisor's restart.
  base::TimeNs no_worker_grace = 15 * base::kNsPerSecond;
  base::TimeNs heartbeat = 1 * base::kNsPerSecond;
  // Three missed heartbeats; a broken connection is noticed at once.
  base::TimeNs lease = 3 * base::kNsPerSecond;
  // A linked worker that holds work and says nothing at all for this long is hung (loads come every second).
  base::TimeNs stall_timeout = 120 * base::kNsPerSecond;
  // `Finished` follows the last token in the same stream; longer silence ends the sequence without its totals.
  base::TimeNs finish_grace = 1 * base::kNsPerSecond;
  base::TimeNs link_backoff_first = 50 * base::kNsPerMs;
  base::TimeNs link_backoff_most = 1 * base::kNsPerSecond;

  // Prompts with fewer new tokens than this are prefilled on the decode worker itself: the hand-off costs more.
  uint32_t prefill_threshold = 512;
  // Output tokens assumed when nothing is known, for block bookings. Workers preempt if it was too few.
  uint32_t expected_output_tokens = 128;

  uint32_t max_workers = 256;
  uint32_t max_programs = 65'536;        // ~400 bytes each: 26 MiB
  uint32_t max_prefix_blocks = 262'144;  // ~100 bytes each: 26 MiB; 4 M tokens of 16-token blocks
  uint32_t max_superseded = 256;
  // Tenants whose shares, queues and histories are kept apart; the calls of more share one place. ~2 KiB each.
  uint32_t max_tenants = 1'024;
  uint32_t max_decisions = 4'096;  // decision records, ~1 KiB each

  // Bounds on hints, by tenant.
  TenantRules tenant_rules;
  // Calls that name no program are joined to the one whose prompt they continue (program_finder.h).
  bool infer_programs = true;
  // How long a call waits for a dependency that nobody has named: senders of a graph work side by side.
  base::TimeNs unknown_dependency_grace = 10 * base::kNsPerSecond;

  // A request that was on this many workers when they died is refused, and its like for `poison_ttl`.
  uint32_t poison_limit = 2;
  uint32_t max_poisoned = 1'024;
  base::TimeNs poison_ttl = 600 * base::kNsPerSecond;
  // Dispatches of one sequence, whatever the cause.
  uint32_t max_attempts = 6;

  uint64_t park_default_ms = 30'000;
  uint64_t park_most_ms = 600'000;
  // Share of a decode worker's blocks that waiting programs of one tenant may pin.
  double tenant_pin_share = 0.25;

  // Ends of the model; a first token among these needs no decode worker.
  std::vector<engine::TokenId> end_tokens;
};

}  // namespace agentserve::router
