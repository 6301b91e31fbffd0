#include "model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/test_util.h"

namespace agentserve::model {
namespace {

using nlohmann::json;

json Good() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0, "tie_word_embeddings": true, "eos_token_id": [128001, 128009], "bos_token_id": 128000,
    "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "pad_token_id": null,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192}})");
}

absl::StatusOr<ModelConfig> Parse(const json& j, const std::string& generation = "") {
  return ParseModelConfig(j.dump(), generation, "config.json");
}

TEST(Config, ReadsLlama32) {
  const auto c = Parse(Good(), R"({"eos_token_id": [128001, 128008]})");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->num_parameters(), 1235814400u);
  EXPECT_EQ(c->group(), 4u);
  EXPECT_EQ(c->rope_scaling, (RopeScaling{RopeScaling::Type::kLlama3, 32.0, 1.0, 4.0, 8192}));
  EXPECT_EQ(c->eos_token_ids, (std::vector<uint32_t>{128001, 128008, 128009}));
  EXPECT_TRUE(c->tie_word_embeddings);
}

TEST(Config, BothGenerationsOfRopeKeysAgree) {
  json j = Good();
  json rope = j["rope_scaling"];
  rope["rope_theta"] = 500000.0;
  j.erase("rope_scaling");
  j.erase("rope_theta");
  j["rope_parameters"] = rope;
  EXPECT_EQ(Parse(j)->Canonical(), Parse(Good())->Canonical());
  j["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e4}};
  EXPECT_EQ(Parse(j)->rope_scaling.type, RopeScaling::Type::kNone);
  EXPECT_EQ(Parse(j)->rope_theta, 1e4);
}

TEST(Config, DefaultsOfHuggingFace) {
  json j = Good();
  for (const char* key : {"head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps",
                          "tie_word_embeddings", "eos_token_id", "max_position_embeddings"}) {
    j.erase(key);
  }
  const auto c = Parse(j);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->head_dim, 64u);
  EXPECT_EQ(c->num_kv_heads, 32u);
  EXPECT_EQ(c->max_position, 2048u);
  EXPECT_FALSE(c->tie_word_embeddings);
  EXPECT_TRUE(c->eos_token_ids.empty());
}

struct BadCase {
  const char* patch;  // merged into the good config
  const char* want;   // part of the message
};
class BadConfig : public testing::TestWithParam<BadCase> {};

TEST_P(BadConfig, IsRefusedNamingFileAndField) {
  json j = Good();
  j.merge_patch(json::parse(GetParam().patch));
  const auto c = Parse(j);
  ASSERT_FALSE(c.ok()) << GetParam().patch;
  const std::string message(c.status().message());
  EXPECT_EQ(message.rfind("config.json", 0), 0u) << message;
  EXPECT_NE(message.find(GetParam().want), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    All, BadConfig,
    testing::Values(
        BadCase{R"({"vocab_size": 0})", "\"vocab_size\" = 0"}, BadCase{R"({"vocab_size": -5})", "\"vocab_size\""},
        BadCase{R"({"hidden_size": 1e99})", "\"hidden_size\""},
        BadCase{R"({"hidden_size": "2048"})", "\"hidden_size\""}, BadCase{R"({"hidden_size": 2040})", "multiple of 16"},
        BadCase{R"({"hidden_size": 18446744073709551615})", "\"hidden_size\""},
        BadCase{R"({"num_hidden_layers": 100000})", "\"num_hidden_layers\""},
        BadCase{R"({"num_hidden_layers": 1.5})", "\"num_hidden_layers\""},
        BadCase{R"({"num_attention_heads": 24, "head_dim": null})", "must divide hidden_size"},
        BadCase{R"({"num_key_value_heads": 5})", "must divide num_attention_heads"},
        BadCase{R"({"head_dim": 20})", "multiple of 16"}, BadCase{R"({"head_dim": 0})", "\"head_dim\""},
        BadCase{R"({"intermediate_size": null})", "\"intermediate_size\" = (absent): is required"},
        BadCase{R"({"attention_bias": true})", "\"attention_bias\""}, BadCase{R"({"mlp_bias": true})", "\"mlp_bias\""},
        BadCase{R"({"attention_bias": 1})", "true or false"}, BadCase{R"({"hidden_act": "gelu"})", "\"hidden_act\""},
        BadCase{R"({"architectures": ["MistralForCausalLM"]})", "\"architectures\""},
        BadCase{R"({"model_type": "qwen2"})", "\"model_type\""},
        BadCase{R"({"quantization_config": {"bits": 4}})", "\"quantization_config\""},
        BadCase{R"({"rms_norm_eps": -1})", "\"rms_norm_eps\""}, BadCase{R"({"rope_theta": 0})", "\"rope_theta\""},
        BadCase{R"({"rope_scaling": {"rope_type": "yarn"}})", "\"rope_type\" = \"yarn\""},
        BadCase{R"({"rope_scaling": {"factor": 0}})", "\"factor\" = 0"},
        BadCase{R"({"rope_scaling": {"factor": null}})", "rope_scaling: field \"factor\" = (absent)"},
        BadCase{R"({"rope_scaling": {"low_freq_factor": 4}})", "must be below high_freq_factor"},
        BadCase{R"({"rope_scaling": [1]})", "\"rope_scaling\""},
        BadCase{R"({"eos_token_id": 128256})", "\"eos_token_id\""},
        BadCase{R"({"eos_token_id": [1, -1]})", "\"eos_token_id\""}));

TEST(Config, TextThatIsNoConfig) {
  for (const char* text : {"", "[]", "{", "{\"rms_norm_eps\": NaN}", "null"}) {
    EXPECT_FALSE(ParseModelConfig(text, "", "config.json").ok()) << text;
  }
  const std::string deep(1 << 19, '[');
  EXPECT_FALSE(ParseModelConfig(deep, "", "config.json").ok());
  EXPECT_FALSE(Parse(Good(), "[]").ok());
  EXPECT_EQ(LoadModelConfig("/nonexistent/folder").status().code(), absl::StatusCode::kNotFound);
  TempDir dir;
  const auto missing = LoadModelConfig(dir.path());
  EXPECT_NE(std::string(missing.status().message()).find("config.json"), std::string::npos);
}

}  // namespace
}  // namespace agentserve::model
