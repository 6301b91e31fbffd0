// What a tenant may ask for, and what is made of hints that ask for more. Plain values.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "router/core/types.h"

namespace agentserve::router {

// Terms of one tenant besides its share and class (CoreConfig::tenant_share, tenant_class). The defaults are those of a
// tenant that nobody configured.
struct TenantRule {
  // Workflow class of calls that name none.
  std::string workflow_class;
  int32_t min_priority = -100, max_priority = 100;
  uint32_t max_strict_tier = 255;
  // Nearer deadlines count as this: a deadline is a hint, not a way to the front. Milliseconds.
  uint64_t min_deadline_ms = 0;
  // Longest wish to keep KV between calls; 0 = the router's own bound.
  uint64_t max_kv_retain_ms = 0;
  // Share of a decode worker's KV blocks that its waiting programs may pin; none = CoreConfig::tenant_pin_share.
  std::optional<double> pin_share;
};

struct TenantRules {
  // At most kMaxTenants; an operator's list, far below.
  static constexpr size_t kMaxTenants = 4096;
  std::map<std::string, TenantRule, std::less<>> by_tenant;
  TenantRule fallback;

  const TenantRule& Of(std::string_view tenant) const {
    const auto it = by_tenant.find(tenant);
    return it == by_tenant.end() ? fallback : it->second;
  }
};

// Hints that can be cut down to the tenant's terms.
enum class Clamped : uint8_t { kPriority, kStrictTier, kDeadline, kOsl, kKvRetain, kToolGap };
inline constexpr int kNumClamped = 6;
const char* ClampedName(Clamped c);

// Bit i = Clamped(i) was cut.
using ClampedSet = uint32_t;
inline constexpr bool Has(ClampedSet set, Clamped c) { return ((set >> static_cast<int>(c)) & 1u) != 0; }

// Cuts `agent` to the rule: priority and tier into their ranges, the deadline up to its minimum, osl to `max_tokens`,
// kv_retain_ms and tool_gap_ms to `park_most_ms` and the tenant's maximum. Fills in the class. Returns what was cut.
ClampedSet ClampToRule(const TenantRule& rule, uint32_t max_tokens, uint64_t park_most_ms, AgentInfo* agent);

}  // namespace agentserve::router
