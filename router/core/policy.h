// Queue order. A policy is a plain value: a name, a key function and how often keys go stale. The core keeps queued
// sequences sorted by key, so a decision costs O(log queue) whatever the policy. To add one, write its key function and
// a row in policy.cc.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/clock.h"
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

// What a policy may know of a queued call.
struct CallView {
  int64_t arrival = 0;  // 1, 2, 3, ... in order of arrival
  TimeNs queued_at = 0;
  TimeNs deadline = 0;
  uint32_t prompt_tokens = 0;
  uint32_t generated_tokens = 0;  // > 0: resumed after a worker died
  const AgentInfo* agent = nullptr;
};

// What a policy may know of the call's program; null members mean nothing is known.
struct ProgramView {
  int64_t first_arrival = 0;
  uint32_t calls = 0;
  uint64_t attained_tokens = 0;
};

struct Policy {
  std::string_view name;
  std::string_view help;
  OrderKey (*key)(const CallView& call, const ProgramView* program, TimeNs now);
  // Keys that depend on `now` are recomputed this often; 0 = never.
  TimeNs rekey_every = 0;
};

// All known policies.
std::span<const Policy> Policies();
// By name; the error lists the known names.
absl::StatusOr<Policy> FindPolicy(std::string_view name);

}  // namespace agentserve::router
