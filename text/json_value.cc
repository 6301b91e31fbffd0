#include "text/json_value.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>

#include "base/strings.h"
#include "text/json_builder.h"
#include "text/utf8.h"

namespace agentserve::text {
namespace {

void NewLine(int indent, int level, std::string* out) {
  out->push_back('\n');
  out->append(static_cast<size_t>(indent) * static_cast<size_t>(level), ' ');
}

void Dump(const JsonValue& v, int indent, int level, std::string* out) {
  switch (v.kind) {
    case JsonValue::Kind::kNull:
      out->append("null");
      return;
    case JsonValue::Kind::kBool:
      out->append(v.boolean ? "true" : "false");
      return;
    case JsonValue::Kind::kInt:
      out->append(v.string);
      return;
    case JsonValue::Kind::kFloat:
      if (std::isinf(v.number)) {
        out->append(v.number < 0 ? "-Infinity" : "Infinity");
      } else {
        out->append(PythonFloatRepr(v.number));
      }
      return;
    case JsonValue::Kind::kString:
      AppendJsonString(v.string, out);
      return;
    case JsonValue::Kind::kArray:
    case JsonValue::Kind::kObject:
      break;
  }
  const bool array = v.is_array();
  const size_t n = array ? v.items.size() : v.members.size();
  out->push_back(array ? '[' : '{');
  for (size_t i = 0; i < n; ++i) {
    if (i > 0) out->append(indent < 0 ? ", " : ",");
    if (indent >= 0) NewLine(indent, level + 1, out);
    if (!array) {
      AppendJsonString(v.members[i].key, out);
      out->append(": ");
    }
    Dump(array ? v.items[i] : v.members[i].value, indent, level + 1, out);
  }
  if (n > 0 && indent >= 0) NewLine(indent, level, out);
  out->push_back(array ? ']' : '}');
}

}  // namespace

const JsonValue* JsonValue::Find(std::string_view key) const {
  for (const auto& [k, v] : members) {
    if (k == key) return &v;
  }
  return nullptr;
}

bool JsonValue::GetUint(uint64_t max, uint64_t* value) const {
  if (kind != Kind::kInt) return false;
  uint64_t v = 0;
  const char* end = string.data() + string.size();
  const auto [ptr, ec] = std::from_chars(string.data(), end, v);
  if (ec != std::errc() || ptr != end || v > max) return false;
  *value = v;
  return true;
}

const char* JsonValue::KindName() const {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return "a boolean";
    case Kind::kInt:
    case Kind::kFloat:
      return "a number";
    case Kind::kString:
      return "a string";
    case Kind::kArray:
      return "an array";
    case Kind::kObject:
      return "an object";
  }
  return "?";
}

absl::StatusOr<JsonValue> ParseJson(std::string_view text, std::string_view what) {
  JsonBuilder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(base::StrCat(what, ": ", builder.error()));
  }
  return std::move(builder.root());
}

std::string PythonJsonDumps(const JsonValue& value, int indent) {
  std::string out;
  Dump(value, indent, 0, &out);
  return out;
}

