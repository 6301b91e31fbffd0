#include "tools/cli/offline/spec.h"

#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/numbers.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;
using nlohmann::json;

namespace {

absl::Status Bad(const std::string& field, const std::string& wanted) {
  return absl::InvalidArgumentError(StrCat("field \"", field, "\": ", wanted, " is expected"));
}

// Reads typed fields of one object and keeps the first error.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  template <typename T>
  void Number(const char* name, double least, double most, T* out) {
    const json* v = Find(name);
    if (v == nullptr) return;
    const bool whole = std::is_floating_point_v<T> || v->is_number_integer();
    if (!v->is_number() || !whole || !(v->get<double>() >= least && v->get<double>() <= most)) {
      return status_.Update(Bad(
          name, StrCat(std::is_floating_point_v<T> ? "a number" : "a whole number", " from ", least, " to ", most)));
    }
    *out = v->get<T>();
  }
  void Bool(const char* name, bool* out) {
    const json* v = Find(name);
    if (v == nullptr) return;
    if (!v->is_boolean()) return status_.Update(Bad(name, "true or false"));
    *out = v->get<bool>();
  }
  void Strings(const char* name, std::vector<std::string>* out) {
    const json* v = Find(name);
    if (v == nullptr) return;
    for (const json& s : v->is_array() ? *v : json::array({*v})) {
      if (!s.is_string()) return status_.Update(Bad(name, "a string or a list of strings"));
      out->push_back(s.get<std::string>());
    }
  }
  void Ids(const char* name, std::vector<engine::TokenId>* out) {
    const json* v = Find(name);
    if (v == nullptr) return;
    if (!v->is_array()) return status_.Update(Bad(name, "a list of token ids"));
    for (const json& id : *v) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
        return status_.Update(Bad(name, "a list of token ids"));
      }
      out->push_back(id.get<engine::TokenId>());
    }
  }
  // Null counts as absent.
  const json* Find(const char* name) {
    known_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  void Fail(absl::Status s) { status_.Update(s); }
  // The first error; or an unknown field, so that a misspelt one is not ignored.
  absl::Status Finish() {
    for (const auto& item : object_.items()) {
      if (known_.count(item.key()) == 0)
        status_.Update(absl::InvalidArgumentError(StrCat("unknown field \"", item.key(), "\"")));
    }
    return status_;
  }

 private:
  const json& object_;
  absl::Status status_;
  std::set<std::string> known_;
};

void ParseSampling(const text::ModelCard& card, Fields* f, engine::SamplingParams* s) {
  const text::DefaultSampling& d = card.sampling;
  s->temperature = static_cast<float>(d.temperature.value_or(1.0));
  s->top_p = static_cast<float>(d.top_p.value_or(1.0));
  s->min_p = static_cast<float>(d.min_p.value_or(0.0));
  s->repetition_penalty = static_cast<float>(d.repetition_penalty.value_or(1.0));
  s->top_k = static_cast<uint32_t>(d.top_k.value_or(0));
  s->seed = base::EntropyUint64();
  f->Number("temperature", 0, 2, &s->temperature);
  f->Number("top_p", 1e-6, 1, &s->top_p);
  f->Number("min_p", 0, 1, &s->min_p);
  f->Number("top_k", 0, UINT32_MAX, &s->top_k);
  f->Number("repetition_penalty", 1e-6, 2, &s->repetition_penalty);
  f->Number("presence_penalty", -2, 2, &s->presence_penalty);
  f->Number("frequency_penalty", -2, 2, &s->frequency_penalty);
  f->Number("seed", 0, 1.8446744073709550e19, &s->seed);
  f->Number("max_tokens", 0, UINT32_MAX, &s->max_tokens);
  f->Number("min_tokens", 0, UINT32_MAX, &s->min_tokens);
  f->Number("logprobs", 0, 20, &s->top_logprobs);
  f->Bool("ignore_eos", &s->ignore_eos);
  f->Ids("stop_token_ids", &s->stop_token_ids);
  const json* bias = f->Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) return f->Fail(Bad("logit_bias", "an object of token id and number"));
  for (const auto& item : bias->items()) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(item.key(), &id) || !item.value().is_number()) {
      return f->Fail(Bad("logit_bias", "an object of token id and number"));
    }
    s->logit_bias.emplace_back(id, item.value().get<float>());
  }
}

