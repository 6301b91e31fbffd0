#include "gateway/openai/chat_request.h"

#include "base/strings.h"
#include "gateway/openai/sampling_fields.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;

constexpr size_t kMaxIdBytes = 256;
constexpr size_t kMaxNameBytes = 64;

bool GoodFunctionName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == name.npos;
}

// String content, or parts flattened: texts are joined by a newline, as other servers do for string templates.
void ReadContent(Fields& f, const std::string& prefix, pb::ChatMessage* out) {
  const Json* content = f.Take("content");
  if (content == nullptr) return;
  if (content->is_string()) return out->set_content(content->get_ref<const std::string&>());
  if (!content->is_array()) {
    return f.Fail("content", StrCat("must be a string or an array of parts, not ", content->type_name()));
  }
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    Fields part((*content)[i], StrCat(prefix, "content[", i, "]."));
    const std::string type = part.String("type", kMaxIdBytes).value_or("");
    if (part.ok() && type != "text" && type != "refusal" && type != "input_text" && type != "output_text") {
      part.Fail("type", StrCat("'", Shorten(type, 40), "' parts are not supported: this model takes text only"));
    }
    const char* key = type == "refusal" ? "refusal" : "text";
    const Json* value = part.Take(key);
    if (part.ok() && (value == nullptr || !value->is_string())) part.Fail(key, "must be a string");
    if (!part.ok()) return f.Fail(*part.error());
    if (i > 0) text += '\n';
    text += value->get_ref<const std::string&>();
  }
  out->set_content(std::move(text));
}

void ReadOneCall(const Json& json, const std::string& prefix, Fields& f, pb::ChatMessage* out) {
  Fields call(json, prefix);
  const std::string id = call.String("id", kMaxIdBytes).value_or("");
  const std::string type = call.String("type", kMaxIdBytes).value_or("function");
  if (call.ok() && type != "function") call.Fail("type", "only \"function\" is supported");
  const Json* function = call.Object("function");
  if (call.ok() && function == nullptr) call.Fail("function", "is missing");
  if (!call.ok()) return f.Fail(*call.error());
  Fields fn(*function, prefix + "function.");
  const std::string name = fn.String("name", kMaxIdBytes).value_or("");
  if (fn.ok() && name.empty()) fn.Fail("name", "is missing");
  const Json* arguments = fn.Take("arguments");
  if (fn.ok() && arguments != nullptr && !arguments->is_string()) {
    fn.Fail("arguments", StrCat("must be a string of JSON, not ", arguments->type_name()));
  }
  if (!fn.ok()) return f.Fail(*fn.error());
  auto* tool_call = out->add_tool_calls();
  tool_call->set_id(id);
  tool_call->set_name(name);
  tool_call->set_arguments_json(arguments == nullptr ? "{}" : arguments->get_ref<const std::string&>());
  if (tool_call->arguments_json().empty()) tool_call->set_arguments_json("{}");
}

void ReadAssistant(Fields& f, const std::string& prefix, const RequestLimits& limits, pb::ChatMessage* out) {
  if (const Json* calls = f.Array("tool_calls", limits.tools)) {
    for (size_t i = 0; f.ok() && i < calls->size(); ++i) {
      ReadOneCall((*calls)[i], StrCat(prefix, "tool_calls[", i, "]."), f, out);
    }
  }
  // Without calls an absent content is an empty turn.
  if (out->tool_calls_size() == 0 && !out->has_content()) out->set_content("");
}

void ReadTool(Fields& f, const std::string& role, pb::ChatMessage* out) {
  std::string id = f.String("tool_call_id", kMaxIdBytes).value_or("");
  if (role == "function") {  // the retired form names the function instead
    id = f.String("name", kMaxIdBytes).value_or("");
  } else if (f.ok() && id.empty()) {
    f.Fail("tool_call_id", "is missing: a tool message names the call that it answers");
  }
  out->set_tool_call_id(id);
  if (f.ok() && !out->has_content()) f.Fail("content", "is missing");
}

