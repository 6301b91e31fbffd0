#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/status_macros.h"
#include "base/strings.h"
#include "model/file_io.h"

namespace agentserve::model {
namespace {

using base::StrCat;
using nlohmann::json;

constexpr size_t kMaxConfigBytes = 1 << 20;  // published ones are under 5 KB
constexpr size_t kMaxTokenList = 256;

// Reads typed fields of one JSON object; errors name file and field.
class Fields {
 public:
  Fields(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {}

  const json* Find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  absl::Status Bad(const char* name, std::string_view why) const {
    std::string value = "(absent)";
    if (const json* v = Find(name)) value = v->dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 60);
    return absl::InvalidArgumentError(StrCat(origin_, ": field \"", name, "\" = ", value, ": ", why));
  }
  absl::Status Unsupported(const char* name, std::string_view why) const {
    return absl::UnimplementedError(MessageOf(Bad(name, why)));
  }
  // Integer in [least, most]; absent = `fallback` or an error.
  absl::StatusOr<uint32_t> Count(const char* name, uint32_t least, uint32_t most,
                                 std::optional<uint32_t> fallback = std::nullopt) const {
    const json* v = Find(name);
    if (v == nullptr && fallback) return *fallback;
    if (v == nullptr) return Bad(name, "is required");
    if (!v->is_number_unsigned() || v->get<uint64_t>() < least || v->get<uint64_t>() > most) {
      return Bad(name, StrCat("must be a whole number from ", least, " to ", most));
    }
    return v->get<uint32_t>();
  }
  // Finite number in [least, most].
  absl::StatusOr<double> Number(const char* name, double least, double most, std::optional<double> fallback) const {
    const json* v = Find(name);
    if (v == nullptr && fallback) return *fallback;
    if (v == nullptr) return Bad(name, "is required");
    if (!v->is_number() || !std::isfinite(v->get<double>()) || v->get<double>() < least || v->get<double>() > most) {
      return Bad(name, StrCat("must be a finite number from ", least, " to ", most));
    }
    return v->get<double>();
  }
  absl::StatusOr<bool> Flag(const char* name, bool fallback) const {
    const json* v = Find(name);
    if (v == nullptr) return fallback;
    if (!v->is_boolean()) return Bad(name, "must be true or false");
    return v->get<bool>();
  }
  // A token id or a list of them; absent = none.
  absl::Status TokenIds(const char* name, uint32_t vocab, std::vector<uint32_t>* out) const {
    const json* v = Find(name);
    if (v == nullptr) return absl::OkStatus();
    const auto add = [&](const json& id) {
      const bool ok = id.is_number_unsigned() && id.get<uint64_t>() < vocab;
      if (ok) out->push_back(id.get<uint32_t>());
      return ok;
    };
    const std::string want =
        StrCat("must be a token id below vocab_size ", vocab, " or a list of at most ", kMaxTokenList);
    if (v->is_array()) {
      if (v->size() > kMaxTokenList || !std::all_of(v->begin(), v->end(), add)) return Bad(name, want);
    } else if (!add(*v)) {
      return Bad(name, want);
    }
    return absl::OkStatus();
  }

 private:
  static std::string MessageOf(const absl::Status& s) { return base::MessageOf(s); }

  const json& object_;
  std::string origin_;
};

absl::StatusOr<json> ParseObject(std::string_view text, const std::string& origin) {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        StrCat(origin, ": ", text.size(), " bytes; at most ", kMaxConfigBytes, " expected"));
  }
  try {
    json parsed = json::parse(text.begin(), text.end());
    if (!parsed.is_object()) return absl::InvalidArgumentError(StrCat(origin, ": not a JSON object"));
    return parsed;
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(StrCat(origin, ": not valid JSON: ", std::string_view(e.what())));
  }
}

