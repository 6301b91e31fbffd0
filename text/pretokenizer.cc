#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenizer.h"

#include <pcre2.h>

#include "base/check.h"
#include "base/strings.h"
#include "text/llama3_scanner.h"
#include "text/tokenizer_spec.h"

namespace agentserve::text {
namespace {

// \s and \S as Unicode White_Space, also inside classes.
std::string WithUnicodeSpace(std::string_view pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out.push_back(pattern[i]);
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's') {
      out.append("\\p{White_Space}");
    } else if (escaped == 'S') {
      out.append("\\P{White_Space}");
    } else {
      out.push_back('\\');
      out.push_back(escaped);
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(const std::string& pattern, const std::string& field,
                                                                   bool always_regex) {
  std::unique_ptr<PreTokenizer> pre(new PreTokenizer());
  pre->scanner_ = !always_regex && pattern == kLlama3Pattern;
  const std::string full = WithUnicodeSpace(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pre->code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(full.data()), full.size(), PCRE2_UTF | PCRE2_UCP, &error,
                             &offset, nullptr);
  if (pre->code_ == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(base::StrCat(field, ": not a usable regular expression (at byte ", offset,
                                                   "): ", reinterpret_cast<const char*>(message)));
  }
  pcre2_jit_compile(pre->code_, PCRE2_JIT_COMPLETE);  // without JIT support matching is slower, not different
  return pre;
}

PreTokenizer::~PreTokenizer() { pcre2_code_free(code_); }

PieceReader::PieceReader(const PreTokenizer& pre, std::string_view text) : pre_(pre), text_(text) {
  if (!pre_.scanner_) {
    match_ = pcre2_match_data_create(1, nullptr);
    AS_CHECK(match_ != nullptr) << "out of memory";
  }
}

PieceReader::~PieceReader() { pcre2_match_data_free(match_); }

bool PieceReader::Next(std::string_view* piece) {
  if (pos_ == text_.size()) return false;
  if (!pre_.scanner_) return NextByRegex(piece);
  const size_t end = Llama3PieceEnd(text_, pos_);
  *piece = text_.substr(pos_, end - pos_);
  pos_ = end;
  return true;
}

bool PieceReader::NextByRegex(std::string_view* piece) {
  size_t end = match_end_;
  if (end <= pos_) {
    const int rc = pcre2_match(pre_.code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), pos_,
                               PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match_, nullptr);
    // No match, or a limit of the engine on a hostile pattern: the rest is one piece.
    size_t begin = text_.size();
    end = text_.size();
    if (rc > 0) {
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match_);
      if (range[0] >= pos_ && range[1] > range[0]) {
        begin = range[0];
        end = range[1];
      }
    }
    if (begin > pos_) {
      match_end_ = end;
      end = begin;
    }
  }
  *piece = text_.substr(pos_, end - pos_);
  pos_ = end;
  return true;
}

}  // namespace agentserve::text
