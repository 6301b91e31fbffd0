// Where a sequence runs: argmin over workers of new_prefill_tokens(w) * (batch(w) + 1); ties go to the worker that has
// the program already. Pure functions over the worker table.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "router/core/config.h"
#include "router/core/decision.h"
#include "router/core/prefix_memory.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

struct PlacementQuery {
  uint32_t tokens = 0;         // to have KV for: prompt and generated so far
  uint32_t expected_more = 0;  // output still expected
  WorkerId sticky;             // last decode worker of the program, or none
  bool fresh = false;          // gated workers do not take it...
  bool resident = false;       // ...except the sticky one, which has its KV
  double overflow = 1;         // factor on the batch cap
  bool by_prefix = true;       // L7: cached prefixes count; else the least batch
  bool append_local = true;    // L4: new tokens decide where prefill runs; else all tokens
  // L7: wait for a slot where the KV is rather than compute this many tokens (or more) again elsewhere; 0 = never.
  uint32_t wait_for_tokens = 0;
};

struct Placement {
  WorkerId decode;
  WorkerId prefill;  // none: prefill on the decode worker
  uint32_t new_tokens = 0;
  PlaceReason reason = PlaceReason::kLocalShort;
  Booking booking;
  // When there is none: why.
  WaitReason wait = WaitReason::kNoWorker;
  bool waits_for_sticky = false;
  uint32_t saved_tokens = 0;  // by waiting
};

// True if some ready decode worker has a free batch slot and enough blocks. Cheap: run it before matching prefixes.
// If there is none, `why` says what stands in the way.
bool AnyCapacity(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q, WaitReason* why);
// False when no decode worker can take it now. `matches` as from PrefixSource. O(workers).
bool Place(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q,
           std::span<const PrefixMatch> matches, Placement* out);
// The best few decode workers as Place sees them, the chosen one first; `seen` is how many there are.
std::vector<Candidate> Explain(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q,
                               std::span<const PrefixMatch> matches, WorkerId chosen, uint32_t* seen);
// Blocks of the largest decode pool, and whether any decode worker could ever hold `tokens`.
bool CouldEverFit(const WorkerTable& workers, uint32_t tokens, uint32_t* largest_blocks, uint32_t* needed_blocks);

}  // namespace agentserve::router
