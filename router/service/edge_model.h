// The text side of the served model: what turns prompts into tokens and tokens into text. Immutable after Load;
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "text/chat_template.h"
#include "text/model_card.h"
#include "text/tokenizer.h"

namespace agentserve::router {

struct EdgeModel {
  std::string model_id;
  std::string chat_date;
  int64_t created_unix_s = 0;
  text::ModelCard card;
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::unique_ptr<text::ChatTemplate> chat_template;  // null: the tokenizer lacks its markers

  // Ids that may appear in prompts: those the embedding has a row for.
  uint32_t vocab_size() const { return card.vocab_size; }

  static absl::StatusOr<std::unique_ptr<EdgeModel>> Load(const std::string& dir, const std::string& model_id,
                                                         const std::string& chat_date);
};

}  // namespace agentserve::router
