// Logprobs of a delta in the two OpenAI shapes. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "agentserve/router/v1/router.pb.h"

namespace agentserve::gateway {

// A token with its text, ready to be written.
struct TokenChance {
  std::string bytes;
  float logprob = 0;
};
struct TokenLogprobs {
  TokenChance chosen;
  std::vector<TokenChance> top;
};

// Pairs the logprobs of a delta with their texts; texts that the router left out are empty.
std::vector<TokenLogprobs> CollectLogprobs(const router::v1::Delta& delta);

// Chat: `{"content":[{token,logprob,bytes,top_logprobs:[..]}..],"refusal":null}`.
void AppendChatLogprobs(std::string* out, const std::vector<TokenLogprobs>& tokens);

// Text completions: `{"tokens","token_logprobs","top_logprobs","text_offset"}`. `*offset` is the place of the next
// token in the choice's text, in code points; it is moved on. `top` = how many alternatives were asked for.
void AppendTextLogprobs(std::string* out, const std::vector<TokenLogprobs>& tokens, uint32_t top, uint64_t* offset);

// Code points of `s`; a byte outside UTF-8 counts as one.
uint64_t CodePoints(std::string_view s);

}  // namespace agentserve::gateway
