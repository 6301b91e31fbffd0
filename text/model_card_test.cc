#include "text/model_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "text/test_util.h"

namespace agentserve::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ModelCardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/card_test_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) { std::ofstream(dir_ + "/" + name) << text; }
  std::string Error() {
    const auto card = LoadModelCard(dir_);
    EXPECT_FALSE(card.ok());
    return card.ok() ? "" : base::MessageOf(card.status());
  }
  std::string dir_;
};

const char kConfig[] =
    "{\"max_position_embeddings\": 131072, \"vocab_size\": 128256, \"eos_token_id\": [128009, 128001],"
    "\"bos_token_id\": 128000}";

TEST_F(ModelCardTest, ReadsAllFiles) {
  Write("config.json", kConfig);
  Write(
      "generation_config.json",
      "{\"temperature\": 0.6, \"top_p\": 0.9, \"top_k\": 50, \"do_sample\": true, \"eos_token_id\": [128008, 128009]}");
  Write("tokenizer_config.json", "{\"chat_template\": \"x\"}");
  const auto card = LoadModelCard(dir_ + "/");
  ASSERT_TRUE(card.ok()) << card.status();
  EXPECT_EQ(card->model_id, "card_test_ReadsAllFiles");
  EXPECT_EQ(card->context_length, 131072u);
  EXPECT_EQ(card->vocab_size, 128256u);
  EXPECT_THAT(card->eos_token_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(card->bos_token_id, 128000u);
  EXPECT_EQ(card->sampling.temperature, 0.6);
  EXPECT_EQ(card->sampling.top_p, 0.9);
  EXPECT_EQ(card->sampling.top_k, 50);
  EXPECT_FALSE(card->sampling.min_p.has_value());
  EXPECT_TRUE(card->has_chat_template);
}

TEST_F(ModelCardTest, OptionalFilesMayBeAbsent) {
  Write("config.json", "{\"max_position_embeddings\": 8, \"vocab_size\": 10, \"eos_token_id\": 1}");
  const auto card = LoadModelCard(dir_);
  ASSERT_TRUE(card.ok()) << card.status();
  EXPECT_THAT(card->eos_token_ids, ElementsAre(1));
  EXPECT_FALSE(card->has_chat_template);
  EXPECT_FALSE(card->sampling.temperature.has_value());
  Write("chat_template.jinja", "x");
  EXPECT_TRUE(LoadModelCard(dir_)->has_chat_template);
}

TEST_F(ModelCardTest, ErrorsNameFileAndField) {
  EXPECT_THAT(Error(), HasSubstr("config.json: cannot be opened"));
  Write("config.json", "{\"max_position");
  EXPECT_THAT(Error(), HasSubstr("config.json: not valid JSON"));
  Write("config.json", "[]");
  EXPECT_THAT(Error(), HasSubstr("config.json: is an array"));
  Write("config.json", "{}");
  EXPECT_THAT(Error(), HasSubstr("config.json: max_position_embeddings: missing"));
  Write("config.json", "{\"max_position_embeddings\": -3, \"vocab_size\": 10}");
  EXPECT_THAT(Error(), HasSubstr("max_position_embeddings: must be a positive integer"));
  Write("config.json", "{\"max_position_embeddings\": 3, \"vocab_size\": \"10\"}");
  EXPECT_THAT(Error(), HasSubstr("vocab_size: must be a positive integer"));
  Write("config.json", "{\"max_position_embeddings\": 3, \"vocab_size\": 10, \"eos_token_id\": [\"x\"]}");
  EXPECT_THAT(Error(), HasSubstr("eos_token_id: must be a token id"));
  Write("config.json", "{\"max_position_embeddings\": 3, \"vocab_size\": 10, \"eos_token_id\": 10}");
  EXPECT_THAT(Error(), HasSubstr("eos_token_id: 10 is not below vocab_size 10"));
  Write("config.json", kConfig);
  Write("generation_config.json", "{\"top_p\": 1.5}");
  EXPECT_THAT(Error(), HasSubstr("generation_config.json: top_p: must be a number of 0 to 1"));
  Write("generation_config.json", "{}");
  Write("tokenizer_config.json", "{\"chat_template\": 5}");
  EXPECT_THAT(Error(), HasSubstr("tokenizer_config.json: chat_template"));
}

}  // namespace
}  // namespace agentserve::text
