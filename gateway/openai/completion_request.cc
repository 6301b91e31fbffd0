#include "gateway/openai/completion_request.h"

#include "base/strings.h"
#include "gateway/openai/chat_request.h"
#include "gateway/openai/sampling_fields.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;

// OpenAI's default for this endpoint.
constexpr uint32_t kDefaultMaxTokens = 16;

bool ReadTokenIds(const Json& ids, const ParseContext& ctx, const std::string& path, pb::TokenIds* out, Fields& f) {
  const uint64_t end = ctx.model.vocab_size == 0 ? 1ull << 32 : ctx.model.vocab_size;
  if (ctx.model.context_length > 0 && ids.size() > ctx.model.context_length) {
    f.Fail(path,
           StrCat("the prompt has ", ids.size(), " tokens; the context of this model is ", ctx.model.context_length),
           "context_length_exceeded");
    return false;
  }
  out->mutable_ids()->Reserve(static_cast<int>(ids.size()));
  for (const Json& id : ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= end) {
      f.Fail(path, StrCat("must hold token ids from 0 to ", end - 1));
      return false;
    }
    out->add_ids(static_cast<uint32_t>(id.get<uint64_t>()));
  }
  return true;
}

void AddPrompt(const Json& prompt, const ParseContext& ctx, const std::string& path, ParsedGeneration* out, Fields& f) {
  pb::GenerateRequest& request = out->requests.emplace_back();
  if (prompt.is_string()) return request.set_text(prompt.get_ref<const std::string&>());
  if (!prompt.is_array() || prompt.empty()) return f.Fail(path, "must be a string or a list of token ids, not empty");
  ReadTokenIds(prompt, ctx, path, request.mutable_token_ids(), f);
}

void ReadPrompts(Fields& f, const ParseContext& ctx, ParsedGeneration* out) {
  const Json* prompt = f.Take("prompt");
  if (!f.ok()) return;
  if (prompt == nullptr) return f.Fail("prompt", "is missing");
  const bool many = prompt->is_array() && !prompt->empty() && !(*prompt)[0].is_number();
  if (!many) return AddPrompt(*prompt, ctx, "prompt", out, f);
  if (prompt->size() > ctx.limits.prompts) {
    return f.Fail("prompt", StrCat("has ", prompt->size(), " prompts; at most ", ctx.limits.prompts, " are taken"));
  }
  for (size_t i = 0; f.ok() && i < prompt->size(); ++i) {
    AddPrompt((*prompt)[i], ctx, StrCat("prompt[", i, "]"), out, f);
  }
}

void ReadTextOptions(Fields& f, common::v1::SamplingParams* sampling, ReplyOptions* options) {
  if (const auto logprobs = f.Integer("logprobs", 0, 5)) {
    options->logprobs = true;
    options->top_logprobs = static_cast<uint32_t>(*logprobs);
    sampling->set_top_logprobs(options->top_logprobs);
  }
  sampling->set_max_tokens(
      static_cast<uint32_t>(f.Integer("max_tokens", 1, kMaxTokensLimit).value_or(kDefaultMaxTokens)));
  if (f.ok() && sampling->min_tokens() > sampling->max_tokens()) {
    f.Fail("min_tokens", StrCat("is ", sampling->min_tokens(), ", more than max_tokens = ", sampling->max_tokens()));
  }
  options->echo = f.Bool("echo").value_or(false);
  if (options->echo && options->logprobs) f.Fail("echo", "together with `logprobs` is not supported");
  if (const auto suffix = f.String("suffix", SIZE_MAX); suffix && !suffix->empty()) {
    f.Fail("suffix", "is not supported by this model");
  }
  const int64_t best_of = f.Integer("best_of", 1, 1024).value_or(options->n);
  if (f.ok() && best_of != options->n) f.Fail("best_of", "is not supported unless equal to `n`");
  if (const Json* format = f.Object("response_format"); format && format->value("type", Json()) != "text") {
    f.Fail("response_format", "only {\"type\":\"text\"} is supported yet by this server");
  }
}

}  // namespace

