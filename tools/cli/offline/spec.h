// One offline generation as JSON: the field names and meanings of the HTTP API.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampling_params.h"
#include "text/chat_template.h"
#include "text/model_card.h"
#include "text/tokenizer.h"

namespace agentserve::tools {

struct GenerateSpec {
  std::vector<engine::TokenId> prompt;
  engine::SamplingParams sampling;  // end tokens of the model not included
  std::vector<std::string> stop;
  bool include_stop = false;
};

// Parses an object with exactly one of `prompt` (text), `prompt_ids` (token ids, nothing is added) and `messages` (with
// `tools`, `date_string`), and any of: max_tokens, min_tokens, temperature, top_p, top_k, min_p, seed, ignore_eos,
// stop, include_stop_str_in_output, stop_token_ids, repetition_penalty, presence_penalty, frequency_penalty,
// logit_bias, logprobs (how many alternatives). Absent sampling fields come from the model's generation_config.json, as
// in the services. Errors name the field.
absl::StatusOr<GenerateSpec> ParseGenerateSpec(const std::string& json_text, const text::Tokenizer& tokenizer,
                                               const text::ModelCard& card);

}  // namespace agentserve::tools
