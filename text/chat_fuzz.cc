// Chat requests and tool-call texts, cut out of the input at NUL bytes: a chat with tools, arguments and results, then
// the whole input as the stream of a model.
#include <vector>

#include "base/check.h"
#include "text/chat_template.h"
#include "text/json_value.h"
#include "text/stop_matcher.h"
#include "text/test_util.h"
#include "text/tool_call_parser.h"

namespace agentserve::text {
namespace {

const Tokenizer& Tiny() {
  static const auto* t = Tokenizer::FromJson(Slurp("testdata/tiny/tokenizer.json"), "tiny")->release();
  return *t;
}

// Joined output of a parser: content, and each call with its arguments.
struct Parsed {
  std::string content;
  std::vector<std::string> calls;
  std::vector<bool> complete;
  bool operator==(const Parsed&) const = default;
};

Parsed Parse(std::string_view text, size_t step) {
  ToolCallParser parser({.tool_names = {"add", "get_weather"}, .id_seed = 3});
  Parsed out;
  const auto take = [&](const std::vector<ToolEvent>& events) {
    for (const ToolEvent& e : events) {
      if (e.kind == ToolEvent::Kind::kContent) out.content += e.text;
      if (e.kind == ToolEvent::Kind::kCallStart) out.calls.push_back(e.id);
      if (e.kind == ToolEvent::Kind::kArguments) out.calls.back() += e.text;
      if (e.kind == ToolEvent::Kind::kCallEnd) out.complete.push_back(e.complete);
    }
  };
  for (size_t i = 0; i < text.size(); i += step) take(parser.Feed(text.substr(i, step)));
  take(parser.Finish());
  return out;
}

void FuzzParser(const std::string& text) {
  const Parsed whole = Parse(text, text.size() + 1);
  AS_CHECK(whole == Parse(text, 1));
  AS_CHECK(whole.complete.size() == whole.calls.size());
  for (size_t i = 0; i < whole.calls.size(); ++i) {
    const auto json = ParseJson(std::string_view(whole.calls[i]).substr(29), "arguments");
    AS_CHECK((json.ok() && json->is_object()) == whole.complete[i]) << whole.calls[i];
  }
  if (whole.calls.empty()) AS_CHECK(whole.content == text);
}

void FuzzStops(const std::vector<std::string>& parts, const std::string& text) {
  std::vector<std::string> stops;
  for (size_t i = 0; i < parts.size() && i < 4; ++i) stops.push_back(parts[i].substr(0, 16));
  StopMatcher at_once(stops, false), by_byte(stops, false);
  auto result = at_once.Feed(text);
  std::string joined;
  for (const char c : text) joined += by_byte.Feed(std::string_view(&c, 1)).text;
  AS_CHECK(result.text + at_once.Flush() == joined + by_byte.Flush());
}

}  // namespace
}  // namespace agentserve::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace agentserve::text;  // NOLINT: one function
  if (size > 4096) return 0;
  const std::string input(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> parts(1);
  for (const char c : input) {
    if (c == '\0') {
      parts.emplace_back();
    } else {
      parts.back().push_back(c);
    }
  }
  const std::string text = ToValidUtf8(input);
  FuzzParser(text);
  FuzzStops(parts, text);
  const auto part = [&](size_t i) { return i < parts.size() ? parts[i] : std::string(); };
  ChatRequest request;
  request.messages.push_back({.role = "system", .content = part(0)});
  request.messages.push_back({.role = "user", .content = part(1)});
  request.messages.push_back({.role = "assistant", .tool_calls = {{"", part(2), part(3)}}});
  request.messages.push_back({.role = "tool", .content = part(4), .content_is_json = true});
  request.messages.push_back({.role = part(6).empty() ? "assistant" : part(6), .content = text});
  request.tools_json = part(5);
  request.continue_final_message = input.size() % 2 == 0;
  const auto rendered = ChatTemplate(Tiny()).Render(request);
  if (!rendered.ok()) return 0;
  AS_CHECK(Tiny().Decode(rendered->ids, false) == rendered->text);
  // Markers are one begin-of-text and those of at most 6 messages, whatever the texts spell.
  size_t markers = 0;
  for (const uint32_t id : rendered->ids) markers += Tiny().IsSpecial(id);
  AS_CHECK(markers <= 1 + 6 * 3 + 2);
  return 0;
}
