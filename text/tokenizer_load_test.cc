// What is wrong in a tokenizer file is said precisely: file, field, reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "text/test_util.h"
#include "text/tokenizer.h"

namespace agentserve::text {
namespace {

using ::testing::HasSubstr;

const std::string& Fixture() {
  static const auto* text = new std::string(Slurp(TestData("tiny/tokenizer.json")));
  return *text;
}

// The fixture with the first `from` replaced.
std::string With(const std::string& from, const std::string& to) {
  std::string text = Fixture();
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string JsonError(const std::string& json) {
  const auto t = Tokenizer::FromJson(json, "dir/tokenizer.json");
  EXPECT_FALSE(t.ok());
  const std::string message = t.ok() ? "" : base::MessageOf(t.status());
  EXPECT_THAT(message, HasSubstr("dir/tokenizer.json: "));
  return message;
}

TEST(TokenizerJson, VocabularyErrors) {
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":98")),
              HasSubstr("model.vocab: id 98 is given to 'b' and to another token"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":4194304")),
              HasSubstr("model.vocab: id 4194304 of 'a' is above the limit"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":-1")), HasSubstr("model.vocab: 'a' is a negative number, not an id"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":1.5")), HasSubstr("model.vocab: 'a' is a fraction"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":99999999999999999999")),
              HasSubstr("model.vocab: 'a' is a fraction or huge"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":\"x\"")), HasSubstr("model.vocab: 'a' is a string"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":{}")), HasSubstr("model.vocab: 'a' is an object"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":[]")), HasSubstr("model.vocab: 'a' is an array"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a\":null")), HasSubstr("model.vocab: 'a' is null"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"\":97")), HasSubstr("model.vocab: id 97 is an empty token"));
  EXPECT_THAT(JsonError(With("\"\xC4\x80\":0", "\"\xC4\x81\":0")), HasSubstr("are both '\\x01'"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"a b\":97")), HasSubstr("'a b' (id 97) has characters outside"));
  EXPECT_THAT(JsonError(With("\"!\":33", "\"!~~~\":33")), HasSubstr("no token for the byte 0x21"));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"\\ud800\":97")), HasSubstr("model.vocab: "));
  EXPECT_THAT(JsonError(With("\"a\":97", "\"\xFF\":97")), HasSubstr("not valid JSON"));
}

TEST(TokenizerJson, MergeErrors) {
  const std::string first = "\"merges\":[[";
  const auto merge = [&](const std::string& m) { return With(first, "\"merges\":[" + m + ",["); };
  EXPECT_THAT(JsonError(merge("[\"a\",\"qqq\"]")),
              HasSubstr("model.merges[0]: the right part 'qqq' is not in model.vocab"));
  EXPECT_THAT(JsonError(merge("\"qqq a\"")), HasSubstr("model.merges[0]: the left part 'qqq'"));
  EXPECT_THAT(JsonError(merge("\"q z\"")), HasSubstr("model.merges[0]: the result 'qz'"));
  // An empty part would make a cycle: "" + a = a.
  EXPECT_THAT(JsonError(merge("[\"\",\"a\"]")), HasSubstr("model.merges[0]: an empty part"));
  EXPECT_THAT(JsonError(merge("\" a\"")), HasSubstr("model.merges[0]: an empty part"));
  EXPECT_THAT(JsonError(merge("\"ab\"")), HasSubstr("model.merges[0]: 'ab' is not two tokens"));
  EXPECT_THAT(JsonError(merge("\"a b c\"")), HasSubstr("model.merges[0]: 'a b c' is not two tokens"));
  EXPECT_THAT(JsonError(merge("[\"a\"]")), HasSubstr("model.merges[0]: 1 parts"));
  EXPECT_THAT(JsonError(merge("[\"t\",\"h\",\"e\"]")), HasSubstr("model.merges[1]: more than two parts"));
  EXPECT_THAT(JsonError(merge("[[\"a\"],\"b\"]")), HasSubstr("model.merges[0]: an array"));
  EXPECT_THAT(JsonError(merge("7")), HasSubstr("model.merges[0]: a number"));
  EXPECT_THAT(JsonError(merge("{}")), HasSubstr("model.merges[0]: an object"));
  EXPECT_THAT(JsonError(merge("[\"\\u4e00\",\"a\"]")), HasSubstr("outside of the byte-level alphabet"));
  EXPECT_THAT(JsonError(merge("[\"t\",\"h\"],[\"t\",\"h\"]")), HasSubstr("'t' 'h' is merged twice"));
}