std::optional<ApiError> ParseMessage(const Json& json, const std::string& prefix, const RequestLimits& limits,
                                     pb::ChatMessage* out) {
  Fields f(json, prefix);
  const std::string role = f.String("role", kMaxIdBytes).value_or("");
  ReadContent(f, prefix, out);
  if (!f.ok()) return f.error();
  if (role == "system" || role == "developer" || role == "user") {
    out->set_role(role == "user" ? "user" : "system");
    if (!out->has_content()) f.Fail("content", "must be a string or an array of parts");
  } else if (role == "assistant") {
    out->set_role("assistant");
    ReadAssistant(f, prefix, limits, out);
  } else if (role == "tool" || role == "function") {
    out->set_role("tool");
    ReadTool(f, role, out);
  } else {
    f.Fail("role", role.empty() ? std::string("is missing")
                                : StrCat("'", Shorten(role, 40),
                                         "' is not one of developer, system, user, assistant, tool, function"));
  }
  return f.error();
}

void ReadToolChoice(Fields& f, bool has_tools, bool* none) {
  const Json* choice = f.Take("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object()) {
    const auto type = choice->value("type", Json());
    return f.Fail("tool_choice", type == "allowed_tools"
                                     ? "allowed_tools is not supported; offer only the allowed tools in `tools`"
                                     : "a named tool is not supported yet by this server; use \"auto\" or \"none\"");
  }
  if (!choice->is_string()) return f.Fail("tool_choice", "must be a string or an object");
  const auto& value = choice->get_ref<const std::string&>();
  if (value == "required") {
    return f.Fail("tool_choice", "\"required\" is not supported yet by this server; use \"auto\" or \"none\"");
  }
  if (value != "none" && value != "auto") {
    return f.Fail("tool_choice", StrCat("'", Shorten(value, 40), "' is not one of \"none\", \"auto\""));
  }
  if (!has_tools && value != "none") return f.Fail("tool_choice", "is only allowed together with `tools`");
  *none = value == "none";
}

void ReadResponseFormat(Fields& f) {
  const Json* format = f.Object("response_format");
  if (format == nullptr) return;
  Fields rf(*format, "response_format.");
  const std::string type = rf.String("type", kMaxIdBytes).value_or("");
  if (rf.ok() && (type == "json_object" || type == "json_schema" || type == "structural_tag")) {
    rf.Fail("type",
            StrCat("\"", type, "\" is not supported yet by this server; use \"text\" and ask for JSON in the prompt"));
  } else if (rf.ok() && type != "text") {
    rf.Fail("type", "must be \"text\"");
  }
  if (!rf.ok()) f.Fail(*rf.error());
}

void ReadLogprobs(Fields& f, common::v1::SamplingParams* sampling, ReplyOptions* options) {
  options->logprobs = f.Bool("logprobs").value_or(false);
  const auto top = f.Integer("top_logprobs", 0, 20);
  if (top && !options->logprobs) return f.Fail("top_logprobs", "needs `logprobs: true`");
  options->top_logprobs = static_cast<uint32_t>(top.value_or(0));
  if (options->logprobs) sampling->set_top_logprobs(options->top_logprobs);
}

void ReadMaxTokens(Fields& f, common::v1::SamplingParams* sampling) {
  const auto older = f.Integer("max_tokens", 1, kMaxTokensLimit);
  const auto newer = f.Integer("max_completion_tokens", 1, kMaxTokensLimit);
  if (newer || older) sampling->set_max_tokens(static_cast<uint32_t>(newer ? *newer : *older));
  if (sampling->has_max_tokens() && sampling->min_tokens() > sampling->max_tokens()) {
    f.Fail("min_tokens", StrCat("is ", sampling->min_tokens(), ", more than max_tokens = ", sampling->max_tokens()));
  }
}

void ReadTemplateOptions(Fields& f, pb::Chat* chat) {
  chat->set_continue_final_message(f.Bool("continue_final_message").value_or(false));
  const bool generation_prompt = f.Bool("add_generation_prompt").value_or(true);
  if (!f.ok()) return;
  if (chat->continue_final_message()) {
    const auto& last = chat->messages(chat->messages_size() - 1);
    if (last.role() != "assistant" || last.tool_calls_size() > 0) {
      f.Fail("continue_final_message", "needs a last message of role assistant without tool calls");
    }
  } else if (!generation_prompt) {
    f.Fail("add_generation_prompt", "false is only supported together with `continue_final_message: true`");
  }
  if (const Json* kwargs = f.Object("chat_template_kwargs")) {
    Fields k(*kwargs, "chat_template_kwargs.");
    chat->set_date_string(k.String("date_string", 64).value_or(""));
    if (!k.ok()) f.Fail(*k.error());
  }
}

}  // namespace

