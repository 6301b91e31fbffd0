#include "text/literal_scanner.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace agentserve::text {
namespace {

constexpr size_t kMostSpaceKept = 64;  // behind a comma; more is dropped

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

void AppendEscape(uint32_t code_unit, std::string* out) {
  char buffer[8];
  std::snprintf(buffer, sizeof(buffer), "\\u%04x", static_cast<unsigned>(code_unit & 0xFFFF));
  out->append(buffer);
}

constexpr std::pair<std::string_view, std::string_view> kWords[] = {
    {"true", "true"}, {"false", "false"}, {"null", "null"}, {"True", "true"}, {"False", "false"}, {"None", "null"}};

}  // namespace

void LiteralScanner::Reset() {
  state_ = State::kValue;
  open_.clear();
  comma_.clear();
  high_surrogate_ = 0;
}

LiteralScanner::Step LiteralScanner::Feed(char c, std::string* out) {
  switch (state_) {
    case State::kValue:
    case State::kFirstElement:
      return FeedValue(c, out);
    case State::kFirstKey:
    case State::kKey:
      return FeedKey(c, out);
    case State::kColon:
      if (c == ':') {
        state_ = State::kValue;
      } else if (!IsSpace(c)) {
        return Step::kBad;
      }
      out->push_back(c);
      return Step::kMore;
    case State::kAfterValue:
      return FeedAfterValue(c, out);
    case State::kString:
      return FeedString(c, out);
    case State::kEscape:
      return FeedEscape(c, out);
    case State::kHex:
      return FeedHex(c, out);
    case State::kNumber:
      return FeedNumber(c, out);
    case State::kWord:
      return FeedWord(c, out);
  }
  return Step::kBad;
}

LiteralScanner::Step LiteralScanner::FeedValue(char c, std::string* out) {
  if (IsSpace(c)) {
    if (comma_.empty()) {
      out->push_back(c);
    } else if (comma_.size() < kMostSpaceKept) {
      comma_.push_back(c);
    }
    return Step::kMore;
  }
  const bool may_close = state_ == State::kFirstElement || !comma_.empty();
  if (c == ']' && may_close) return Close(c, out);
  if (c == '{' || c == '[') {
    if (open_.size() >= kMaxDepth) return Step::kBad;
    FlushComma(out);
    open_.push_back(c);
    out->push_back(c);
    state_ = c == '{' ? State::kFirstKey : State::kFirstElement;
  } else if (c == '"' || c == '\'') {
    FlushComma(out);
    quote_ = c;
    in_key_ = false;
    out->push_back('"');
    state_ = State::kString;
  } else if (c == '-' || IsDigit(c)) {
    FlushComma(out);
    number_ = c == '-' ? Number::kSign : c == '0' ? Number::kZero : Number::kInt;
    out->push_back(c);
    state_ = State::kNumber;
  } else {
    word_.clear();
    const Step step = FeedWord(c, out);
    if (step != Step::kBad) state_ = State::kWord;
    return step;
  }
  return Step::kMore;
}

LiteralScanner::Step LiteralScanner::FeedKey(char c, std::string* out) {
  if (IsSpace(c)) {
    if (comma_.empty()) {
      out->push_back(c);
    } else if (comma_.size() < kMostSpaceKept) {
      comma_.push_back(c);
    }
    return Step::kMore;
  }
  if (c == '}') return Close(c, out);
  if (c != '"' && c != '\'') return Step::kBad;
  FlushComma(out);
  quote_ = c;
  in_key_ = true;
  out->push_back('"');
  state_ = State::kString;
  return Step::kMore;
}

LiteralScanner::Step LiteralScanner::FeedAfterValue(char c, std::string* out) {
  if (IsSpace(c)) {
    out->push_back(c);
    return Step::kMore;
  }
  if (c == ',') {
    comma_.assign(1, ',');
    state_ = open_.back() == '{' ? State::kKey : State::kValue;
    return Step::kMore;
  }
  if (c == (open_.back() == '{' ? '}' : ']')) return Close(c, out);
  return Step::kBad;
}

LiteralScanner::Step LiteralScanner::Close(char c, std::string* out) {
  comma_.clear();
  open_.pop_back();
  out->push_back(c);
  return ValueEnd();
}

LiteralScanner::Step LiteralScanner::ValueEnd() {
  state_ = State::kAfterValue;
  return open_.empty() ? Step::kDone : Step::kMore;
}

