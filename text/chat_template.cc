#include "text/chat_template.h"

#include "base/status_macros.h"
#include "base/strings.h"
#include "text/json_value.h"
#include "text/utf8.h"

namespace agentserve::text {
namespace {

constexpr char kBos[] = "<|begin_of_text|>";
constexpr char kStartHeader[] = "<|start_header_id|>";
constexpr char kEndHeader[] = "<|end_header_id|>";
constexpr char kEot[] = "<|eot_id|>";

constexpr char kToolPreamble[] =
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n"
    "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}."
    "Do not use variables.\n\n";

// Builds text and ids side by side. Text between two markers is encoded as one, as a tokenizer would do with the whole
// rendering, but without any special tokens.
class Output {
 public:
  explicit Output(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Marker(std::string_view marker) {
    EncodePending();
    out_.text.append(marker);
    out_.ids.push_back(*tokenizer_.SpecialId(marker));
  }
  void Text(std::string_view text) {
    out_.text.append(text);
    pending_.append(text);
  }
  void Header(std::string_view role) {
    Marker(kStartHeader);
    Text(role);
    Marker(kEndHeader);
    Text("\n\n");
  }
  RenderedChat Take() {
    EncodePending();
    return std::move(out_);
  }

 private:
  void EncodePending() {
    const std::vector<uint32_t> ids = tokenizer_.Encode(pending_);
    out_.ids.insert(out_.ids.end(), ids.begin(), ids.end());
    pending_.clear();
  }
  const Tokenizer& tokenizer_;
  RenderedChat out_;
  std::string pending_;
};

enum class Role { kSystem, kUser, kAssistant, kTool, kUnknown };

Role RoleOf(std::string_view role) {
  if (role == "system" || role == "developer") return Role::kSystem;
  if (role == "user") return Role::kUser;
  if (role == "assistant") return Role::kAssistant;
  if (role == "tool" || role == "ipython" || role == "function") return Role::kTool;
  return Role::kUnknown;
}

const char* HeaderOf(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
    default:
      return "ipython";
  }
}

absl::Status InvalidMessage(size_t index, const std::string& what) {
  return absl::InvalidArgumentError(base::StrCat("messages[", index, "]", what));
}

absl::Status CheckMessages(const ChatRequest& request) {
  if (request.messages.empty()) return absl::InvalidArgumentError("messages: empty; at least one message is needed");
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const Message& m = request.messages[i];
    const Role role = RoleOf(m.role);
    if (role == Role::kUnknown) {
      return InvalidMessage(
          i, base::StrCat(".role: ", QuoteForError(m.role), " is not one of system, developer, user, assistant, tool"));
    }
    if (!m.tool_calls.empty() && role != Role::kAssistant) {
      return InvalidMessage(i, ".tool_calls: only assistant messages have tool calls");
    }
    if (m.content && !IsValidUtf8(*m.content)) return InvalidMessage(i, ".content: not valid UTF-8");
  }
  const Message& last = request.messages.back();
  if (request.continue_final_message && (RoleOf(last.role) != Role::kAssistant || !last.tool_calls.empty())) {
    return InvalidMessage(request.messages.size() - 1,
                          ": continue_final_message needs a last message of role assistant without tool calls");
  }
  return absl::OkStatus();
}

// `what` holds a JSON array of tools, or nothing ("", null, []).
absl::StatusOr<std::vector<JsonValue>> ParseTools(const std::string& tools_json) {
  if (tools_json.empty()) return std::vector<JsonValue>();
  AS_ASSIGN_OR_RETURN(JsonValue tools, ParseJson(tools_json, "tools"));
  if (tools.is_null()) return std::vector<JsonValue>();
  if (!tools.is_array())
    return absl::InvalidArgumentError(base::StrCat("tools: is ", tools.KindName(), ", not an array"));
  return std::move(tools.items);
}

std::string_view TextOf(const Message& m) { return m.content ? std::string_view(*m.content) : std::string_view(); }

void RenderSystem(const ChatRequest& request, bool tools, std::string_view system, Output* out) {
  out->Header("system");
  if (tools) out->Text("Environment: ipython\n");
  out->Text("Cutting Knowledge Date: December 2023\nToday Date: ");
  out->Text(request.date_string.empty() ? kDefaultChatDate : std::string_view(request.date_string));
  out->Text("\n\n");
  out->Text(PythonStrip(system));
  out->Marker(kEot);
}

// The first message behind the system message carries the tools; the original makes it a user message whatever its
// role.
absl::Status RenderToolsMessage(const std::vector<JsonValue>& tools, const ChatRequest& request, size_t index,
                                Output* out) {
  if (index >= request.messages.size()) {
    return absl::InvalidArgumentError(
        "messages: tools are described in the first user message, but there is none; add one");
  }
  const Message& first = request.messages[index];
  if (!first.tool_calls.empty()) {
    return InvalidMessage(index, ".tool_calls: with tools, the first message must be of the user");
  }
  out->Header("user");
  out->Text(kToolPreamble);
  for (const JsonValue& tool : tools) {
    out->Text(PythonJsonDumps(tool, 4));
    out->Text("\n\n");
  }
  out->Text(PythonStrip(TextOf(first)));
  return absl::OkStatus();
}

absl::Status RenderToolResult(const Message& m, size_t index, Output* out) {
  std::string printed;
  if (!m.content_is_json) {
    AppendJsonString(TextOf(m), &printed);
    out->Text(printed);
    return absl::OkStatus();
  }
  AS_ASSIGN_OR_RETURN(const JsonValue value, ParseJson(TextOf(m), base::StrCat("messages[", index, "].content")));
  switch (value.kind) {
    case JsonValue::Kind::kNull:
      printed = "None";
      break;
    case JsonValue::Kind::kBool:
      printed = value.boolean ? "True" : "False";
      break;
    default:  // numbers print alike in Python and JSON
      printed = PythonJsonDumps(value);
  }
  out->Text(printed);
  return absl::OkStatus();
}

// One message per call; all but the last are closed.
absl::Status RenderToolCalls(const Message& m, size_t index, Output* out) {
  for (size_t i = 0; i < m.tool_calls.size(); ++i) {
    const ToolCallMsg& call = m.tool_calls[i];
    const std::string field = base::StrCat("messages[", index, "].tool_calls[", i, "].function");
    if (call.name.empty()) return absl::InvalidArgumentError(field + ".name: empty");
    if (!IsValidUtf8(call.name)) return absl::InvalidArgumentError(field + ".name: not valid UTF-8");
    const std::string& json = call.arguments_json;
    AS_ASSIGN_OR_RETURN(const JsonValue arguments, ParseJson(json.empty() ? "{}" : json, field + ".arguments"));
    if (!arguments.is_object()) {
      return absl::InvalidArgumentError(
          base::StrCat(field, ".arguments: is ", arguments.KindName(), ", not the JSON text of an object"));
    }
    if (i > 0) out->Marker(kEot);
    out->Header("assistant");
    out->Text("{\"name\": \"");
    out->Text(call.name);
    out->Text("\", \"parameters\": ");
    out->Text(PythonJsonDumps(arguments));
    out->Text("}");
  }
  return absl::OkStatus();
}

absl::Status RenderMessage(const Message& m, size_t index, Output* out) {
  if (!m.tool_calls.empty()) return RenderToolCalls(m, index, out);
  const Role role = RoleOf(m.role);
  out->Header(HeaderOf(role));
  if (role == Role::kTool) return RenderToolResult(m, index, out);
  out->Text(PythonStrip(TextOf(m)));
  return absl::OkStatus();
}

}  // namespace

