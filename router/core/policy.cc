#include "router/core/policy.h"

#include <algorithm>

#include "base/strings.h"

namespace agentserve::router {
namespace {

OrderKey Fifo(const CallView& call, const ProgramView*, TimeNs) { return {0, call.arrival}; }

// Oldest program first: a program's age is the arrival of its first call. Calls without a program are their own.
OrderKey ProgramFifo(const CallView& call, const ProgramView* program, TimeNs) {
  return {0, program == nullptr ? call.arrival : program->first_arrival};
}

// Strict tier, then the caller's priority, then arrival.
OrderKey Priority(const CallView& call, const ProgramView*, TimeNs) {
  const int64_t tier = std::min<int64_t>(call.agent->strict_tier, 255);
  const int64_t priority = std::clamp<int64_t>(call.agent->priority, -100, 100);
  return {-(tier * 256 + priority), call.arrival};
}

constexpr Policy kPolicies[] = {
    {"fifo", "arrival order of calls", Fifo, 0},
    {"program-fifo", "oldest program first", ProgramFifo, 0},
    {"priority", "strict tier, then priority, then arrival", Priority, 0},
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
