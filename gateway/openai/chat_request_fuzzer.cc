// Any bytes as the body of a chat or text completion: no crash; what is accepted is within the limits; errors are JSON.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "gateway/agent_context.h"
#include "gateway/json_util.h"
#include "gateway/openai/chat_request.h"
#include "gateway/openai/completion_request.h"

using namespace agentserve::gateway;  // NOLINT

namespace {

void CheckLimits(const ParsedGeneration& p, const RequestLimits& limits) {
  AS_CHECK(!p.requests.empty());
  AS_CHECK(p.options.n >= 1 && p.options.n <= limits.n);
  for (const auto& r : p.requests) {
    const auto& s = r.sampling();
    AS_CHECK(s.temperature() >= 0 && s.temperature() <= 2);
    AS_CHECK(s.top_logprobs() <= 20);
    AS_CHECK(static_cast<uint32_t>(s.stop_size()) <= limits.stop);
    AS_CHECK(static_cast<uint32_t>(s.logit_bias_size()) <= limits.logit_bias);
    for (const auto& b : s.logit_bias()) AS_CHECK(b.token_id() < 1000 && b.bias() >= -100 && b.bias() <= 100);
    AS_CHECK(!s.has_max_tokens() || s.max_tokens() >= 1);
    AS_CHECK(r.cache_salt().size() <= 64);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const RequestLimits limits;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const auto json = ParseJson(body, limits.json_depth, limits.json_values);
  if (!json.ok()) return 0;
  const ParseContext ctx{limits, {"m", 4096, 1000, 0}};
  ParsedGeneration chat, text;
  for (const auto& error : {ParseChatRequest(body, *json, ctx, &chat), ParseCompletionRequest(*json, ctx, &text)}) {
    if (error) AS_CHECK(Json::accept(error->Json()));
  }
  ParsedGeneration again;
  if (!ParseChatRequest(body, *json, ctx, &again)) CheckLimits(again, limits);
  again = {};
  if (!ParseCompletionRequest(*json, ctx, &again)) CheckLimits(again, limits);
  ReadAgentContext(HttpRequest(), *json, {"t", false});
  return 0;
}
