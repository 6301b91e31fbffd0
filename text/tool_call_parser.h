// Recognises tool calls in the text that a Llama 3 model writes, as it streams.
//
// Understood, each after optional text and an optional <|python_tag|>, and only for offered tool names:
//   {"name": "f", "parameters": {..}}      also "arguments", and {"type": "function", "function": "f", ..}
//   {..}; {..}   {..}\n{..}   [{..}, {..}]  several calls
//   [f(a=1, b="x"), g()]                    pythonic; keyword arguments with Python literals
// Everything else is content. Nothing is lost: what is not part of a call comes out as content, in order.
//
// Arguments are given out as they arrive, as JSON text. For a call that ended with `complete`, the fragments joined are
// a valid JSON object. If the model breaks off or writes invalid JSON inside the arguments, the call ends with complete
// = false, its fragments are a proper prefix of a JSON object (never closed up: running a tool with cut-off arguments
// would be worse than an error), and the offending rest is content. Small repairs: raw control characters inside
// strings are escaped, Python's True/False/None become JSON's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace agentserve::text {

struct ToolEvent {
  enum class Kind {
    kContent,    // text
    kCallStart,  // index, id, name
    kArguments,  // index, text: a fragment of JSON
    kCallEnd,    // index, complete
  };
  Kind kind = Kind::kContent;
  uint32_t index = 0;  // of the call, from 0
  std::string id;      // "call_" and 24 letters or digits
  std::string name;
  std::string text;
  bool complete = false;
  bool operator==(const ToolEvent&) const = default;
};

struct ToolParserOptions {
  std::vector<std::string> tool_names;
  uint64_t id_seed = 0;        // ids are a function of (id_seed, index); use a random or per-request value
  bool parallel_calls = true;  // false: calls after the first are dropped
};

// Single-threaded. The joined output does not depend on how the text is cut into Feed calls.
class ToolCallParser {
 public:
  explicit ToolCallParser(ToolParserOptions options);
  ~ToolCallParser();
  ToolCallParser(ToolCallParser&&) noexcept;
  ToolCallParser& operator=(ToolCallParser&&) noexcept;

  // Each `text` is valid UTF-8 (as from StreamingDetokenizer).
  std::vector<ToolEvent> Feed(std::string_view text);
  // End of the stream. Held text becomes content; an open call ends incomplete.
  std::vector<ToolEvent> Finish();

  // Calls started so far; finish_reason is "tool_calls" if this is positive and the model stopped by itself.
  uint32_t calls() const;
  // Calls that ended with complete = true.
  uint32_t complete_calls() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace agentserve::text