std::optional<ApiError> ParseMessages(const Json& messages, const RequestLimits& limits, pb::Chat* out) {
  if (!messages.is_array() || messages.empty()) {
    return InvalidRequest("`messages`: must be an array of at least one message", "messages");
  }
  if (messages.size() > limits.messages) {
    return InvalidRequest(
        StrCat("`messages`: has ", messages.size(), " entries; at most ", limits.messages, " are taken"), "messages");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (auto e = ParseMessage(messages[i], StrCat("messages[", i, "]."), limits, out->add_messages())) return e;
  }
  return std::nullopt;
}

std::optional<ApiError> ParseTools(const Json& tools, std::string_view raw, const RequestLimits& limits, pb::Chat* out,
                                   std::vector<std::string>* names) {
  if (!tools.is_array() || tools.empty()) {
    return InvalidRequest("`tools`: must be an array of at least one tool; leave it out to offer none", "tools");
  }
  if (tools.size() > limits.tools || raw.size() > limits.tools_bytes) {
    return InvalidRequest(
        StrCat("`tools`: at most ", limits.tools, " tools in ", limits.tools_bytes, " bytes are taken"), "tools");
  }
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string prefix = StrCat("tools[", i, "].");
    Fields tool(tools[i], prefix);
    const std::string type = tool.String("type", kMaxIdBytes).value_or("");
    if (tool.ok() && type != "function") tool.Fail("type", "must be \"function\"");
    const Json* function = tool.Object("function");
    if (tool.ok() && function == nullptr) tool.Fail("function", "is missing");
    if (!tool.ok()) return tool.error();
    Fields fn(*function, prefix + "function.");
    const std::string name = fn.String("name", kMaxIdBytes).value_or("");
    if (fn.ok() && !GoodFunctionName(name)) fn.Fail("name", "must be 1 to 64 characters of A-Z a-z 0-9 _ - .");
    fn.Object("parameters");
    fn.Take("description");
    if (!fn.ok()) return fn.error();
    names->push_back(name);
  }
  out->set_tools_json(std::string(raw));
  return std::nullopt;
}

std::optional<ApiError> ParseChatRequest(std::string_view body, const Json& json, const ParseContext& ctx,
                                         ParsedGeneration* out) {
  Fields f(json);
  pb::GenerateRequest& request = out->requests.emplace_back();
  ReplyOptions& options = out->options;
  options.chat = true;
  ReadCommon(f, ctx, &request);
  const Json* messages = f.Take("messages");
  if (!f.ok()) return f.error();
  pb::Chat* chat = request.mutable_chat();
  if (auto e = ParseMessages(messages == nullptr ? Json() : *messages, ctx.limits, chat)) return e;

  bool no_tools = false;
  const Json* tools = f.Take("tools");
  ReadToolChoice(f, tools != nullptr, &no_tools);
  if (f.ok() && tools != nullptr) {
    const auto raw = RawTopLevelMember(body, "tools");
    const std::string text = raw ? std::string(*raw) : tools->dump();
    if (auto e = ParseTools(*tools, text, ctx.limits, chat, &options.tool_names)) return e;
    if (no_tools) {  // the surest way not to get a call is not to offer one
      chat->clear_tools_json();
      options.tool_names.clear();
    }
  }
  options.parallel_tool_calls = f.Bool("parallel_tool_calls").value_or(true);

  auto* sampling = request.mutable_sampling();
  ReadSampling(f, ctx, sampling, &options.n);
  ReadReplyOptions(f, &options);
  ReadLogprobs(f, sampling, &options);
  ReadMaxTokens(f, sampling);
  ReadResponseFormat(f);
  ReadTemplateOptions(f, chat);
  request.set_n(options.n);
  request.set_return_token_ids(options.return_token_ids || options.continuous_usage);
  // Used by the agent context.
  // Read by agent_context.cc.
  for (const char* key : {"priority", "session_id", "program_id", "parent_program_id", "nvext", "metadata",
                          "prompt_cache_key", "previous_response_id", "safety_identifier", "user"}) {
    f.Take(key);
  }
  out->ignored = f.Unknown();
  return f.error();
}

}  // namespace agentserve::gateway