std::optional<ApiError> ParseCompletionRequest(const Json& json, const ParseContext& ctx, ParsedGeneration* out) {
  Fields f(json);
  ReplyOptions& options = out->options;
  options.chat = false;
  pb::GenerateRequest common;
  ReadCommon(f, ctx, &common);
  auto* sampling = common.mutable_sampling();
  ReadSampling(f, ctx, sampling, &options.n);
  ReadReplyOptions(f, &options);
  ReadTextOptions(f, sampling, &options);
  ReadPrompts(f, ctx, out);
  if (!f.ok()) return f.error();
  if (out->requests.size() * options.n > ctx.limits.sequences) {
    f.Fail("n", StrCat(out->requests.size(), " prompts times n = ", options.n, " is more than ", ctx.limits.sequences,
                       " sequences; send fewer at once"));
  }
  common.set_n(options.n);
  common.set_return_token_ids(options.return_token_ids || options.continuous_usage);
  for (auto& request : out->requests) request.MergeFrom(common);
  // Read by agent_context.cc.
  for (const char* key : {"priority", "session_id", "program_id", "parent_program_id", "nvext", "metadata",
                          "prompt_cache_key", "previous_response_id", "safety_identifier", "user"}) {
    f.Take(key);
  }
  out->ignored = f.Unknown();
  return f.error();
}

std::optional<ApiError> ParseTokenizeRequest(std::string_view body, const Json& json, const ParseContext& ctx,
                                             pb::TokenizeRequest* out) {
  Fields f(json);
  pb::GenerateRequest common;
  if (const auto model = f.String("model", 256); model && !ctx.model.id.empty() && *model != ctx.model.id) {
    return ModelNotFound(*model, ctx.model.id);
  }
  const Json* messages = f.Take("messages");
  if (!f.ok()) return f.error();
  if (messages != nullptr) {
    if (auto e = ParseMessages(*messages, ctx.limits, out->mutable_chat())) return e;
    if (const Json* tools = f.Take("tools")) {
      std::vector<std::string> names;
      const auto raw = RawTopLevelMember(body, "tools");
      const std::string text = raw ? std::string(*raw) : tools->dump();
      if (auto e = ParseTools(*tools, text, ctx.limits, out->mutable_chat(), &names)) return e;
    }
    return f.error();
  }
  // vLLM says prompt and add_special_tokens; llama-server says content and add_special.
  auto text = f.String("prompt", SIZE_MAX);
  if (!text) text = f.String("content", SIZE_MAX);
  if (f.ok() && !text) f.Fail("prompt", "is missing: give `prompt` (text) or `messages` (a chat)");
  const bool llama_server = f.Take("prompt") == nullptr;
  const auto special = f.Bool("add_special_tokens");
  const auto special_alias = f.Bool("add_special");
  if (!f.ok()) return f.error();
  out->set_text(*text);
  out->set_add_special_tokens(special.value_or(special_alias.value_or(!llama_server)));
  return std::nullopt;
}

std::optional<ApiError> ParseDetokenizeRequest(const Json& json, const ParseContext& ctx, pb::DetokenizeRequest* out) {
  Fields f(json);
  if (const auto model = f.String("model", 256); model && !ctx.model.id.empty() && *model != ctx.model.id) {
    return ModelNotFound(*model, ctx.model.id);
  }
  const Json* tokens = f.Take("tokens");
  if (f.ok() && (tokens == nullptr || !tokens->is_array())) f.Fail("tokens", "must be a list of token ids");
  if (!f.ok()) return f.error();
  pb::TokenIds ids;
  ReadTokenIds(*tokens, ctx, "tokens", &ids, f);
  *out->mutable_ids() = ids.ids();
  return f.error();
}

}  // namespace agentserve::gateway
