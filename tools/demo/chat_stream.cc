#include "tools/demo/chat_stream.h"

#include <utility>

#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;
using nlohmann::json;

namespace {

// The string at object[key], "" if there is none.
std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

}  // namespace

bool TurnBuilder::Feed(std::string_view data) {
  if (data == "[DONE]") {
    done_ = true;
    return false;
  }
  const json chunk = json::parse(data, nullptr, false);
  if (!chunk.is_object()) {
    error_ = absl::InternalError(StrCat("the server sent an event that is no JSON object: ", data.substr(0, 200)));
  } else if (const auto e = chunk.find("error"); e != chunk.end() && e->is_object()) {
    error_ = absl::UnavailableError(StrCat("the server ended the stream with an error: ", Text(*e, "message")));
  }
  if (!error_.ok()) return false;
  const auto choices = chunk.find("choices");
  if (choices == chunk.end() || !choices->is_array() || choices->empty() || !(*choices)[0].is_object()) return true;
  const json& choice = (*choices)[0];
  if (const auto delta = choice.find("delta"); delta != choice.end() && delta->is_object()) FeedDelta(*delta);
  if (const std::string reason = Text(choice, "finish_reason"); !reason.empty()) turn_.finish_reason = reason;
  return error_.ok();
}

void TurnBuilder::FeedDelta(const json& delta) {
  if (const std::string text = Text(delta, "content"); !text.empty()) {
    turn_.text += text;
    ++turn_.pieces;
    if (on_text_) on_text_(text);
  }
  const auto calls = delta.find("tool_calls");
  if (calls == delta.end() || !calls->is_array()) return;
  for (const json& d : *calls) {
    const auto index = d.is_object() ? d.find("index") : d.end();
    if (!d.is_object() || index == d.end() || !index->is_number_unsigned() ||
        index->get<size_t>() > turn_.calls.size() || index->get<size_t>() >= kMaxCalls) {
      error_ =
          absl::InternalError(StrCat("the server sent a tool call delta with a bad index: ", d.dump().substr(0, 200)));
      return;
    }
    if (*index == turn_.calls.size()) turn_.calls.emplace_back();
    ToolCall& call = turn_.calls[index->get<size_t>()];
    call.id += Text(d, "id");
    if (const auto f = d.find("function"); f != d.end() && f->is_object()) {
      call.name += Text(*f, "name");
      call.arguments += Text(*f, "arguments");
    }
  }
}

absl::StatusOr<AssistantTurn> TurnBuilder::Take() {
  if (!error_.ok()) return error_;
  if (!done_ || turn_.finish_reason.empty()) {
    return absl::UnavailableError(StrCat("the stream ended too early: ", done_ ? "no finish_reason" : "no [DONE]"));
  }
  return std::move(turn_);
}

absl::StatusOr<AssistantTurn> StreamTurn(const Url& url, const std::string& api_key, base::TimeNs timeout,
                                         const std::string& body, TurnBuilder::OnText on_text) {
  HttpRequest request;
  request.target = "/v1/chat/completions";
  request.body = body;
  request.api_key = api_key;
  request.timeout = timeout;
  TurnBuilder builder(std::move(on_text));
  const HttpOutcome outcome =
      ExchangeBlocking(url, std::move(request), [&builder](std::string_view data) { return builder.Feed(data); });
  if (!outcome.ok()) return absl::UnavailableError(outcome.Explain());
  return builder.Take();
}

}  // namespace agentserve::tools
