// JSON in and out: bounded parsing of request bodies, and an appender for the hot path of streamed chunks.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace agentserve::gateway {

using Json = nlohmann::json;

// Parses one JSON text. INVALID_ARGUMENT if it is malformed, nested deeper than `max_depth` or holds more than
// `max_values` values; the message names the byte offset and never echoes more than 40 bytes of the input.
absl::StatusOr<Json> ParseJson(std::string_view text, int max_depth, size_t max_values);

// The raw text of a member of the top-level object, key order and spacing kept; nullopt if absent. `text` must have
// passed ParseJson. Of repeated members the last counts, as in ParseJson.
std::optional<std::string_view> RawTopLevelMember(std::string_view text, std::string_view key);

// Appends `s` as a JSON string with quotes. Bytes that are not UTF-8 become U+FFFD.
void AppendJsonString(std::string* out, std::string_view s);
// Appends a number; NaN and infinities, which JSON lacks, become -9999 (what clients of logprobs expect).
void AppendJsonNumber(std::string* out, double v);
std::string JsonString(std::string_view s);

// Length of the longest prefix of `s` that does not end inside a UTF-8 character.
size_t CompleteUtf8Prefix(std::string_view s);

// At most `max_bytes` of `s`, cut at a character, with "..." when cut.
std::string Shorten(std::string_view s, size_t max_bytes);

}  // namespace agentserve::gateway
