// What a tokenizer file says, before tables for encoding are built. Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/tokenizer.h"

namespace agentserve::text {

// No model has more; bounds what a damaged id can make us allocate (16 bytes an id).
inline constexpr uint32_t kMaxTokenId = (1u << 22) - 1;

// Byte strings of tokens in one buffer, by id.
class TokenTable {
 public:
  // False if the id is taken. `id` <= kMaxTokenId; total bytes < 4 GiB (files are far smaller).
  bool Add(uint32_t id, std::string_view bytes);
  uint32_t size() const { return static_cast<uint32_t>(entries_.size()); }  // largest id + 1
  bool has(uint32_t id) const { return id < entries_.size() && entries_[id].used; }
  std::string_view bytes(uint32_t id) const {
    const Entry& e = entries_[id];
    return std::string_view(arena_).substr(e.offset, e.length);
  }
  void Reserve(size_t tokens, size_t bytes);

 private:
  struct Entry {
    uint32_t offset = 0;
    uint32_t length : 31 = 0;
    uint32_t used : 1 = 0;
  };
  std::string arena_;
  std::vector<Entry> entries_;
};

// left + right -> the token of the joined bytes. Lower ranks first.
struct Merge {
  uint32_t left = 0;
  uint32_t right = 0;
  uint32_t rank = 0;
  uint32_t result = 0;
};

struct TokenizerSpec {
  TokenTable tokens;  // all of them, added tokens too
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  std::string pattern;         // of the pre-tokenizer; PCRE2 syntax
  bool ignore_merges = false;  // a piece that is a token is taken whole
};

// Pattern of Llama 3, and of GPT-2 (ByteLevel with use_regex).
extern const char kLlama3Pattern[];
extern const char kGpt2Pattern[];

// Hugging Face tokenizer.json / tiktoken lines. `origin` names the file in errors.
absl::StatusOr<TokenizerSpec> ParseTokenizerJson(std::string_view json, const std::string& origin);
absl::StatusOr<TokenizerSpec> ParseTiktoken(std::string_view lines, const std::string& origin);

}  // namespace agentserve::text
