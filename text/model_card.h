// What the text edge needs to know of a model folder: limits, end tokens, default sampling. No weights are read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::text {

// generation_config.json; absent members are not set there.
struct DefaultSampling {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> top_k;
};

struct ModelCard {
  std::string model_id;                 // name of the folder
  uint32_t context_length = 0;          // max_position_embeddings, in tokens
  uint32_t vocab_size = 0;              // rows of the embedding; the tokenizer may have fewer ids
  std::vector<uint32_t> eos_token_ids;  // union of config.json and generation_config.json, ascending
  std::optional<uint32_t> bos_token_id;
  DefaultSampling sampling;
  bool has_chat_template = false;  // tokenizer_config.json has chat_template, or chat_template.jinja is there
};

// Reads config.json (must be there), generation_config.json and tokenizer_config.json (optional).
// Errors: NOT_FOUND, or INVALID_ARGUMENT naming file and field.
absl::StatusOr<ModelCard> LoadModelCard(const std::string& model_dir);

}  // namespace agentserve::text