TEST(TokenizerJson, AddedTokenErrors) {
  const std::string first = "{\"id\":956,\"content\":\"<|begin_of_text|>\"";
  ASSERT_NE(Fixture().find(first), std::string::npos) << Fixture().substr(0, 300);
  const auto added = [&](const std::string& t) { return With(first, t); };
  EXPECT_THAT(JsonError(added("{\"content\":\"x\"")), HasSubstr("added_tokens[0].id: missing"));
  EXPECT_THAT(JsonError(added("{\"id\":-5,\"content\":\"x\"")), HasSubstr("added_tokens[0].id"));
  EXPECT_THAT(JsonError(added("{\"id\":1e9,\"content\":\"x\"")), HasSubstr("added_tokens[0].id"));
  EXPECT_THAT(JsonError(added("{\"id\":956")), HasSubstr("added_tokens[0].content: missing"));
  EXPECT_THAT(JsonError(added("{\"id\":956,\"content\":\"\"")), HasSubstr("added_tokens[0].content: missing, empty"));
  EXPECT_THAT(JsonError(added("{\"id\":97,\"content\":\"x\"")), HasSubstr("added_tokens[0].id: 97 is 'a' already"));
  EXPECT_THAT(JsonError(added("{\"id\":957,\"content\":\"x\"")), HasSubstr("added_tokens[1].id: 957 is 'x' already"));
  EXPECT_THAT(JsonError(added("{\"id\":2000,\"content\":\"<|end_of_text|>\"")), HasSubstr("is that of entry 0 too"));
  EXPECT_THAT(JsonError(With("\"lstrip\":false", "\"lstrip\":true")),
              HasSubstr("added_tokens[0].lstrip: must be false"));
  EXPECT_THAT(JsonError(With("\"added_tokens\":[", "\"added_tokens\":5,\"x\":[")),
              HasSubstr("added_tokens: not an array"));
}

