// JSON for text: keeps the order of keys and the spelling of large integers, prints as Python's json.dumps does.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::text {

struct JsonMember;

struct JsonValue {
  enum class Kind { kNull, kBool, kInt, kFloat, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;   // kInt and kFloat
  std::string string;  // kString: the value; kInt: its digits as Python prints them
  std::vector<JsonValue> items;
  std::vector<JsonMember> members;  // in order; of equal keys the last value at the first place

  bool is_null() const { return kind == Kind::kNull; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_array() const { return kind == Kind::kArray; }
  bool is_object() const { return kind == Kind::kObject; }
  // Member of an object, or null.
  const JsonValue* Find(std::string_view key) const;
  // kInt within [0, max]: true and the value.
  bool GetUint(uint64_t max, uint64_t* value) const;
  const char* KindName() const;  // "an object", "a string" ..
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

// Deeper nesting is refused: printing and destroying recurse.
inline constexpr int kMaxJsonDepth = 128;
// Values in one text: about 40 MB of tree. "[0,0,..]" would otherwise make a hundred bytes out of two. A long list of
// tools has some thousand values.
inline constexpr size_t kMaxJsonValues = 1 << 18;

// `what` names the text in errors, e.g. a file.
absl::StatusOr<JsonValue> ParseJson(std::string_view text, std::string_view what);

// json.dumps(value, ensure_ascii=False, indent=None if indent < 0 else indent).
std::string PythonJsonDumps(const JsonValue& value, int indent = -1);
// repr() of a float.
std::string PythonFloatRepr(double value);
void AppendJsonString(std::string_view s, std::string* out);

// At most 60 bytes of untrusted text for an error message: quoted, control and non-ASCII bytes escaped.
std::string QuoteForError(std::string_view s);

// File contents; NOT_FOUND or RESOURCE_EXHAUSTED (larger than `max_bytes`) naming the file.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

}  // namespace agentserve::text