ChatTemplate::ChatTemplate(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

absl::Status ChatTemplate::Supported() const {
  for (const char* marker : {kBos, kStartHeader, kEndHeader, kEot}) {
    const auto id = tokenizer_->SpecialId(marker);
    if (!id || !tokenizer_->IsSpecial(*id)) {
      return absl::FailedPreconditionError(
          base::StrCat("the tokenizer has no special token ", marker,
                       "; chat needs a model with the Llama 3 chat markers (send plain prompts instead)"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(const ChatRequest& request) const {
  AS_RETURN_IF_ERROR(Supported());
  AS_RETURN_IF_ERROR(CheckMessages(request));
  AS_ASSIGN_OR_RETURN(const std::vector<JsonValue> tools, ParseTools(request.tools_json));
  Output out(*tokenizer_);
  out.Marker(kBos);
  size_t next = 0;
  std::string_view system;
  if (RoleOf(request.messages[0].role) == Role::kSystem) system = TextOf(request.messages[next++]);
  RenderSystem(request, !tools.empty(), system, &out);
  const auto close = [&](size_t index) {
    if (!request.continue_final_message || index + 1 < request.messages.size()) out.Marker(kEot);
  };
  if (!tools.empty()) {
    AS_RETURN_IF_ERROR(RenderToolsMessage(tools, request, next, &out));
    close(next++);
  }
  for (; next < request.messages.size(); ++next) {
    AS_RETURN_IF_ERROR(RenderMessage(request.messages[next], next, &out));
    close(next);
  }
  if (request.add_generation_prompt && !request.continue_final_message) out.Header("assistant");
  return out.Take();
}

}  // namespace agentserve::text
