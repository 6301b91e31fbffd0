// Who is the agent behind a request: collected from headers and body, in a fixed order of precedence. Pure.
//
// A program and its parent are taken together from the first source that names a program (as Dynamo does with its own
// against native headers); every other field from the first source that has it:
//   1. x-agentserve-*                                  ours
//   2. x-dynamo-session-id, -parent-session-id, -session-final; x-dynamo-trajectory-* (their earlier name);
//      x-dynamo-request-priority, -strict-priority     docs.nvidia.com/dynamo: "Session IDs", "Priority Scheduling"
//   3. x-claude-code-session-id, -agent-id, -parent-agent-id   code.claude.com/docs/en/llm-gateway-protocol; an agent
//   id is
//      sent by sub-agents only, whose parent is the session unless named
//      session-id, thread-id, x-codex-parent-thread-id         Codex: one session, a thread per (sub-)agent
//      x-session-id, x-parent-session-id                       OpenCode
//      x-smg-routing-key                                       SGLang's model gateway
//   4. nvext.agent_hints {priority, strict_priority, osl; prefix_id, total_requests, iat}   Dynamo; the last three are
//      the NeMo Agent Toolkit's (nat.llm.dynamo_llm: iat = expected milliseconds between calls; osl and iat also as
//      LOW, MEDIUM, HIGH)
//   5. body: program_id, session_id; priority (vLLM: lower is sooner, hence negated)
//   6. metadata["agent.*"] with the names of 1
//   7. previous_response_id (resolved by the router), prompt_cache_key
// If none names a program the router looks for one whose prompt this one continues.
//
// Bad values: in our own headers they are an error, for whoever writes them wants to know; in the dialects of others
// they are left out and counted, for the request would have been good elsewhere. Numbers out of range are clamped (the
// router clamps again, by tenant). Directions of priority: ours and nvext's are "higher is sooner".
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agentserve/common/v1/common.pb.h"
#include "gateway/api_error.h"
#include "gateway/http/message.h"

namespace agentserve::gateway {

inline constexpr size_t kMaxProgramIdBytes = 128;
// Longer ids of other dialects are folded: their beginning and a hash of the whole. Beyond this they are left out.
inline constexpr size_t kMaxForeignIdBytes = 1024;
inline constexpr int kMaxDependsOn = 64;

// The request's tenant as the key says it; without keys the body may name one.
struct CallerIdentity {
  std::string tenant;
  bool by_key = false;
};

struct AgentReading {
  common::v1::AgentContext context;
  // Sources whose value was left out; one of kHintSources each, for a counter.
  std::vector<std::string_view> ignored;
  std::optional<ApiError> error;
};

// Labels of what AgentReading::ignored may hold.
inline constexpr std::string_view kHintSources[] = {"own_header", "dynamo", "claude_code", "codex",    "opencode",
                                                    "smg",        "nvext",  "body",        "metadata", "tenant"};

// `body` is an object.
AgentReading ReadAgentContext(const HttpRequest& request, const nlohmann::json& body, const CallerIdentity& caller);

// A program id as the other requests carry it, or nullopt: 1 to 128 bytes of printable ASCII.
std::optional<std::string> GoodProgramId(std::string_view s);

}  // namespace agentserve::gateway
