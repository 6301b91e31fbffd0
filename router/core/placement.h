// Where a sequence runs: argmin over workers of new_prefill_tokens(w) * (batch(w) + 1); ties go to the worker that has
// the program already. Pure functions over the worker table.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "router/core/config.h"
#include "router/core/prefix_memory.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

struct PlacementQuery {
  uint32_t tokens = 0;         // to have KV for: prompt and generated so far
  uint32_t expected_more = 0;  // output still expected
  WorkerId sticky;             // last decode worker of the program, or none
};

struct Placement {
  WorkerId decode;
  WorkerId prefill;  // none: prefill on the decode worker
  uint32_t new_tokens = 0;
  Booking booking;
};

// True if some ready decode worker has a free batch slot and enough blocks. Cheap: run it before matching prefixes.
bool AnyCapacity(const WorkerTable& workers, const PlacementQuery& q);
// False when no decode worker can take it now. `matches` as from PrefixSource.
bool Place(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q,
           std::span<const PrefixMatch> matches, Placement* out);
// Blocks of the largest decode pool, and whether any decode worker could ever hold `tokens`.
bool CouldEverFit(const WorkerTable& workers, uint32_t tokens, uint32_t* largest_blocks, uint32_t* needed_blocks);

}  // namespace agentserve::router