absl::StatusOr<text::Message> ParseMessage(const json& m, size_t index) {
  const std::string where = StrCat("messages[", index, "]");
  if (!m.is_object() || !m.contains("role") || !m["role"].is_string()) return Bad(where, "an object with a role");
  text::Message out;
  out.role = m["role"].get<std::string>();
  if (m.contains("content") && m["content"].is_string()) out.content = m["content"].get<std::string>();
  if (!m.contains("tool_calls") || m["tool_calls"].is_null()) return out;
  if (!m["tool_calls"].is_array()) return Bad(where + ".tool_calls", "a list");
  for (const json& call : m["tool_calls"]) {
    const json function = call.is_object() ? call.value("function", json()) : json();
    if (!function.is_object() || !function.value("name", json()).is_string() ||
        !function.value("arguments", json("")).is_string()) {
      return Bad(where + ".tool_calls", "a list of {id, function: {name, arguments}}");
    }
    out.tool_calls.push_back(
        {call.value("id", ""), function["name"].get<std::string>(), function.value("arguments", "")});
  }
  return out;
}

absl::StatusOr<std::vector<engine::TokenId>> RenderChat(const json& messages, Fields* f,
                                                        const text::Tokenizer& tokenizer) {
  if (!messages.is_array()) return Bad("messages", "a list of messages");
  text::ChatRequest chat;
  for (size_t i = 0; i < messages.size(); ++i) {
    AS_ASSIGN_OR_RETURN(text::Message message, ParseMessage(messages[i], i));
    chat.messages.push_back(std::move(message));
  }

  if (const json* tools = f->Find("tools_json")) {
    if (!tools->is_string()) return Bad("tools_json", "JSON text");
    chat.tools_json = tools->get<std::string>();
  }
  if (const json* date = f->Find("date_string")) {
    if (!date->is_string()) return Bad("date_string", "a string");
    chat.date_string = date->get<std::string>();
  }
  AS_ASSIGN_OR_RETURN(const text::RenderedChat rendered, text::ChatTemplate(tokenizer).Render(chat));
  return rendered.ids;
}

}  // namespace

absl::StatusOr<GenerateSpec> ParseGenerateSpec(const std::string& json_text, const text::Tokenizer& tokenizer,
                                               const text::ModelCard& card) {
  nlohmann::ordered_json ordered = nlohmann::ordered_json::parse(json_text, nullptr, false);
  if (!ordered.is_object()) return absl::InvalidArgumentError("a JSON object is expected");
  if (ordered.contains("tools") && !ordered["tools"].is_null()) {
    ordered["tools_json"] = ordered["tools"].dump();
  }
  ordered.erase("tools");
  const json object = json::parse(ordered.dump());
  Fields f(object);
  GenerateSpec spec;
  ParseSampling(card, &f, &spec.sampling);
  f.Strings("stop", &spec.stop);
  f.Bool("include_stop_str_in_output", &spec.include_stop);
  const json *prompt = f.Find("prompt"), *ids = f.Find("prompt_ids"), *messages = f.Find("messages");
  if ((prompt != nullptr) + (ids != nullptr) + (messages != nullptr) != 1) {
    return absl::InvalidArgumentError("exactly one of \"prompt\", \"prompt_ids\" and \"messages\" is expected");
  }
  if (prompt != nullptr) {
    if (!prompt->is_string()) return Bad("prompt", "a string");
    if (tokenizer.bos()) spec.prompt.push_back(*tokenizer.bos());
    const std::vector<uint32_t> encoded = tokenizer.Encode(prompt->get_ref<const std::string&>());
    spec.prompt.insert(spec.prompt.end(), encoded.begin(), encoded.end());
  } else if (ids != nullptr) {
    f.Ids("prompt_ids", &spec.prompt);
  } else {
    AS_ASSIGN_OR_RETURN(spec.prompt, RenderChat(*messages, &f, tokenizer));
  }
  AS_RETURN_IF_ERROR(f.Finish());
  if (spec.prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  return spec;
}

}  // namespace agentserve::tools