// What this program cannot compute must be refused, not ignored.
absl::Status CheckSupported(const Fields& f) {
  if (const json* type = f.Find("model_type"); type != nullptr && *type != "llama") {
    return f.Unsupported("model_type", "only \"llama\" is supported");
  }
  if (const json* a = f.Find("architectures")) {
    if (!a->is_array() || a->size() != 1 || (*a)[0] != "LlamaForCausalLM") {
      return f.Unsupported("architectures", "only [\"LlamaForCausalLM\"] is supported");
    }
  } else if (f.Find("model_type") == nullptr) {
    return f.Bad("model_type", "is required (or \"architectures\")");
  }
  if (const json* act = f.Find("hidden_act"); act != nullptr && *act != "silu") {
    return f.Unsupported("hidden_act", "only \"silu\" is supported");
  }
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    AS_ASSIGN_OR_RETURN(const bool on, f.Flag(bias, false));
    if (on) return f.Unsupported(bias, "linear layers with biases are not supported");
  }
  if (f.Find("quantization_config") != nullptr) {
    return f.Unsupported("quantization_config",
                         "quantized weights are not supported; use a bf16, f16 or f32 checkpoint");
  }
  return absl::OkStatus();
}

absl::Status ParseDims(const Fields& f, ModelConfig* c) {
  AS_ASSIGN_OR_RETURN(c->vocab_size, f.Count("vocab_size", 1, kMaxVocab));
  AS_ASSIGN_OR_RETURN(c->hidden_size, f.Count("hidden_size", 16, kMaxHidden));
  AS_ASSIGN_OR_RETURN(c->intermediate_size, f.Count("intermediate_size", 16, kMaxIntermediate));
  AS_ASSIGN_OR_RETURN(c->num_layers, f.Count("num_hidden_layers", 1, kMaxLayers));
  AS_ASSIGN_OR_RETURN(c->num_heads, f.Count("num_attention_heads", 1, kMaxHeads));
  AS_ASSIGN_OR_RETURN(c->num_kv_heads, f.Count("num_key_value_heads", 1, kMaxHeads, c->num_heads));
  AS_ASSIGN_OR_RETURN(c->max_position, f.Count("max_position_embeddings", 1, kMaxContext, 2048));
  if (c->hidden_size % 16 != 0) return f.Bad("hidden_size", "must be a multiple of 16");
  if (c->intermediate_size % 16 != 0) return f.Bad("intermediate_size", "must be a multiple of 16");
  if (c->num_heads % c->num_kv_heads != 0) {
    return f.Bad("num_key_value_heads", StrCat("must divide num_attention_heads = ", c->num_heads));
  }
  if (f.Find("head_dim") == nullptr && c->hidden_size % c->num_heads != 0) {
    return f.Bad("num_attention_heads",
                 StrCat("must divide hidden_size = ", c->hidden_size, " when head_dim is absent"));
  }
  const uint32_t derived = c->hidden_size / c->num_heads;
  const char* source = f.Find("head_dim") == nullptr ? "num_attention_heads" : "head_dim";
  AS_ASSIGN_OR_RETURN(c->head_dim, f.Count("head_dim", 1, kMaxHeadDim, derived));
  if (c->head_dim == 0 || c->head_dim % 16 != 0 || c->head_dim > kMaxHeadDim) {
    return f.Bad(source,
                 StrCat("gives head_dim ", c->head_dim, "; it must be a multiple of 16, at most ", kMaxHeadDim));
  }
  return absl::OkStatus();
}

absl::Status ParseLlama3(const Fields& f, uint32_t max_position, RopeScaling* s) {
  s->type = RopeScaling::Type::kLlama3;
  AS_ASSIGN_OR_RETURN(s->factor, f.Number("factor", 1.0, 1e6, std::nullopt));
  AS_ASSIGN_OR_RETURN(s->low_freq_factor, f.Number("low_freq_factor", 1e-6, 1e6, std::nullopt));
  AS_ASSIGN_OR_RETURN(s->high_freq_factor, f.Number("high_freq_factor", 1e-6, 1e6, std::nullopt));
  AS_ASSIGN_OR_RETURN(s->original_max_position,
                      f.Count("original_max_position_embeddings", 1, kMaxContext, max_position));
  if (s->low_freq_factor >= s->high_freq_factor) {
    return f.Bad("low_freq_factor", "must be below high_freq_factor");
  }
  return absl::OkStatus();
}

