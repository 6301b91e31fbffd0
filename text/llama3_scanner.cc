#include "text/llama3_scanner.h"

#include <array>
#include <vector>

#include "text/utf8.h"

namespace agentserve::text {
namespace {

constexpr uint8_t kLetter = static_cast<uint8_t>(CharClass::kLetter);
constexpr uint8_t kNumber = static_cast<uint8_t>(CharClass::kNumber);
constexpr uint8_t kSpace = static_cast<uint8_t>(CharClass::kSpace);

struct Range {
  uint32_t first, last;
  uint8_t char_class;
};
constexpr Range kRanges[] = {
#include "text/unicode_ranges.inc"
};

// One byte per code point: 1.1 MiB, of which text touches a few pages.
const std::vector<uint8_t>& ClassTable() {
  static const std::vector<uint8_t> table = [] {
    std::vector<uint8_t> t(0x110000, 0);
    for (const Range& r : kRanges) {
      for (uint32_t c = r.first; c <= r.last; ++c) t[c] = r.char_class;
    }
    return t;
  }();
  return table;
}

constexpr std::array<uint8_t, 128> kAsciiClass = [] {
  std::array<uint8_t, 128> t{};
  for (const Range& r : kRanges) {
    for (uint32_t c = r.first; c <= r.last && c < 128; ++c) t[c] = r.char_class;
  }
  return t;
}();

// Walks over characters with one of look-ahead.
class Cursor {
 public:
  Cursor(std::string_view text, size_t pos) : text_(text), pos_(pos) { Load(); }
  size_t pos() const { return pos_; }
  bool at_end() const { return pos_ == text_.size(); }
  uint32_t code_point() const { return code_point_; }
  bool Is(uint8_t char_class) const { return !at_end() && class_ == char_class; }
  bool IsNewline() const { return !at_end() && (code_point_ == '\r' || code_point_ == '\n'); }
  bool IsOther() const { return !at_end() && class_ == 0; }
  void Advance() {
    pos_ = next_;
    Load();
  }

 private:
  void Load() {
    if (pos_ >= text_.size()) return;
    const auto b = static_cast<uint8_t>(text_[pos_]);
    if (b < 0x80) {
      code_point_ = b;
      class_ = kAsciiClass[b];
      next_ = pos_ + 1;
      return;
    }
    next_ = pos_;
    code_point_ = NextCodePoint(text_, &next_);
    class_ = static_cast<uint8_t>(ClassOf(code_point_));
  }
  std::string_view text_;
  size_t pos_;
  size_t next_ = 0;
  uint32_t code_point_ = 0;
  uint8_t class_ = 0;
};

// (?i:'s|'t|'re|'ve|'m|'ll|'d) at the apostrophe `pos`: its end, or 0. U+017F folds to s.
size_t ContractionEnd(std::string_view text, size_t pos) {
  const auto lower = [&](size_t i) -> char {
    if (i >= text.size()) return 0;
    const char c = text[i];
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char a = lower(pos + 1);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return pos + 2;
  const char b = lower(pos + 2);
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return pos + 3;
  if (text.substr(pos + 1, 2) == "\xC5\xBF") return pos + 3;
  return 0;
}

// \s*[\r\n]+ | \s+(?!\S) | \s+ : up to behind the last line break of the run of white space, else all of the run but
// its last character (which leads the next word), else that single one.
size_t SpaceEnd(Cursor c) {
  size_t behind_newline = 0;
  size_t last_start = c.pos();
  const size_t start = c.pos();
  while (c.Is(kSpace)) {
    last_start = c.pos();
    const bool newline = c.IsNewline();
    c.Advance();
    if (newline) behind_newline = c.pos();
  }
  if (behind_newline > 0) return behind_newline;
  return c.at_end() || last_start == start ? c.pos() : last_start;
}

size_t LettersEnd(Cursor c) {
  while (c.Is(kLetter)) c.Advance();
  return c.pos();
}

// [^\s\p{L}\p{N}]+[\r\n]*
size_t PunctuationEnd(Cursor c) {
  while (c.IsOther()) c.Advance();
  while (c.IsNewline()) c.Advance();
  return c.pos();
}

}  // namespace

CharClass ClassOf(uint32_t code_point) { return static_cast<CharClass>(ClassTable()[code_point]); }

size_t Llama3PieceEnd(std::string_view text, size_t pos) {
  Cursor c(text, pos);
  if (c.code_point() == '\'') {
    if (const size_t end = ContractionEnd(text, pos); end > 0) return end;
  }
  if (c.Is(kLetter)) return LettersEnd(c);
  if (c.Is(kNumber)) {
    for (int i = 0; i < 3 && c.Is(kNumber); ++i) c.Advance();
    return c.pos();
  }
  Cursor next = c;
  next.Advance();
  if (!c.IsNewline() && next.Is(kLetter)) return LettersEnd(next);  // one leading character that is no line break
  if (c.IsOther()) return PunctuationEnd(c);
  if (c.code_point() == ' ' && next.IsOther()) return PunctuationEnd(next);
  return SpaceEnd(c);
}

}  // namespace agentserve::text
