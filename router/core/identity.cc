#include "router/core/identity.h"

#include <algorithm>

namespace agentserve::router {

const char* IdentityName(Identity i) {
  static constexpr std::array<const char*, kNumIdentities> kNames = {
      "none",  "own",  "dynamo",   "claude_code",       "codex",     "opencode", "routing_key",
      "nvext", "body", "metadata", "previous_response", "cache_key", "prefix",   "new"};
  const auto at = static_cast<size_t>(i);
  return at < kNames.size() ? kNames[at] : "unknown";
}

const char* ClampedName(Clamped c) {
  switch (c) {
    case Clamped::kPriority:
      return "priority";
    case Clamped::kStrictTier:
      return "strict_tier";
    case Clamped::kDeadline:
      return "deadline_ms";
    case Clamped::kOsl:
      return "osl";
    case Clamped::kKvRetain:
      return "kv_retain_ms";
    case Clamped::kToolGap:
      return "tool_gap_ms";
  }
  return "unknown";
}

namespace {

// Sets `value` to `to` and marks `what` if they differ.
template <typename T>
void Cut(T* value, T to, Clamped what, ClampedSet* set) {
  if (*value == to) return;
  *value = to;
  *set |= 1u << static_cast<int>(what);
}

}  // namespace

ClampedSet ClampToRule(const TenantRule& rule, uint32_t max_tokens, uint64_t park_most_ms, AgentInfo* agent) {
  ClampedSet set = 0;
  Cut(&agent->priority, std::clamp(agent->priority, rule.min_priority, rule.max_priority), Clamped::kPriority, &set);
  Cut(&agent->strict_tier, std::min(agent->strict_tier, rule.max_strict_tier), Clamped::kStrictTier, &set);
  if (agent->deadline_ms) {
    Cut(&*agent->deadline_ms, std::max(*agent->deadline_ms, rule.min_deadline_ms), Clamped::kDeadline, &set);
  }
  if (agent->osl_hint) Cut(&*agent->osl_hint, std::min(*agent->osl_hint, max_tokens), Clamped::kOsl, &set);
  const uint64_t retain = rule.max_kv_retain_ms == 0 ? park_most_ms : std::min(park_most_ms, rule.max_kv_retain_ms);
  if (agent->kv_retain_ms) Cut(&*agent->kv_retain_ms, std::min(*agent->kv_retain_ms, retain), Clamped::kKvRetain, &set);
  if (agent->tool_gap_ms_hint) {
    // A week: beyond any wait that keeping KV could serve.
    constexpr uint64_t kMostGapMs = 7ull * 24 * 3600 * 1000;
    Cut(&*agent->tool_gap_ms_hint, std::min(*agent->tool_gap_ms_hint, kMostGapMs), Clamped::kToolGap, &set);
  }
  if (agent->workflow_class.empty()) agent->workflow_class = rule.workflow_class;
  return set;
}

}  // namespace agentserve::router
