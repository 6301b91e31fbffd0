// The chat template of Llama 3.2 Instruct, written out in C++.
//
// Follows the Jinja template shipped with the checkpoints; where that one raises or misbehaves, this one decides:
//  - An assistant message with several tool calls becomes several successive assistant messages, one call each (the
//    original raises). An empty list is as no list. Text next to tool calls is left out, as in the original.
//  - Absent content (null) is empty text (the original prints "None").
//  - `arguments_json` is parsed and printed again as Python's json.dumps does, key order kept; text that is not a JSON
//    object is INVALID_ARGUMENT.
//  - String tool results are JSON-quoted, as in the original (a string is "iterable" there).
//  - Role "developer" is "system"; "function" is "tool". Unknown roles are INVALID_ARGUMENT.
//  - `tools_json` of "", "null" or "[]" means no tools.
//
// Ids are built piece by piece: markers by their id, everything else through Tokenizer::Encode, which knows no special
// tokens. Text of users that spells a marker therefore stays text. For text that spells none, ids equal those of
// tokenizing the whole rendered text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "text/tokenizer.h"

namespace agentserve::text {

struct ToolCallMsg {
  std::string id;
  std::string name;
  std::string arguments_json;  // JSON object; "" = {}
};

struct Message {
  std::string role;                          // system, developer, user, assistant, tool, ipython, function
  std::optional<std::string> content = {};   // absent = null
  std::vector<ToolCallMsg> tool_calls = {};  // assistant only
  std::string tool_call_id = {};             // tool only; not rendered by this template
  // Tool results only: `content` is JSON text of a value, printed as the original does for non-strings.
  bool content_is_json = false;
};

inline constexpr char kDefaultChatDate[] = "26 Jul 2024";  // the template's own fallback: keeps prompts cacheable

struct ChatRequest {
  std::vector<Message> messages;
  std::string tools_json;                      // JSON array of tools, printed in order with indent 4
  std::string date_string = kDefaultChatDate;  // "" = the default
  // Leave the last message (assistant, with text) open, so that the model continues it. No generation prompt then.
  bool continue_final_message = false;
  bool add_generation_prompt = true;
};

struct RenderedChat {
  std::string text;           // for people and tests; do not tokenize it with specials enabled
  std::vector<uint32_t> ids;  // begins with begin-of-text
};

// Thread-safe; the tokenizer must outlive it.
class ChatTemplate {
 public:
  explicit ChatTemplate(const Tokenizer& tokenizer);

  // INVALID_ARGUMENT names the message by index and says what to change. FAILED_PRECONDITION: the tokenizer lacks one
  // of the markers (a base model of another family).
  absl::StatusOr<RenderedChat> Render(const ChatRequest& request) const;
  // Whether the tokenizer has all markers.
  absl::Status Supported() const;

 private:
  const Tokenizer* tokenizer_;
};

}  // namespace agentserve::text
