#include "gateway/json_util.h"

#include <charconv>
#include <cmath>

#include "base/strings.h"

namespace agentserve::gateway {
namespace {

// Counts nesting and values without building anything, so that a hostile body cannot cost memory.
absl::Status PreScan(std::string_view text, int max_depth, size_t max_values) {
  int depth = 0;
  size_t values = 1;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        break;
      case '{':
      case '[':
        if (++depth > max_depth) {
          return absl::InvalidArgumentError(
              base::StrCat("the JSON body is nested deeper than ", max_depth, " levels at byte ", i));
        }
        ++values;
        break;
      case '}':
      case ']':
        --depth;
        break;
      case ',':
        ++values;
        break;
      default:
        break;
    }
    if (values > max_values) {
      return absl::InvalidArgumentError(base::StrCat("the JSON body holds more than ", max_values, " values"));
    }
  }
  return absl::OkStatus();
}

// Keeps the position and the reason of nlohmann's text, drops its echo of the input.
std::string ParseReason(std::string_view what) {
  if (const size_t colon = what.find("] "); colon != what.npos) what.remove_prefix(colon + 2);
  if (const size_t echo = what.find("; last read"); echo != what.npos) what = what.substr(0, echo);
  return Shorten(what, 200);
}

// Position after the JSON value that starts at `i`; `text` is valid JSON.
size_t SkipValue(std::string_view text, size_t i) {
  int depth = 0;
  bool in_string = false;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
        if (depth == 0) return i + 1;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (depth == 0) return i;
      if (--depth == 0) return i + 1;
    } else if (depth == 0 && (c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r')) {
      return i;
    }
  }
  return i;
}

size_t SkipSpace(std::string_view text, size_t i) {
  while (i < text.size() && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r')) ++i;
  return i;
}

// Length of the UTF-8 character at the front of `s`; 0 if it is not one.
size_t Utf8Length(std::string_view s) {
  const auto b = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const auto tail = [&](size_t i) { return i < s.size() && (b(i) & 0xC0) == 0x80; };
  if (s.empty()) return 0;
  if (b(0) < 0x80) return 1;
  if (b(0) >= 0xC2 && b(0) <= 0xDF) return tail(1) ? 2 : 0;
  if (b(0) >= 0xE0 && b(0) <= 0xEF) {
    if (!tail(1) || !tail(2)) return 0;
    if (b(0) == 0xE0 && b(1) < 0xA0) return 0;
    if (b(0) == 0xED && b(1) > 0x9F) return 0;
    return 3;
  }
  if (b(0) >= 0xF0 && b(0) <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3)) return 0;
    if (b(0) == 0xF0 && b(1) < 0x90) return 0;
    if (b(0) == 0xF4 && b(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, int max_depth, size_t max_values) {
  if (auto s = PreScan(text, max_depth, max_values); !s.ok()) return s;
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    return absl::InvalidArgumentError(base::StrCat("the body is not valid JSON: ", ParseReason(e.what())));
  }
}

std::optional<std::string_view> RawTopLevelMember(std::string_view text, std::string_view key) {
  std::optional<std::string_view> found;
  size_t i = SkipSpace(text, 0);
  if (i >= text.size() || text[i] != '{') return found;
  i = SkipSpace(text, i + 1);
  while (i < text.size() && text[i] == '"') {
    const size_t key_end = SkipValue(text, i);
    const std::string_view name = text.substr(i + 1, key_end - i - 2);
    i = SkipSpace(text, key_end);
    if (i >= text.size() || text[i] != ':') break;
    i = SkipSpace(text, i + 1);
    const size_t end = SkipValue(text, i);
    if (name == key) found = text.substr(i, end - i);
    i = SkipSpace(text, end);
    if (i >= text.size() || text[i] != ',') break;
    i = SkipSpace(text, i + 1);
  }
  return found;
}

void AppendJsonString(std::string* out, std::string_view s) {
  static constexpr char kHex[] = "0123456789abcdef";
  *out += '"';
  size_t run = 0;  // start of bytes that can be copied as they are
  size_t i = 0;
  const auto flush = [&](size_t end) { out->append(s.substr(run, end - run)); };
  while (i < s.size()) {
    const auto c = static_cast<unsigned char>(s[i]);
    if (c >= 0x20 && c < 0x7F && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    if (c >= 0x80) {
      if (const size_t len = Utf8Length(s.substr(i)); len > 0) {
        i += len;
        continue;
      }
    }
    flush(i);
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      default:
        if (c >= 0x80) {
          *out += "\xEF\xBF\xBD";
        } else {
          *out += "\\u00";
          *out += kHex[c >> 4];
          *out += kHex[c & 15];
        }
    }
    run = ++i;
  }
  flush(s.size());
  *out += '"';
}

void AppendJsonNumber(std::string* out, double v) {
  if (!std::isfinite(v)) v = -9999.0;
  char buf[32];
  const auto r = std::to_chars(buf, buf + sizeof(buf), v);
  out->append(buf, r.ptr);
}

std::string JsonString(std::string_view s) {
  std::string out;
  AppendJsonString(&out, s);
  return out;
}

size_t CompleteUtf8Prefix(std::string_view s) {
  // Only the last three bytes can belong to an unfinished character.
  for (size_t back = 1; back <= 3 && back <= s.size(); ++back) {
    const auto c = static_cast<unsigned char>(s[s.size() - back]);
    if ((c & 0xC0) == 0x80) continue;
    const size_t want = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
    return want > back ? s.size() - back : s.size();
  }
  return s.size();
}

std::string Shorten(std::string_view s, size_t max_bytes) {
  if (s.size() <= max_bytes) return std::string(s);
  const size_t keep = CompleteUtf8Prefix(s.substr(0, max_bytes));
  return base::StrCat(s.substr(0, keep), "...");
}

}  // namespace agentserve::gateway
