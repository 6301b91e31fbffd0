// Byte-level BPE tokenizer of Llama 3 and of other Hugging Face byte-level BPE files.
//
// Reads `tokenizer.json` (Hugging Face layout) or `tokenizer.model` (tiktoken lines "<base64> <rank>"). What is in a
// file but not supported here is refused at load, so that a loaded tokenizer never gives silently different ids.
//
// Threads: immutable after Load; every const method may be called from any thread at once.
// Input text that is not valid UTF-8 is read as if each invalid part were U+FFFD; valid text round-trips exactly.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::text {

struct TokenizerSpec;

// One entry of `added_tokens`.
struct AddedToken {
  uint32_t id = 0;
  std::string content;
  bool special = false;
};

class Tokenizer {
 public:
  // Loads <model_dir>/tokenizer.json, else <model_dir>/tokenizer.model. The begin-of-text token is `bos_token` of
  // tokenizer_config.json when that file is there, else the token <|begin_of_text|> if any.
  // Errors: NOT_FOUND no such file; INVALID_ARGUMENT malformed, naming file and field; UNIMPLEMENTED a feature of other
  // tokenizer families.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  // The same from memory. `origin` is the file name used in errors.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json, const std::string& origin);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromTiktoken(std::string_view lines, const std::string& origin);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // No begin-of-text is added. Special tokens spelled in `text` stay plain text, so text of users cannot forge them.
  // Added tokens that are not special (`"special": false`) are ordinary vocabulary and are recognised.
  std::vector<uint32_t> Encode(std::string_view text) const;
  // The same, but spelled special tokens become their ids. Only for text that the operator wrote.
  std::vector<uint32_t> EncodeParsingSpecials(std::string_view text) const;
  // Joins the bytes of all tokens, then replaces what is not UTF-8 by U+FFFD (one per maximal invalid part). Ids
  // outside the vocabulary contribute nothing.
  std::string Decode(std::span<const uint32_t> ids, bool skip_special) const;

  // Raw bytes of a token, perhaps a part of a UTF-8 sequence; empty for ids outside the vocabulary. Lives as long as
  // this.
  std::string_view TokenBytes(uint32_t id) const;
  bool IsSpecial(uint32_t id) const;
  // Id of an added token (special or not) by its exact spelling.
  std::optional<uint32_t> SpecialId(std::string_view content) const;
  // One more than the largest id. Holes are possible: they have no bytes and are never produced.
  uint32_t vocab_size() const;
  std::optional<uint32_t> bos() const;
  // Lower-case hex SHA-256 of the tokenizer file; equal hashes mean equal ids.
  const std::string& hash() const;
  const std::vector<AddedToken>& added_tokens() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Build(absl::StatusOr<TokenizerSpec> spec, std::string_view file,
                                                          const std::string& origin);
  std::unique_ptr<Impl> impl_;
};

}  // namespace agentserve::text
