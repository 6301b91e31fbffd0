// The shape and constants of a Llama model, read from a Hugging Face folder.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::model {

// How RoPE frequencies are stretched beyond the length the model was first trained on.
struct RopeScaling {
  enum class Type { kNone, kLlama3 };
  Type type = Type::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  uint32_t original_max_position = 8192;
  bool operator==(const RopeScaling&) const = default;
};

// Limits that config.json is checked against; far above any published Llama 3 text model, low enough that no product of
// two of them overflows 64 bits or asks for absurd memory.
inline constexpr uint32_t kMaxVocab = 1u << 20;
inline constexpr uint32_t kMaxHidden = 1u << 16;
inline constexpr uint32_t kMaxIntermediate = 1u << 18;
inline constexpr uint32_t kMaxLayers = 512;
inline constexpr uint32_t kMaxHeads = 1024;
inline constexpr uint32_t kMaxHeadDim = 256;
inline constexpr uint32_t kMaxContext = 1u << 22;

struct ModelConfig {
  uint32_t vocab_size = 0;
  uint32_t hidden_size = 0;        // multiple of 16
  uint32_t intermediate_size = 0;  // multiple of 16
  uint32_t num_layers = 0;
  uint32_t num_heads = 0;
  uint32_t num_kv_heads = 0;  // divides num_heads
  uint32_t head_dim = 0;      // multiple of 16
  uint32_t max_position = 0;  // context length in tokens, prompt and output
  float rms_norm_eps = 1e-6f;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  std::vector<uint32_t> bos_token_ids;
  // eos_token_id of config.json and generation_config.json, ascending, without repeats.
  std::vector<uint32_t> eos_token_ids;

  uint32_t group() const { return num_heads / num_kv_heads; }
  uint32_t q_size() const { return num_heads * head_dim; }
  uint32_t kv_size() const { return num_kv_heads * head_dim; }
  // Number of weights, counting a tied embedding once.
  uint64_t num_parameters() const;
  // All fields that change what the model computes, one `name=value` per line, in a fixed order.
  std::string Canonical() const;
};

// Parses the text of a config.json (and, if not empty, generation_config.json). `origin` names the file in errors.
// INVALID_ARGUMENT for malformed values, UNIMPLEMENTED for architectures and options that are not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_json,
                                             const std::string& origin);
// Reads DIR/config.json and, if present, DIR/generation_config.json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

}  // namespace agentserve::model
