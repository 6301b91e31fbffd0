// Reads one value that a model writes in JSON or as a Python literal, byte by byte, and gives it out as JSON text.
// Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace agentserve::text {

// What was given out is at any time a prefix of a valid JSON value. Taken beyond JSON: single-quoted strings, True,
// False, None, raw control characters in strings, \' and \xHH, a comma behind the last element; lone surrogate escapes
// become U+FFFD. Holds at most ~100 bytes.
class LiteralScanner {
 public:
  enum class Step {
    kMore,        // taken
    kDone,        // taken; the value is complete
    kDoneBefore,  // the value was complete before this byte, which is not taken (behind a number)
    kBad,         // cannot continue a value; not taken
  };
  // Nesting of values from outside is bounded by what JSON readers of clients stand.
  static constexpr size_t kMaxDepth = 128;

  void Reset();
  // Appends to *out what became certain.
  Step Feed(char c, std::string* out);

 private:
  enum class State {
    kValue,
    kFirstElement,
    kFirstKey,
    kKey,
    kColon,
    kAfterValue,
    kString,
    kEscape,
    kHex,
    kNumber,
    kWord
  };
  enum class Number { kSign, kZero, kInt, kPoint, kFraction, kExp, kExpSign, kExpDigits };

  Step FeedValue(char c, std::string* out);
  Step FeedKey(char c, std::string* out);
  Step FeedAfterValue(char c, std::string* out);
  Step FeedString(char c, std::string* out);
  Step FeedEscape(char c, std::string* out);
  Step FeedHex(char c, std::string* out);
  Step FeedNumber(char c, std::string* out);
  Step FeedWord(char c, std::string* out);
  Step Close(char c, std::string* out);
  Step ValueEnd();
  void FlushComma(std::string* out);
  void FlushSurrogate(std::string* out);
  bool NumberTakes(char c);

  State state_ = State::kValue;
  std::vector<char> open_;  // '{' and '['
  std::string comma_;       // a comma and white space, kept back until an element follows
  char quote_ = '"';
  bool in_key_ = false;
  std::string hex_;  // digits read of \uHHHH or \xHH
  size_t hex_digits_ = 0;
  uint32_t high_surrogate_ = 0;  // read, not given out yet
  Number number_ = Number::kSign;
  std::string word_;
};

}  // namespace agentserve::text