TEST(TokenizerJson, StructureErrors) {
  EXPECT_THAT(JsonError(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(JsonError("[]"), HasSubstr("is an array, not a JSON object"));
  EXPECT_THAT(JsonError("{}"), HasSubstr("model: missing"));
  EXPECT_THAT(JsonError("{\"model\":{\"type\":\"BPE\"}}"), HasSubstr("model.vocab: missing"));
  EXPECT_THAT(JsonError("{\"model\":{\"vocab\":{}}}"), HasSubstr("model.merges: missing"));
  EXPECT_THAT(JsonError("{\"model\":{\"vocab\":[]}}"), HasSubstr("model.vocab: missing or not an object"));
  EXPECT_THAT(JsonError(Fixture().substr(0, Fixture().size() / 2)), HasSubstr("not valid JSON"));
  EXPECT_THAT(JsonError(std::string(100000, '[')), HasSubstr("nested deeper than"));
  EXPECT_THAT(JsonError(With("\"model\":{", "\"model\":{\"vocab\":{},")), HasSubstr("model.vocab: given twice"));
}

TEST(TokenizerJson, UnsupportedFeaturesAreRefused) {
  const auto unsupported = [](const std::string& json) {
    const auto t = Tokenizer::FromJson(json, "f");
    EXPECT_EQ(t.status().code(), absl::StatusCode::kUnimplemented) << t.status();
    return base::MessageOf(t.status());
  };
  EXPECT_THAT(unsupported(With("\"type\":\"BPE\"", "\"type\":\"Unigram\"")), HasSubstr("model.type"));
  EXPECT_THAT(unsupported(With("\"dropout\":null", "\"dropout\":0.1")), HasSubstr("model.dropout"));
  EXPECT_THAT(unsupported(With("\"byte_fallback\":false", "\"byte_fallback\":true")), HasSubstr("model.byte_fallback"));
  EXPECT_THAT(unsupported(With("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}")),
              HasSubstr("normalizer: 'NFC'"));
  EXPECT_THAT(unsupported(With("\"behavior\":\"Isolated\"", "\"behavior\":\"Removed\"")), HasSubstr("behavior"));
  EXPECT_THAT(unsupported(With("\"add_prefix_space\":false", "\"add_prefix_space\":true")),
              HasSubstr("add_prefix_space"));
  EXPECT_THAT(unsupported(With("\"type\":\"Split\"", "\"type\":\"Digits\"")),
              HasSubstr("pretokenizers[0].type: 'Digits'"));
  EXPECT_THAT(JsonError(With("\"Regex\":\"(?i:", "\"Regex\":\"(?i")), HasSubstr("not a usable regular expression"));
}

TEST(TokenizerJson, OtherAcceptedForms) {
  // Merges as strings, whole pieces taken, GPT-2's pattern by ByteLevel alone.
  const auto plain = *Tokenizer::FromJson(Fixture(), "f");
  const auto whole = Tokenizer::FromJson(With("\"ignore_merges\":false", "\"ignore_merges\":true"), "f");
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_NE((*whole)->hash(), plain->hash());
  // A special token that is in the vocabulary too, as trainers write it, is not reachable from text.
  const auto both =
      Tokenizer::FromJson(With("{\"id\":956,\"content\":\"<|begin_of_text|>\"",
                               "{\"id\":97,\"content\":\"a\"},{\"id\":956,\"content\":\"<|begin_of_text|>\""),
                          "f");
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ((*both)->Encode("a"), std::vector<uint32_t>{97});
  // An added token that is not special is found in any text.
  const std::string ordinary = With("\"special\":true", "\"special\":false");
  const auto added = Tokenizer::FromJson(ordinary, "f");
  ASSERT_TRUE(added.ok());
  EXPECT_EQ((*added)->Encode("<|begin_of_text|>"), std::vector<uint32_t>{956});
  EXPECT_FALSE((*added)->IsSpecial(956));
}

TEST(TokenizerModel, Errors) {
  const std::string good = Slurp(TestData("tiny/tokenizer.model"));
  const auto error = [](const std::string& lines) {
    const auto t = Tokenizer::FromTiktoken(lines, "dir/tokenizer.model");
    EXPECT_FALSE(t.ok());
    return t.ok() ? "" : base::MessageOf(t.status());
  };
  EXPECT_THAT(error(""), HasSubstr("dir/tokenizer.model: no tokens"));
  EXPECT_THAT(error("AA==\n"), HasSubstr("line 1: expected \"<base64> <rank>\""));
  EXPECT_THAT(error("A*== 0\n"), HasSubstr("line 1: token 'A*==' is not base64"));
  EXPECT_THAT(error("AA= 0\n"), HasSubstr("is not base64"));
  EXPECT_THAT(error("AB== 0\n"), HasSubstr("is not base64"));  // stray bits
  EXPECT_THAT(error(" 0\n"), HasSubstr("is not base64"));
  EXPECT_THAT(error("AA== x\n"), HasSubstr("line 1: rank 'x'"));
  EXPECT_THAT(error("AA== -1\n"), HasSubstr("rank '-1'"));
  EXPECT_THAT(error("AA== 99999999\n"), HasSubstr("rank '99999999'"));
  EXPECT_THAT(error("AA== 0\nAQ== 0\n"), HasSubstr("line 2: rank 0 is given twice"));
  EXPECT_THAT(error("AA== 0\nAQ== 7\n"), HasSubstr("without holes"));
  EXPECT_THAT(error("AA== 0\n"), HasSubstr("no token for the byte 0x01"));
  EXPECT_THAT(error(good + "AA== 956\n"), HasSubstr("are both"));
  EXPECT_TRUE(Tokenizer::FromTiktoken(good, "f").ok());
}

TEST(TokenizerLoad, Folder) {
  const std::string dir = testing::TempDir() + "/tokenizer_load_test";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  EXPECT_THAT(base::MessageOf(Tokenizer::Load(dir).status()), HasSubstr("neither tokenizer.json nor tokenizer.model"));
  std::filesystem::copy(TestData("tiny/tokenizer.model"), dir + "/tokenizer.model");
  auto t = Tokenizer::Load(dir);
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)->bos(), (*t)->SpecialId("<|begin_of_text|>"));
  std::ofstream(dir + "/tokenizer_config.json") << "{\"bos_token\": {\"content\": \"<|end_of_text|>\"}}";
  std::filesystem::copy(TestData("tiny/tokenizer.json"), dir + "/tokenizer.json");
  t = Tokenizer::Load(dir);
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)->bos(), (*t)->SpecialId("<|end_of_text|>"));
  std::ofstream(dir + "/tokenizer_config.json") << "{\"bos_token\": \"<s>\"}";
  EXPECT_THAT(base::MessageOf(Tokenizer::Load(dir).status()), HasSubstr("tokenizer_config.json: bos_token: '<s>'"));
  std::filesystem::remove_all(dir);
  EXPECT_EQ(Tokenizer::Load(dir).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace agentserve::text
