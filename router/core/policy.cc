#include "router/core/policy.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"

namespace agentserve::router {
namespace {

// Of the agent policy: with bounds that double, the last one is a month of a GPU.
constexpr int64_t kMostClasses = 32;
constexpr int64_t kMostWithin = (int64_t{1} << 44) - 1;

// Costs and lengths as keys: 1/1024 of a unit, and as much as fits.
int64_t Fixed(double v) { return static_cast<int64_t>(std::clamp(v, 0.0, 1.6e10) * 1024); }

// Geometric class of `v`: [0, first) is class 0, then each class is `ratio` times as wide.
int64_t GeometricClass(double v, double first, double ratio, int64_t most) {
  if (!(v > first) || first <= 0) return 0;
  return std::min(most, 1 + static_cast<int64_t>(std::log(v / first) / std::log(ratio)));
}

// ---- baselines ----

Order Fifo(const CallView& call, const ProgramView&, const OrderContext&) { return {.key = {0, call.arrival}}; }

Order ProgramFifo(const CallView&, const ProgramView& program, const OrderContext&) {
  return {.key = {0, program.first_arrival}};
}

// Strict tier, then the caller's priority, then arrival.
Order HintPriority(const CallView& call, const ProgramView&, const OrderContext&) {
  const int64_t tier = std::min<int64_t>(call.agent->strict_tier, 255);
  const int64_t priority = std::clamp<int64_t>(call.agent->priority, -100, 100);
  return {.key = {-(tier * 256 + priority), call.arrival}};
}

// ---- the six modes and two trajectory policies of krishs0404/agentserve ----

Order Priority(const CallView& call, const ProgramView&, const OrderContext&) {
  return {.key = {static_cast<int64_t>(call.difficulty), call.arrival}};
}

Order Relative(const CallView& call, const ProgramView&, const OrderContext&) {
  return {.key = {0, Fixed(call.predicted_output)}};
}

Order PriorityRelative(const CallView& call, const ProgramView&, const OrderContext&) {
  return {.key = {static_cast<int64_t>(call.difficulty), Fixed(call.predicted_output)}};
}

Order TrajProgress(const CallView& call, const ProgramView& program, const OrderContext&) {
  const AgentInfo& a = *call.agent;
  const uint32_t done = std::max(program.calls - 1, a.step_index);
  bool past_middle = false;
  if (a.total_calls_hint)
    past_middle = 2 * uint64_t{done} >= *a.total_calls_hint;
  else if (a.steps_left_hint)
    past_middle = done >= *a.steps_left_hint;
  return {.key = {past_middle ? 0 : 1, Fixed(call.predicted_output)}};
}

// A call is under pressure from the moment on at which what is left of its program takes half of the time that is left.
Order TrajDeadline(const CallView& call, const ProgramView& program, const OrderContext& context) {
  Order o{.key = {0, call.arrival}, .lift = PickReason::kDeadline};
  if (call.deadline) {
    o.lift_at = *call.deadline - static_cast<TimeNs>(2 * program.remaining * context.ns_per_cost);
  }
  return o;
}

// ---- attained service (Autellix, 2502.13965) ----

// Eight queues by attained service, each four times the last; a call that has waited three times as long as its
// program was served goes to the top (their beta).
Order Attained(double service, const CallView& call, const OrderContext& context) {
  constexpr double kBeta = 3;
  Order o{.key = {GeometricClass(service, context.mean_call_cost, 4, 7), call.arrival}};
  const double served_ns = std::max(service, context.mean_call_cost) * context.ns_per_cost;
  o.lift_at = call.queued_at + static_cast<TimeNs>(kBeta * served_ns);
  return o;
}

Order Plas(const CallView& call, const ProgramView& program, const OrderContext& context) {
  return Attained(program.attained, call, context);
}

Order Atlas(const CallView& call, const ProgramView& program, const OrderContext& context) {
  return Attained(program.path, call, context);
}

// ---- estimates ----

// 2512.14142: highest (wait + cost) / cost. Among calls of one cost it is the oldest, so calls are kept in narrow tiers
// by cost and the heads of the tiers are compared when one is picked.
Order Hrrn(const CallView& call, const ProgramView& program, const OrderContext&) {
  const double cost = std::max(program.remaining, call.cost);
  return {.key = {static_cast<int64_t>(std::log(std::max(cost, 1.0)) / std::log(kRatioStep)), call.arrival}};
}

// 2510.17015: programs in the order in which a processor shared fairly among them would finish them.
Order Justitia(const CallView& call, const ProgramView& program, const OrderContext&) {
  Order o{.key = {0, Fixed(program.virtual_finish)}};
  if (program.virtual_finish <= 0) o.key.within = Fixed(call.cost);
  return o;
}

Order SrptOracle(const CallView& call, const ProgramView& program, const OrderContext&) {
  return {.key = {0, Fixed(call.oracle != nullptr ? call.oracle->program_remaining_cost : program.remaining)}};
}

// ---- the default ----

// When the caller's deadline leaves no slack.
TimeNs SlackGone(const CallView& call, const OrderContext& context) {
  return *call.deadline - static_cast<TimeNs>(call.cost * context.ns_per_cost);
}

Order Agent(const CallView& call, const ProgramView& program, const OrderContext& context) {
  const AgentPolicyOptions& o = *context.options;
  const AgentInfo& a = *call.agent;
  Order out;
  out.age = program.first_arrival;
  int64_t tier = 0;
  if (o.order) {
    const double future = std::max(0.0, program.remaining - call.cost);
    const double key = call.cost + o.future_weight * program.soon * future;
    tier = GeometricClass(key, o.class_base, o.class_ratio, kMostClasses);
    tier -= std::clamp(a.priority, -100, 100) / 50;
    out.lift_at = call.queued_at + o.aging_bound;
    if (call.deadline) {
      if (const TimeNs slack = SlackGone(call, context); slack < out.lift_at) {
        out.aged_at = out.lift_at;
        out.lift_at = std::max(slack, call.queued_at);
        out.lift_until = *call.deadline;
        out.lift = PickReason::kDeadline;
      }
    }
  }
  uint64_t in_program = 0;
  if (o.dag) {
    if (!a.blocking) tier += 1;
    // The join waits for this one only.
    if ((program.width > 1 && program.live_calls == 1) || call.last_of_join) tier -= 1;
    // Longest first: the join is at the end of the longest.
    const double path = call.predicted_output + static_cast<double>(call.path_tokens);
    in_program = 4095 - std::min<uint64_t>(4095, static_cast<uint64_t>(256 * std::log2(1 + path)));
  }
  tier = std::clamp<int64_t>(tier, 0, kMostClasses + 1);
  if (o.order && a.strict_tier > 0) tier = -std::min<int64_t>(a.strict_tier, 15);
  const int64_t age = std::min<int64_t>(out.age, int64_t{1} << 31);
  out.key = {tier, std::min(kMostWithin, age * 4096 + static_cast<int64_t>(in_program))};
  return out;
}

constexpr Policy kPolicies[] = {
    {.name = "agent",
     .help = "the layers of --policy-layers: least remaining cost in classes, gate, fair tenants",
     .order = Agent,
     .pick = PickRule::kTurns,
     .follows_program = true,
     .agent = true},
    {.name = "fifo", .help = "arrival order of calls", .order = Fifo},
    {.name = "program-fifo", .help = "oldest program first", .order = ProgramFifo},
    {.name = "hint-priority", .help = "strict tier, then the caller's priority, then arrival", .order = HintPriority},
    {.name = "priority", .help = "easy, medium, hard calls by predicted output", .order = Priority},
    {.name = "priority-overflow",
     .help = "priority; easy calls exceed --batch-cap by up to a quarter",
     .order = Priority,
     .overflow = 1.25},
    {.name = "priority-preempt",
     .help = "priority-overflow; easy calls take the slot of the youngest hard one",
     .order = Priority,
     .overflow = 1.25,
     .preempt = true},
    {.name = "relative",
     .help = "calls of like predicted output together",
     .order = Relative,
     .pick = PickRule::kWindow},
    {.name = "priority-relative",
     .help = "relative inside the classes of priority",
     .order = PriorityRelative,
     .pick = PickRule::kWindow},
    {.name = "traj-progress",
     .help = "programs past their middle first, then least predicted output",
     .order = TrajProgress,
     .follows_program = true},
    {.name = "traj-deadline",
     .help = "programs whose deadline is near first, then arrival",
     .order = TrajDeadline,
     .follows_program = true},
    {.name = "plas", .help = "least attained program service in eight queues", .order = Plas, .follows_program = true},
    {.name = "atlas", .help = "plas by service along the critical path", .order = Atlas, .follows_program = true},
    {.name = "hrrn",
     .help = "highest response ratio",
     .order = Hrrn,
     .pick = PickRule::kRatio,
     .follows_program = true},
    {.name = "justitia", .help = "order of finishing under fair sharing among programs", .order = Justitia},
    {.name = "srpt-oracle",
     .help = "true remaining work; only simulators know it",
     .order = SrptOracle,
     .follows_program = true},
};

}  // namespace

std::span<const Policy> Policies() { return kPolicies; }

absl::StatusOr<Policy> FindPolicy(std::string_view name) {
  std::string known;
  for (const Policy& p : kPolicies) {
    if (p.name == name) return p;
    base::StrAppend(&known, known.empty() ? "" : ", ", p.name);
  }
  return absl::InvalidArgumentError(base::StrCat("unknown policy \"", name, "\"; known are: ", known));
}

}  // namespace agentserve::router
