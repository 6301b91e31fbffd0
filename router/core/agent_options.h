// The `agent` policy's layers and their constants. Every layer can be left out, for the ablation; with all of them off
// the policy is program-FIFO. docs/scheduling.md says what each does and what a user may want to tune.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/clock.h"

namespace agentserve::router {

// What a call costs, in units of one prefilled token; shares, deficits and keys are counted in these. Defaults: the 1B
// model on an H200 (prefill 3.3 us a token; a decode step of 256 sequences 14 us a sequence, and reading 32 KiB of KV
// per token of context at 4.2 TB/s). `agentserve bench calibrate` prints them for other machines.
struct CostModel {
  double per_prefill_token = 1;
  double per_output_token = 4;
  double per_output_context_token = 0.0024;  // times the mean context, per output token

  double Prefill(double new_tokens) const { return per_prefill_token * new_tokens; }
  double Decode(double output_tokens, double prompt_tokens) const {
    return output_tokens * (per_output_token + per_output_context_token * (prompt_tokens + output_tokens / 2));
  }
  double Call(double new_tokens, double prompt_tokens, double output_tokens) const {
    return Prefill(new_tokens) + Decode(output_tokens, prompt_tokens);
  }
};

struct AgentPolicyOptions {
  bool gate = true;       // L1: new programs wait while a worker's KV is spoken for
  bool order = true;      // L2: least remaining cost first, in classes
  bool dag = true;        // L3: blocking before background, critical path, stragglers
  bool placement = true;  // L4: short appends stay on the decode worker that holds the KV
  bool decode = true;     // L5: batch-class decodes give way, others are never preempted
  bool retain = true;     // L6: what KV is kept, where, for how long
  bool route = true;      // L7: new tokens x batch, ties to the last worker, room for the expected output
  bool tenants = true;    // L8: deficit counters across tenants

  // L1. Fractions of a decode worker's pool.
  double gate_close = 0.95;
  double gate_open = 0.85;
  // "Back soon": within this time.
  base::TimeNs back_soon = 20 * base::kNsPerSecond;
  // Each so many picks a newcomer past its aging bound passes a closed gate; even, 0 = never.
  uint32_t gate_pass_every = 32;

  // L2.
  double class_ratio = 2.0;  // between the bounds of neighbouring classes
  // Costs below this are one class; bounds are absolute, so that no key goes stale.
  double class_base = 64;
  // A call's key is its own cost plus this much of what its program is expected to need after it.
  double future_weight = 1.0;
  // ... times the probability that the program is back within this many mean waits of a call: work that comes after a
  // long tool run does not stand in anybody's way now.
  double horizon_scale = 4;
  uint32_t oldest_every = 5;  // each so many picks the oldest program; 0 = never
  uint32_t strict_most = 4;   // at most so many of 5 picks go to strict tiers while others wait

  // A call that has waited this long goes first within capacity.
  base::TimeNs aging_bound = 60 * base::kNsPerSecond;
  // Calls tried behind one that fits nowhere, so that no worker idles beside runnable work...
  uint32_t backfill = 8;
  // ...and how often one call may be overtaken so before everybody waits for it.
  uint32_t most_overtakes = 64;

  // L4: appends up to this many new tokens are computed where the KV is.
  uint32_t append_tokens = 512;

  CostModel cost;
};

// Sets the layers from a list such as "L1,L2,L8" (others off), "all", "none" or "all,-L7". L0 is accepted and always
// on. INVALID_ARGUMENT names the piece that is not understood.
absl::Status ParseAgentLayers(std::string_view list, AgentPolicyOptions* out);
// The inverse: "L0,L1,...".
std::string AgentLayers(const AgentPolicyOptions& o);

}  // namespace agentserve::router
