// UTF-8 helpers: validation, incremental replacement of invalid parts, code point reading, Unicode trimming.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace agentserve::text {

inline constexpr std::string_view kReplacementChar = "\xEF\xBF\xBD";  // U+FFFD

// Rewrites a byte stream as valid UTF-8. Each maximal part that cannot become valid gives one U+FFFD (the practice of
// the Unicode standard, table 3-8; also what Rust and the WHATWG encoding standard do). Independent of how input is
// cut.
class Utf8Sanitizer {
 public:
  // Appends to *out what is certain; holds at most 3 bytes of an unfinished sequence.
  void Push(std::string_view bytes, std::string* out);
  // Appends U+FFFD if a sequence is unfinished; then as new.
  void Finish(std::string* out);
  bool empty() const { return held_.empty(); }

 private:
  std::string held_;  // valid proper prefix of one sequence
};

bool IsValidUtf8(std::string_view s);
// `s` with every invalid part replaced.
std::string ToValidUtf8(std::string_view s);
void AppendUtf8(uint32_t code_point, std::string* out);

// Reads the code point at s[*pos] and moves *pos behind it. `s` must be valid UTF-8 and *pos < s.size().
uint32_t NextCodePoint(std::string_view s, size_t* pos);

// Python's str.strip(): Unicode white space and the separators U+001C..1F off both ends. `s` valid UTF-8.
std::string_view PythonStrip(std::string_view s);

}  // namespace agentserve::text
