// One choice of a reply while it is generated: whole characters, tool calls, finish reason. Pure.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "agentserve/common/v1/common.pb.h"
#include "gateway/openai/request.h"
#include "text/tool_call_parser.h"

namespace agentserve::gateway {

// What a client is to be told next.
struct Piece {
  enum class Kind { kText, kCallStart, kArguments };
  Kind kind = Kind::kText;
  uint32_t call_index = 0;
  std::string text;  // kText and kArguments
  std::string id;    // kCallStart
  std::string name;  // kCallStart
};

// A finished or growing tool call.
struct CallRecord {
  std::string id;
  std::string name;
  std::string arguments;
};

// Single-threaded.
class Choice {
 public:
  // `id_seed` makes the ids of tool calls.
  Choice(const ReplyOptions& options, uint64_t id_seed);

  // Takes new text, appends what may be shown. Text may be cut anywhere, also inside a character.
  void Feed(std::string_view text, std::vector<Piece>* out);
  // The sequence ended: appends what was held back and fixes the finish reason.
  void End(common::v1::FinishReason reason, std::vector<Piece>* out);

  bool ended() const { return ended_; }
  // "stop", "length" or "tool_calls"; empty before End.
  const std::string& finish_reason() const { return finish_reason_; }
  // Name of the first tool call, or "".
  const std::string& first_call() const { return first_call_; }
  uint32_t calls() const { return parser_ ? parser_->calls() : 0; }

 private:
  void Whole(std::string_view text, std::vector<Piece>* out);
  void NoteCall(const std::vector<Piece>& pieces, size_t from);

  std::unique_ptr<text::ToolCallParser> parser_;  // only if tools are offered
  std::string partial_;                           // at most 3 bytes of an unfinished character
  bool ended_ = false;
  std::string finish_reason_;
  std::string first_call_;
};

}  // namespace agentserve::gateway
