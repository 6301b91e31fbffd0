#include "gateway/openai/sampling_fields.h"

#include <charconv>

#include "base/strings.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;

void ReadStop(Fields& f, const RequestLimits& limits, common::v1::SamplingParams* out) {
  const Json* stop = f.Take("stop");
  if (stop == nullptr) return;
  const auto add = [&](const Json& s) {
    if (!s.is_string()) return f.Fail("stop", StrCat("must hold strings, not ", s.type_name()));
    const auto& text = s.get_ref<const std::string&>();
    if (text.empty() || text.size() > limits.stop_bytes) {
      return f.Fail("stop", StrCat("a stop string has ", text.size(), " bytes; must be 1 to ", limits.stop_bytes));
    }
    out->add_stop(text);
  };
  if (stop->is_string()) return add(*stop);
  if (!stop->is_array()) return f.Fail("stop", StrCat("must be a string or an array, not ", stop->type_name()));
  if (stop->size() > limits.stop) {
    return f.Fail("stop", StrCat("has ", stop->size(), " entries; at most ", limits.stop, " are taken"));
  }
  for (const Json& s : *stop) add(s);
}

void ReadStopTokenIds(Fields& f, const ParseContext& ctx, common::v1::SamplingParams* out) {
  const Json* ids = f.Array("stop_token_ids", ctx.limits.stop_token_ids);
  if (ids == nullptr) return;
  const uint64_t end = ctx.model.vocab_size == 0 ? 1ull << 32 : ctx.model.vocab_size;
  for (const Json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= end) {
      return f.Fail("stop_token_ids", StrCat("must hold token ids from 0 to ", end - 1));
    }
    out->add_stop_token_ids(static_cast<uint32_t>(id.get<uint64_t>()));
  }
}

void ReadLogitBias(Fields& f, const ParseContext& ctx, common::v1::SamplingParams* out) {
  const Json* bias = f.Object("logit_bias");
  if (bias == nullptr) return;
  if (bias->size() > ctx.limits.logit_bias) {
    return f.Fail("logit_bias",
                  StrCat("has ", bias->size(), " entries; at most ", ctx.limits.logit_bias, " are taken"));
  }
  const uint64_t end = ctx.model.vocab_size == 0 ? 1ull << 32 : ctx.model.vocab_size;
  for (const auto& [key, value] : bias->items()) {
    uint64_t id = 0;
    const auto r = std::from_chars(key.data(), key.data() + key.size(), id);
    if (r.ec != std::errc() || r.ptr != key.data() + key.size() || id >= end) {
      return f.Fail("logit_bias", StrCat("the key '", Shorten(key, 40), "' is not a token id from 0 to ", end - 1));
    }
    if (!value.is_number() || !(value.get<double>() >= -100 && value.get<double>() <= 100)) {
      return f.Fail("logit_bias", StrCat("the value of token ", id, " must be a number from -100 to 100"));
    }
    auto* entry = out->add_logit_bias();
    entry->set_token_id(static_cast<uint32_t>(id));
    entry->set_bias(value.get<float>());
  }
}

// Features whose fields would change the answer if ignored.
void RefuseUnsupported(Fields& f) {
  for (const char* key : {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}) {
    if (f.Take(key) != nullptr) f.Fail(key, "constrained decoding is not supported yet by this server; remove it");
  }
  for (const char* key :
       {"chat_template", "prompt_logprobs", "bad_words", "allowed_token_ids", "truncate_prompt_tokens", "functions",
        "function_call", "audio", "kv_transfer_params", "documents"}) {
    const Json* v = f.Take(key);
    if (v == nullptr || (v->is_array() && v->empty())) continue;
    const std::string_view k = key;
    f.Fail(key, k == "functions" || k == "function_call" ? "is not supported; use `tools` and `tool_choice`"
                                                         : "is not supported by this server; remove it");
  }
  if (f.Bool("use_beam_search").value_or(false)) f.Fail("use_beam_search", "beam search is not supported");
  if (const Json* m = f.Take("modalities")) {
    if (!m->is_array() || m->size() != 1 || (*m)[0] != "text") f.Fail("modalities", "only [\"text\"] is supported");
  }
}

}  // namespace

void ReadSampling(Fields& f, const ParseContext& ctx, common::v1::SamplingParams* out, uint32_t* n) {
  const auto number = [&](const char* key, double least, double most, auto set) {
    if (const auto v = f.Number(key, least, most)) (out->*set)(static_cast<float>(*v));
  };
  using P = common::v1::SamplingParams;
  number("temperature", 0, 2, &P::set_temperature);
  number("min_p", 0, 1, &P::set_min_p);
  number("presence_penalty", -2, 2, &P::set_presence_penalty);
  number("frequency_penalty", -2, 2, &P::set_frequency_penalty);
  if (const auto v = f.NumberAbove("top_p", 0, 1)) out->set_top_p(static_cast<float>(*v));
  if (const auto v = f.NumberAbove("repetition_penalty", 0, 2)) out->set_repetition_penalty(static_cast<float>(*v));
  // -1 is vLLM's way to say "all".
  if (const auto v = f.Integer("top_k", -1, INT32_MAX)) out->set_top_k(static_cast<uint32_t>(std::max<int64_t>(*v, 0)));
  if (const auto v = f.Integer("seed", INT64_MIN, INT64_MAX)) out->set_seed(static_cast<uint64_t>(*v));
  if (const auto v = f.Integer("min_tokens", 0, kMaxTokensLimit)) out->set_min_tokens(static_cast<uint32_t>(*v));
  if (f.Bool("ignore_eos").value_or(false)) out->set_ignore_eos(true);
  if (f.Bool("include_stop_str_in_output").value_or(false)) out->set_include_stop_str_in_output(true);
  ReadStop(f, ctx.limits, out);
  ReadStopTokenIds(f, ctx, out);
  ReadLogitBias(f, ctx, out);
  *n = static_cast<uint32_t>(f.Integer("n", 1, ctx.limits.n).value_or(1));
}

void ReadReplyOptions(Fields& f, ReplyOptions* out) {
  out->stream = f.Bool("stream").value_or(false);
  out->return_token_ids = f.Bool("return_token_ids").value_or(false);
  out->timeline = f.Bool("timeline").value_or(false);
  const Json* stream_options = f.Object("stream_options");
  if (stream_options == nullptr) return;
  if (!out->stream) return f.Fail("stream_options", "is only allowed together with `stream: true`");
  Fields so(*stream_options, "stream_options.");
  out->include_usage = so.Bool("include_usage").value_or(false);
  out->continuous_usage = so.Bool("continuous_usage_stats").value_or(false) && out->include_usage;
  so.Bool("include_obfuscation");
  if (!so.ok()) f.Fail(*so.error());
}

void ReadCommon(Fields& f, const ParseContext& ctx, pb::GenerateRequest* out) {
  if (const auto model = f.String("model", 256)) {
    if (!ctx.model.id.empty() && *model != ctx.model.id) return f.Fail(ModelNotFound(*model, ctx.model.id));
    out->set_model(*model);
  }
  if (const auto salt = f.String("cache_salt", 64)) {
    const bool good = !salt->empty() && salt->find_first_not_of(
                                            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789._-") == salt->npos;
    if (!good) return f.Fail("cache_salt", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -");
    out->set_cache_salt(*salt);
  }
  out->set_keep_special_tokens(!f.Bool("skip_special_tokens").value_or(true));
  RefuseUnsupported(f);
}

}  // namespace agentserve::gateway
