// How the next token of a sequence is chosen. Plain data; the wire form is agentserve.common.v1.SamplingParams.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "engine/ids.h"

namespace agentserve::engine {

struct SamplingParams {
  float temperature = 1.0f;  // 0 = greedy; lowest id wins ties
  uint32_t top_k = 0;        // 0 = all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;
  uint32_t max_tokens = 0;  // counted from the prompt's end; the router fills it in, so it is never "absent" here
  uint32_t min_tokens = 0;
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  int top_logprobs = -1;  // -1 = no logprobs; 0..20 = chosen token plus this many

  bool greedy() const { return temperature == 0.0f; }
  bool needs_history() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;  // ln p of the raw softmax (temperature 1, before penalties, bias and masks)
};

struct SampledToken {
  SeqId seq;
  TokenId token = 0;
  bool has_logprobs = false;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // best first
};

enum class FinishReason { kNone, kStop, kLength, kCancelled };

}  // namespace agentserve::engine
