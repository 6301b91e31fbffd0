// POST /v1/completions, /tokenize, /detokenize: JSON to router requests. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "gateway/api_error.h"
#include "gateway/openai/request.h"

namespace agentserve::gateway {

// On error `out` is undefined.
std::optional<ApiError> ParseCompletionRequest(const nlohmann::json& json, const ParseContext& ctx,
                                               ParsedGeneration* out);
std::optional<ApiError> ParseTokenizeRequest(std::string_view body, const nlohmann::json& json, const ParseContext& ctx,
                                             pb::TokenizeRequest* out);
std::optional<ApiError> ParseDetokenizeRequest(const nlohmann::json& json, const ParseContext& ctx,
                                               pb::DetokenizeRequest* out);

}  // namespace agentserve::gateway
