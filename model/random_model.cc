#include "model/random_model.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/bf16/bf16.h"

namespace agentserve::model {
namespace {

// IEEE 754 binary16, rounded to nearest even, for |value| < 65504; tiny values become 0.
uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const int32_t exponent = static_cast<int32_t>((bits >> 23) & 0xff) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>(sign);
  const uint32_t kept = (static_cast<uint32_t>(exponent) << 10) | ((bits >> 13) & 0x3ff);
  const uint32_t rest = bits & 0x1fff;
  const uint32_t up = rest > 0x1000 || (rest == 0x1000 && (kept & 1) != 0) ? 1 : 0;
  return static_cast<uint16_t>(sign | (kept + up));
}

using base::StrCat;
using nlohmann::ordered_json;

struct TensorPlan {
  std::string name;
  std::vector<uint64_t> shape;
  uint64_t elements() const {
    uint64_t n = 1;
    for (const uint64_t d : shape) n *= d;
    return n;
  }
};

std::vector<TensorPlan> PlanTensors(const ModelConfig& c) {
  const uint64_t h = c.hidden_size, f = c.intermediate_size, q = c.q_size(), kv = c.kv_size();
  std::vector<TensorPlan> out = {{"model.embed_tokens.weight", {c.vocab_size, h}}};
  for (uint32_t i = 0; i < c.num_layers; ++i) {
    const std::string p = StrCat("model.layers.", i, ".");
    out.push_back({p + "input_layernorm.weight", {h}});
    out.push_back({p + "self_attn.q_proj.weight", {q, h}});
    out.push_back({p + "self_attn.k_proj.weight", {kv, h}});
    out.push_back({p + "self_attn.v_proj.weight", {kv, h}});
    out.push_back({p + "self_attn.o_proj.weight", {h, q}});
    out.push_back({p + "post_attention_layernorm.weight", {h}});
    out.push_back({p + "mlp.gate_proj.weight", {f, h}});
    out.push_back({p + "mlp.up_proj.weight", {f, h}});
    out.push_back({p + "mlp.down_proj.weight", {h, f}});
  }
  out.push_back({"model.norm.weight", {h}});
  if (!c.tie_word_embeddings) out.push_back({"lm_head.weight", {c.vocab_size, h}});
  return out;
}

absl::Status WriteError(const std::string& path) {
  return absl::UnavailableError(StrCat(path, ": cannot write; is there space and permission?"));
}

// Uniform values: norms in [0.5, 1.5), matrices with variance 1 / fan-in so that activations keep their size.
void AppendValues(const TensorPlan& t, uint64_t n, WeightDtype dtype, base::SplitMix64* rng, std::string* out) {
  const bool norm = t.shape.size() == 1;
  const float scale = norm ? 1.0f : 2.0f * std::sqrt(3.0f / static_cast<float>(t.shape.back()));
  const float shift = norm ? 1.0f : 0.0f;
  uint64_t bits = 0;
  for (uint64_t i = 0; i < n; ++i) {
    if (i % 4 == 0) bits = rng->Next();
    const float unit = static_cast<float>(bits & 0xffff) * 0x1p-16f - 0.5f;
    bits >>= 16;
    const float value = kernels::Bf16ToFloat(kernels::FloatToBf16(unit * scale + shift));
    if (dtype == WeightDtype::kF32) {
      out->append(reinterpret_cast<const char*>(&value), 4);
    } else if (dtype == WeightDtype::kBf16) {
      const uint16_t half = kernels::FloatToBf16(value);
      out->append(reinterpret_cast<const char*>(&half), 2);
    } else {
      const uint16_t half = FloatToHalf(value);
      out->append(reinterpret_cast<const char*>(&half), 2);
    }
  }
}

absl::Status WriteShard(const std::string& path, std::span<const TensorPlan> tensors, WeightDtype dtype,
                        base::SplitMix64* rng) {
  constexpr uint64_t kPiece = 1 << 20;  // elements; a multiple of 4, so that pieces never change the numbers
  const char* names[] = {"BF16", "F16", "F32"};
  ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t at = 0;
  for (const TensorPlan& t : tensors) {
    const uint64_t end = at + t.elements() * DtypeBytes(dtype);
    header[t.name] = {{"dtype", names[static_cast<int>(dtype)]}, {"shape", t.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  const uint64_t length = text.size();
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << text;
  std::string piece;
  for (const TensorPlan& t : tensors) {
    for (uint64_t done = 0; done < t.elements() && file.good(); done += kPiece) {
      piece.clear();
      AppendValues(t, std::min(kPiece, t.elements() - done), dtype, rng, &piece);
      file.write(piece.data(), static_cast<std::streamsize>(piece.size()));
    }
  }
  file.close();
  return file.good() ? absl::OkStatus() : WriteError(path);
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text << "\n";
  file.close();
  return file.good() ? absl::OkStatus() : WriteError(path);
}

ordered_json ConfigJson(const ModelConfig& c) {
  ordered_json j = {{"architectures", {"LlamaForCausalLM"}},
                    {"model_type", "llama"},
                    {"torch_dtype", "bfloat16"},
                    {"hidden_act", "silu"},
                    {"attention_bias", false},
                    {"mlp_bias", false},
                    {"vocab_size", c.vocab_size},
                    {"hidden_size", c.hidden_size},
                    {"intermediate_size", c.intermediate_size},
                    {"num_hidden_layers", c.num_layers},
                    {"num_attention_heads", c.num_heads},
                    {"num_key_value_heads", c.num_kv_heads},
                    {"head_dim", c.head_dim},
                    {"max_position_embeddings", c.max_position},
                    {"rms_norm_eps", std::stod(StrCat(c.rms_norm_eps))},
                    {"rope_theta", c.rope_theta},
                    {"tie_word_embeddings", c.tie_word_embeddings},
                    {"bos_token_id", c.bos_token_ids},
                    {"eos_token_id", c.eos_token_ids}};
  if (c.rope_scaling.type == RopeScaling::Type::kLlama3) {
    j["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", c.rope_scaling.factor},
                         {"low_freq_factor", c.rope_scaling.low_freq_factor},
                         {"high_freq_factor", c.rope_scaling.high_freq_factor},
                         {"original_max_position_embeddings", c.rope_scaling.original_max_position}};
  }
  return j;
}

}  // namespace

absl::StatusOr<ModelConfig> NamedShape(const std::string& name) {
  ModelConfig c;
  c.vocab_size = 128256;
  c.num_kv_heads = 8;
  c.intermediate_size = 8192;
  c.max_position = 131072;
  c.rms_norm_eps = 1e-5f;
  c.rope_theta = 500000;
  c.rope_scaling = {RopeScaling::Type::kLlama3, 32.0, 1.0, 4.0, 8192};
  c.tie_word_embeddings = true;
  c.bos_token_ids = {128000};
  c.eos_token_ids = {128001, 128008, 128009};
  if (name == "1b") {
    c.hidden_size = 2048, c.num_layers = 16, c.num_heads = 32, c.head_dim = 64;
  } else if (name == "3b") {
    c.hidden_size = 3072, c.num_layers = 28, c.num_heads = 24, c.head_dim = 128;
  } else if (name == "tiny") {
    c.vocab_size = 512, c.hidden_size = 128, c.intermediate_size = 256, c.num_layers = 2, c.num_heads = 4;
    c.num_kv_heads = 2, c.head_dim = 64, c.max_position = 16384;
    c.bos_token_ids = {1}, c.eos_token_ids = {2};
  } else {
    return absl::InvalidArgumentError(StrCat("unknown shape \"", name, "\"; known are 1b, 3b and tiny"));
  }
  return c;
}

absl::Status WriteRandomModel(const std::string& dir, const RandomModelOptions& options) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return absl::UnavailableError(StrCat(dir, ": cannot create: ", error.message()));
  const ModelConfig& c = options.config;
  AS_RETURN_IF_ERROR(WriteText(dir + "/config.json", ConfigJson(c).dump(2)));
  const ordered_json generation = {{"bos_token_id", c.bos_token_ids}, {"eos_token_id", c.eos_token_ids}};
  AS_RETURN_IF_ERROR(WriteText(dir + "/generation_config.json", generation.dump(2)));
  const std::vector<TensorPlan> tensors = PlanTensors(c);
  base::SplitMix64 rng(options.seed);
  if (options.shards <= 1) return WriteShard(dir + "/model.safetensors", tensors, options.dtype, &rng);
  ordered_json map = ordered_json::object();
  const size_t per = (tensors.size() + options.shards - 1) / options.shards;
  uint64_t bytes = 0;
  for (uint32_t s = 0; s < options.shards && s * per < tensors.size(); ++s) {
    char name[64];
    std::snprintf(name, sizeof(name), "model-%05u-of-%05u.safetensors", s + 1, options.shards);
    const auto part = std::span(tensors).subspan(s * per, std::min(per, tensors.size() - s * per));
    for (const TensorPlan& t : part) {
      map[t.name] = name;
      bytes += t.elements() * DtypeBytes(options.dtype);
    }
    AS_RETURN_IF_ERROR(WriteShard(StrCat(dir, "/", std::string_view(name)), part, options.dtype, &rng));
  }
  const ordered_json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", map}};
  return WriteText(dir + "/model.safetensors.index.json", index.dump(2));
}

}  // namespace agentserve::model
