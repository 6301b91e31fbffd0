// Queue order. A policy is a plain value: a name, a function that orders one call, and a few numbers that say how calls
// are picked. The queue (call_queue.h) keeps calls sorted by what the function returns, so a decision costs O(log
// queue) whatever the policy; only the calls of a program whose state changed are ordered again. What depends on time
// is written as the moment at which it becomes true (`lift_at`), never as a key that goes stale. To add a policy, write
// its order function and a row in policy.cc.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "router/core/agent_options.h"
#include "router/core/decision.h"
#include "router/core/types.h"

namespace agentserve::router {

// Smaller runs sooner; equal keys run in arrival order.
struct OrderKey {
  int64_t tier = 0;    // |tier| < 2^18
  int64_t within = 0;  // 0 .. 2^44
  auto operator<=>(const OrderKey&) const = default;
  // The same order for workers, where larger is sooner.
  int64_t Rank() const { return -(tier * (int64_t{1} << 44) + within); }
};

// By predicted output, in thirds of what is seen (predictor.h).
enum class Difficulty : uint8_t { kEasy, kMedium, kHard };

// What a policy may know of a queued call. Costs are in units of CostModel.
struct CallView {
  int64_t arrival = 0;  // 1, 2, 3, ... in order of arrival
  TimeNs queued_at = 0;
  std::optional<TimeNs> deadline;  // named by the caller
  uint32_t prompt_tokens = 0;
  uint32_t generated_tokens = 0;  // > 0: resumed after a worker died, or preempted
  double predicted_output = 0;    // still to come
  double cost = 0;                // of this call, from here on
  Difficulty difficulty = Difficulty::kMedium;
  // From its graph (dag.h): whether it is all that a join of several still waits for, and the output tokens expected
  // along the heaviest chain of calls behind it.
  bool last_of_join = false;
  uint64_t path_tokens = 0;
  const AgentInfo* agent = nullptr;
  const OracleInfo* oracle = nullptr;  // simulators only
};

// What a policy may know of the call's program. Calls without a program are programs of one call.
struct ProgramView {
  int64_t first_arrival = 0;  // of the oldest ancestor
  uint32_t calls = 0;         // this one included
  uint32_t live_calls = 1;    // queued or running, this one included
  uint32_t width = 1;         // most calls alive at once since it was last idle
  double attained = 0;        // cost of the calls that ended
  double path = 0;            // cost along the most costly chain of its calls and its parent's
  double remaining = 0;       // expected cost from here on, this call included
  double virtual_finish = 0;  // Justitia
  double soon = 1;            // probability that its next call comes while today's queue lasts
};

// Measured by the router, passed to the order functions.
struct OrderContext {
  const AgentPolicyOptions* options = nullptr;
  double mean_call_cost = 100;  // of calls that ended
  double mean_wait_ms = 0;      // in the queue
  double ns_per_cost = 10'000;  // time from hand-out to end per unit of cost, for slack
};

inline constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();

struct Order {
  OrderKey key;
  // From this time on the call goes before all keys, in order of this time.
  TimeNs lift_at = kNever;
  PickReason lift = PickReason::kAged;
  // After this time the lift is of no use (the deadline is missed): then `aged_at` takes its place.
  TimeNs lift_until = kNever;
  TimeNs aged_at = kNever;
  int64_t age = 0;  // of its program; smaller = older
};

enum class PickRule : uint8_t {
  kHead,    // the least key
  kRatio,   // the head of the tier with the highest response ratio, tier t standing for cost kRatioStep^t
  kWindow,  // a window of neighbours in `within` (= predicted output) with the least spread, age counting against it
  kTurns,   // the least key, with turns for the oldest program, lifted calls and strict tiers (agent)
};
// Costs within half an octave of each other share a tier of kRatio: some 40 tiers in practice, looked at per pick.
inline constexpr double kRatioStep = 1.414213562;

struct Policy {
  std::string_view name;
  std::string_view help;
  Order (*order)(const CallView& call, const ProgramView& program, const OrderContext& context);
  PickRule pick = PickRule::kHead;
  bool follows_program = false;  // order again when the program's service or width changed
  double overflow = 1;           // easy calls may exceed the batch cap by this factor
  bool preempt = false;          // an easy call may take the slot of the youngest hard one
  bool agent = false;            // layers L1 to L8 apply
};

// All known policies.
std::span<const Policy> Policies();
// By name; the error lists the known names.
absl::StatusOr<Policy> FindPolicy(std::string_view name);

}  // namespace agentserve::router
