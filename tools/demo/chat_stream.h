// One assistant turn of a streamed chat completion.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "tools/cli/http/sse_client.h"

namespace agentserve::tools {

struct ToolCall {
  std::string id, name, arguments;
};

struct AssistantTurn {
  std::string text;
  std::vector<ToolCall> calls;
  std::string finish_reason;
  int pieces = 0;  // deltas with text
};

// Puts the deltas of a stream together. Single-threaded.
class TurnBuilder {
 public:
  static constexpr size_t kMaxCalls = 16;  // parallel calls of one turn; more is a broken server

  using OnText = std::function<void(std::string_view)>;
  explicit TurnBuilder(OnText on_text) : on_text_(std::move(on_text)) {}

  // Data of one event. False: stop reading (end of stream or an error).
  bool Feed(std::string_view data);
  // The turn, or what was wrong: an error event, bad JSON, a stream that ended without finish_reason or [DONE].
  absl::StatusOr<AssistantTurn> Take();

 private:
  void FeedDelta(const nlohmann::json& delta);

  const OnText on_text_;
  AssistantTurn turn_;
  absl::Status error_;
  bool done_ = false;
};

// Sends `body` (a chat completion request with "stream": true) and reads the answer to its end. Blocks.
absl::StatusOr<AssistantTurn> StreamTurn(const Url& url, const std::string& api_key, base::TimeNs timeout,
                                         const std::string& body, TurnBuilder::OnText on_text);

}  // namespace agentserve::tools