std::string PythonFloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // Shortest digits that read back equal, then Python's layout: exponent form below 1e-4 and from 1e16 on.
  char buffer[40];
  const auto sci = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string_view shortest(buffer, static_cast<size_t>(sci.ptr - buffer));
  const size_t e = shortest.find('e');
  const int exponent = std::atoi(std::string(shortest.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  char fixed[64];
  const auto end = std::to_chars(fixed, fixed + sizeof(fixed), value, std::chars_format::fixed);
  std::string out(fixed, static_cast<size_t>(end.ptr - fixed));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void AppendJsonString(std::string_view s, std::string* out) {
  out->push_back('"');
  for (const char c : s) {
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      case '\f':
        out->append("\\f");
        break;
      case '\b':
        out->append("\\b");
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          char escape[8];
          std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(static_cast<uint8_t>(c)));
          out->append(escape);
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

std::string QuoteForError(std::string_view s) {
  constexpr size_t kMostBytes = 60;
  std::string out = "'";
  for (const char c : s.substr(0, kMostBytes)) {
    const auto b = static_cast<uint8_t>(c);
    if (b >= 0x20 && b < 0x7F) {
      out.push_back(c);
    } else {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\x%02x", b);
      out.append(escape);
    }
  }
  return out + (s.size() > kMostBytes ? "...'" : "'");
}

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::NotFoundError(base::StrCat(path, ": cannot be opened; is the path right and readable?"));
  const std::streamoff size = in.tellg();
  // A directory opens but has no useful size.
  if (size < 0 || size == std::numeric_limits<std::streamoff>::max()) {
    return absl::NotFoundError(base::StrCat(path, ": not a regular file"));
  }
  if (static_cast<uint64_t>(size) > max_bytes) {
    return absl::ResourceExhaustedError(
        base::StrCat(path, ": ", size, " bytes, more than the ", max_bytes, " that such a file may have"));
  }
  std::string data(static_cast<size_t>(size), '\0');
  in.seekg(0);
  if (!in.read(data.data(), size)) return absl::NotFoundError(base::StrCat(path, ": cannot be read"));
  return data;
}

bool JsonBuilder::boolean(bool v) {
  JsonValue value;
  value.kind = JsonValue::Kind::kBool;
  value.boolean = v;
  return Add(std::move(value));
}

bool JsonBuilder::number_integer(int64_t v) {
  JsonValue value;
  value.kind = JsonValue::Kind::kInt;
  value.number = static_cast<double>(v);
  value.string = base::StrCat(v);
  return Add(std::move(value));
}

bool JsonBuilder::number_unsigned(uint64_t v) {
  JsonValue value;
  value.kind = JsonValue::Kind::kInt;
  value.number = static_cast<double>(v);
  value.string = base::StrCat(v);
  return Add(std::move(value));
}

bool JsonBuilder::number_float(double v, const std::string& spelling) {
  JsonValue value;
  value.number = v;
  const bool integer = spelling.find_first_of(".eE") == std::string::npos;  // beyond 64 bits
  value.kind = integer ? JsonValue::Kind::kInt : JsonValue::Kind::kFloat;
  if (integer) value.string = spelling;
  return Add(std::move(value));
}

bool JsonBuilder::string(std::string& v) {
  JsonValue value;
  value.kind = JsonValue::Kind::kString;
  value.string = std::move(v);
  return Add(std::move(value));
}

bool JsonBuilder::key(std::string& k) {
  stack_.back().key = std::move(k);
  return true;
}

bool JsonBuilder::parse_error(size_t position, const std::string&, const nlohmann::json::exception& e) {
  if (!error_.empty()) return false;
  // nlohmann's text: "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ...".
  std::string_view what = e.what();
  if (const size_t bracket = what.find("] "); bracket != std::string_view::npos) what.remove_prefix(bracket + 2);
  const std::string path = Path();
  return Fail(base::StrCat(path.empty() ? "" : path + ": ", "not valid JSON (byte ", position,
                           "): ", ToValidUtf8(what.substr(0, 300))));
}

bool JsonBuilder::Fail(std::string message) {
  error_ = std::move(message);
  return false;
}

std::string JsonBuilder::Path() const {
  std::string path;
  for (const Frame& frame : stack_) {
    if (frame.value.is_array()) {
      base::StrAppend(&path, "[", frame.value.items.size(), "]");
    } else if (!frame.key.empty()) {
      base::StrAppend(&path, path.empty() ? "" : ".", std::string_view(frame.key).substr(0, 100));
    }
  }
  return path;
}

bool JsonBuilder::Add(JsonValue value) {
  if (++values_ > kMaxJsonValues) return Fail(base::StrCat("more than ", kMaxJsonValues, " values; make it smaller"));
  if (stack_.empty()) {
    root_ = std::move(value);
    return true;
  }
  Frame& top = stack_.back();
  if (top.value.is_array()) {
    top.value.items.push_back(std::move(value));
    return true;
  }
  const auto [it, is_new] = top.at.emplace(top.key, top.value.members.size());
  if (is_new) {
    top.value.members.push_back({top.key, std::move(value)});
  } else {
    top.value.members[it->second].value = std::move(value);
  }
  return true;
}

bool JsonBuilder::Open(JsonValue::Kind kind) {
  if (stack_.size() >= kMaxJsonDepth) {
    return Fail(base::StrCat("nested deeper than ", kMaxJsonDepth, " levels; flatten it"));
  }
  stack_.emplace_back();
  stack_.back().value.kind = kind;
  return true;
}

bool JsonBuilder::Close() {
  JsonValue value = std::move(stack_.back().value);
  stack_.pop_back();
  return Add(std::move(value));
}

}  // namespace agentserve::text