LiteralScanner::Step LiteralScanner::FeedString(char c, std::string* out) {
  if (c == '\\') {
    state_ = State::kEscape;
    return Step::kMore;
  }
  FlushSurrogate(out);
  if (c == quote_) {
    out->push_back('"');
    if (!in_key_) return ValueEnd();
    state_ = State::kColon;
    return Step::kMore;
  }
  if (c == '"') {
    out->append("\\\"");
  } else if (c == '\n') {
    out->append("\\n");
  } else if (c == '\r') {
    out->append("\\r");
  } else if (c == '\t') {
    out->append("\\t");
  } else if (static_cast<uint8_t>(c) < 0x20) {
    AppendEscape(static_cast<uint8_t>(c), out);
  } else {
    out->push_back(c);
  }
  return Step::kMore;
}

LiteralScanner::Step LiteralScanner::FeedEscape(char c, std::string* out) {
  if (c == 'u' || c == 'x') {
    hex_.clear();
    hex_digits_ = c == 'u' ? 4 : 2;
    state_ = State::kHex;
    return Step::kMore;
  }
  if (c != '\'' && std::string_view("\"\\/bfnrt").find(c) == std::string_view::npos) return Step::kBad;
  FlushSurrogate(out);
  if (c != '\'') out->push_back('\\');
  out->push_back(c);
  state_ = State::kString;
  return Step::kMore;
}

LiteralScanner::Step LiteralScanner::FeedHex(char c, std::string* out) {
  const bool hex = IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  if (!hex) return Step::kBad;
  hex_.push_back(c);
  if (hex_.size() < hex_digits_) return Step::kMore;
  state_ = State::kString;
  const auto unit = static_cast<uint32_t>(std::strtoul(hex_.c_str(), nullptr, 16));
  if (unit >= 0xDC00 && unit < 0xE000) {
    if (high_surrogate_ != 0) {
      AppendEscape(std::exchange(high_surrogate_, 0), out);
      AppendEscape(unit, out);
    } else {
      AppendEscape(0xFFFD, out);
    }
    return Step::kMore;
  }
  FlushSurrogate(out);
  if (unit >= 0xD800 && unit < 0xDC00) {
    high_surrogate_ = unit;
  } else {
    AppendEscape(unit, out);
  }
  return Step::kMore;
}

bool LiteralScanner::NumberTakes(char c) {
  const bool e = c == 'e' || c == 'E';
  switch (number_) {
    case Number::kSign:
      if (!IsDigit(c)) return false;
      number_ = c == '0' ? Number::kZero : Number::kInt;
      return true;
    case Number::kZero:
    case Number::kInt:
      if (IsDigit(c)) return number_ == Number::kInt;
      if (c != '.' && !e) return false;
      number_ = e ? Number::kExp : Number::kPoint;
      return true;
    case Number::kPoint:
    case Number::kFraction:
      if (e && number_ == Number::kFraction) {
        number_ = Number::kExp;
        return true;
      }
      if (!IsDigit(c)) return false;
      number_ = Number::kFraction;
      return true;
    case Number::kExp:
      if (c == '+' || c == '-') {
        number_ = Number::kExpSign;
        return true;
      }
      [[fallthrough]];
    case Number::kExpSign:
    case Number::kExpDigits:
      if (!IsDigit(c)) return false;
      number_ = Number::kExpDigits;
      return true;
  }
  return false;
}

LiteralScanner::Step LiteralScanner::FeedNumber(char c, std::string* out) {
  if (NumberTakes(c)) {
    out->push_back(c);
    return Step::kMore;
  }
  const bool whole = number_ == Number::kZero || number_ == Number::kInt || number_ == Number::kFraction ||
                     number_ == Number::kExpDigits;
  // A digit or letter glued to a number is an error, not the next token.
  if (!whole || IsDigit(c) || c == '.' || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
    return Step::kBad;
  if (ValueEnd() == Step::kDone) return Step::kDoneBefore;
  return FeedAfterValue(c, out);
}

LiteralScanner::Step LiteralScanner::FeedWord(char c, std::string* out) {
  word_.push_back(c);
  for (const auto& [spelling, json] : kWords) {
    if (!spelling.starts_with(word_)) continue;
    if (word_.size() < spelling.size()) return Step::kMore;
    FlushComma(out);
    out->append(json);
    return ValueEnd();
  }
  return Step::kBad;
}

void LiteralScanner::FlushComma(std::string* out) {
  out->append(comma_);
  comma_.clear();
}

void LiteralScanner::FlushSurrogate(std::string* out) {
  if (high_surrogate_ != 0) AppendEscape(0xFFFD, out);
  high_surrogate_ = 0;
}

}  // namespace agentserve::text
