// Splits text into the pieces that BPE works on. Internal to text/.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace agentserve::text {

// A compiled split pattern: matches and the gaps between them are the pieces ("Isolated"). Immutable; thread-safe.
class PreTokenizer {
 public:
  // `field` names the pattern in errors. In the pattern, \s means Unicode White_Space (as in Oniguruma and Rust;
  // PCRE2's own \s adds U+180E). `always_regex`: use PCRE2 even for a pattern that has a hand-written scanner (tests
  // compare).
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(const std::string& pattern, const std::string& field,
                                                              bool always_regex = false);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

 private:
  friend class PieceReader;
  PreTokenizer() = default;
  pcre2_real_code_8* code_ = nullptr;
  bool scanner_ = false;
};

// One pass over one text (valid UTF-8). Single-threaded; both arguments must outlive it.
class PieceReader {
 public:
  PieceReader(const PreTokenizer& pre, std::string_view text);
  ~PieceReader();
  PieceReader(const PieceReader&) = delete;
  PieceReader& operator=(const PieceReader&) = delete;
  // False at the end of the text. Pieces are never empty and, joined, are the text.
  bool Next(std::string_view* piece);

 private:
  bool NextByRegex(std::string_view* piece);

  const PreTokenizer& pre_;
  std::string_view text_;
  size_t pos_ = 0;
  // A match found behind a gap, not given yet; empty if match_end_ == pos_.
  size_t match_end_ = 0;
  pcre2_real_match_data_8* match_ = nullptr;
};

}  // namespace agentserve::text