// rope_theta and rope_scaling (transformers 4) or rope_parameters, which holds both (transformers 5).
absl::Status ParseRope(const Fields& f, const std::string& origin, ModelConfig* c) {
  constexpr double kLeastTheta = 1.0, kMostTheta = 1e12;
  AS_ASSIGN_OR_RETURN(c->rope_theta, f.Number("rope_theta", kLeastTheta, kMostTheta, 10000.0));
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const json* object = f.Find(name);
    if (object == nullptr) continue;
    if (!object->is_object()) return f.Bad(name, "must be an object or null");
    const Fields rope(*object, StrCat(origin, ": ", std::string_view(name)));
    AS_ASSIGN_OR_RETURN(c->rope_theta, rope.Number("rope_theta", kLeastTheta, kMostTheta, c->rope_theta));
    const char* key = rope.Find("rope_type") != nullptr ? "rope_type" : "type";
    const json* type = rope.Find(key);
    if (type == nullptr || *type == "default") continue;
    if (*type != "llama3") return rope.Unsupported(key, "only \"llama3\" and \"default\" are supported");
    AS_RETURN_IF_ERROR(ParseLlama3(rope, c->max_position, &c->rope_scaling));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t ModelConfig::num_parameters() const {
  const uint64_t layer = uint64_t{hidden_size} * (2 * q_size() + 2 * kv_size()) +
                         3 * uint64_t{hidden_size} * intermediate_size + 2 * hidden_size;
  const uint64_t embedding = uint64_t{vocab_size} * hidden_size;
  return num_layers * layer + hidden_size + embedding * (tie_word_embeddings ? 1 : 2);
}

std::string ModelConfig::Canonical() const {
  return StrCat("vocab_size=", vocab_size, "\nhidden_size=", hidden_size, "\nintermediate_size=", intermediate_size,
                "\nnum_layers=", num_layers, "\nnum_heads=", num_heads, "\nnum_kv_heads=", num_kv_heads,
                "\nhead_dim=", head_dim, "\nrms_norm_eps=", rms_norm_eps, "\nrope_theta=", rope_theta,
                "\nrope_type=", static_cast<int>(rope_scaling.type), "\nrope_factor=", rope_scaling.factor,
                "\nrope_low=", rope_scaling.low_freq_factor, "\nrope_high=", rope_scaling.high_freq_factor,
                "\nrope_original=", rope_scaling.original_max_position, "\ntied=", tie_word_embeddings ? 1 : 0, "\n");
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_json,
                                             const std::string& origin) {
  AS_ASSIGN_OR_RETURN(const json object, ParseObject(config_json, origin));
  const Fields f(object, origin);
  AS_RETURN_IF_ERROR(CheckSupported(f));
  ModelConfig c;
  AS_RETURN_IF_ERROR(ParseDims(f, &c));
  AS_ASSIGN_OR_RETURN(const double eps, f.Number("rms_norm_eps", 0.0, 1.0, 1e-6));
  c.rms_norm_eps = static_cast<float>(eps);
  AS_ASSIGN_OR_RETURN(c.tie_word_embeddings, f.Flag("tie_word_embeddings", false));
  AS_RETURN_IF_ERROR(ParseRope(f, origin, &c));
  AS_RETURN_IF_ERROR(f.TokenIds("bos_token_id", c.vocab_size, &c.bos_token_ids));
  AS_RETURN_IF_ERROR(f.TokenIds("eos_token_id", c.vocab_size, &c.eos_token_ids));
  if (!generation_json.empty()) {
    const std::string generation_origin = StrCat(origin, " -> generation_config.json");
    AS_ASSIGN_OR_RETURN(const json generation, ParseObject(generation_json, generation_origin));
    AS_RETURN_IF_ERROR(Fields(generation, generation_origin).TokenIds("eos_token_id", c.vocab_size, &c.eos_token_ids));
  }
  std::sort(c.eos_token_ids.begin(), c.eos_token_ids.end());
  c.eos_token_ids.erase(std::unique(c.eos_token_ids.begin(), c.eos_token_ids.end()), c.eos_token_ids.end());
  return c;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(dir, error)) {
    return absl::NotFoundError(StrCat("model folder ", dir,
                                      " does not exist or is not a folder; name a Hugging Face "
                                      "model folder that holds config.json and *.safetensors"));
  }
  const std::string path = dir + "/config.json", generation_path = dir + "/generation_config.json";
  AS_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConfigBytes));
  std::string generation;
  if (std::filesystem::exists(generation_path, error)) {
    AS_ASSIGN_OR_RETURN(generation, ReadSmallFile(generation_path, kMaxConfigBytes));
  }
  return ParseModelConfig(text, generation, path);
}

}  // namespace agentserve::model
