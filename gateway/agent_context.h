// Who is the agent behind a request: collected from headers and body, in a fixed order of precedence. Pure.
//
// Per field the first source that has it wins:
//   x-agentserve-*  >  x-dynamo-session-id family  >  x-claude-code-session-id family, session-id / thread-id,
//   x-session-id family, x-smg-routing-key  >  nvext.agent_hints  >  program_id, session_id, priority of the body
//   >  metadata["agent.*"]  >  prompt_cache_key
// Hints never fail a request: values that do not parse are skipped, numbers are clamped, ids are cut.
// Direction of priority: ours and nvext's are "higher is sooner"; the body field `priority` follows vLLM, where lower
// is sooner, and is negated.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "agentserve/common/v1/common.pb.h"
#include "gateway/http/message.h"

namespace agentserve::gateway {

inline constexpr size_t kMaxProgramIdBytes = 128;
inline constexpr int kMaxDependsOn = 32;

// `tenant` comes from the API key, never from the request. `body` is an object.
common::v1::AgentContext ReadAgentContext(const HttpRequest& request, const nlohmann::json& body,
                                          const std::string& tenant);

}  // namespace agentserve::gateway
