// POST /v1/chat/completions: JSON text to router request. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/api_error.h"
#include "gateway/openai/request.h"

namespace agentserve::gateway {

// `json` is the parsed `body`; the text itself is needed because tools keep their key order. On error `out` is
// undefined.
std::optional<ApiError> ParseChatRequest(std::string_view body, const nlohmann::json& json, const ParseContext& ctx,
                                         ParsedGeneration* out);

// The `messages` array alone (also /tokenize).
std::optional<ApiError> ParseMessages(const nlohmann::json& messages, const RequestLimits& limits, pb::Chat* out);
// The `tools` array alone; `raw` is its text. Appends the function names.
std::optional<ApiError> ParseTools(const nlohmann::json& tools, std::string_view raw, const RequestLimits& limits,
                                   pb::Chat* out, std::vector<std::string>* names);

}  // namespace agentserve::gateway
