#include "gateway/openai/completion_request.h"

#include <gtest/gtest.h>

#include "base/strings.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {
namespace {

struct Outcome {
  std::optional<ApiError> error;
  ParsedGeneration parsed;
};

const RequestLimits kLimits;
const ParseContext kContext{kLimits, {"m", 8, 1000, 0}};

Outcome ParseBody(const std::string& body) {
  Outcome out;
  out.error = ParseCompletionRequest(*ParseJson(body, kLimits.json_depth, kLimits.json_values), kContext, &out.parsed);
  return out;
}

std::string ErrorParam(const std::string& body) {
  const Outcome o = ParseBody(body);
  return o.error ? o.error->param : "accepted";
}

TEST(CompletionRequest, PromptForms) {
  EXPECT_EQ(ParseBody(R"({"prompt":"x"})").parsed.requests[0].text(), "x");
  EXPECT_EQ(ParseBody(R"({"prompt":["x","y"]})").parsed.requests[1].text(), "y");
  const Outcome ids = ParseBody(R"({"prompt":[1,2,3]})");
  ASSERT_EQ(ids.parsed.requests.size(), 1U);
  EXPECT_EQ(ids.parsed.requests[0].token_ids().ids_size(), 3);
  const Outcome lists = ParseBody(R"({"prompt":[[1,2],[3]],"n":2})");
  ASSERT_EQ(lists.parsed.requests.size(), 2U);
  EXPECT_EQ(lists.parsed.requests[1].token_ids().ids(0), 3U);
  EXPECT_EQ(lists.parsed.requests[1].n(), 2U);
  EXPECT_EQ(lists.parsed.requests[1].sampling().max_tokens(), 16U);
}

TEST(CompletionRequest, BadPrompts) {
  EXPECT_EQ(ErrorParam(R"({})"), "prompt");
  EXPECT_EQ(ErrorParam(R"({"prompt":{}})"), "prompt");
  EXPECT_EQ(ErrorParam(R"({"prompt":[]})"), "prompt");
  EXPECT_EQ(ErrorParam(R"({"prompt":[[]]})"), "prompt[0]");
  EXPECT_EQ(ErrorParam(R"({"prompt":[1,"x"]})"), "prompt");
  EXPECT_EQ(ErrorParam(R"({"prompt":["x",1]})"), "prompt[1]");
  EXPECT_EQ(ErrorParam(R"({"prompt":[1000]})"), "prompt");
  EXPECT_EQ(ErrorParam(R"({"prompt":[-1]})"), "prompt");
  const Outcome o = ParseBody(R"({"prompt":[1,2,3,4,5,6,7,8,9]})");
  ASSERT_TRUE(o.error.has_value());
  EXPECT_EQ(o.error->code, "context_length_exceeded");
}

TEST(CompletionRequest, FanOutIsCapped) {
  std::string prompts = "\"x\"";
  for (int i = 1; i < 64; ++i) prompts += ",\"x\"";
  EXPECT_EQ(ErrorParam(base::StrCat("{\"prompt\":[", prompts, "]}")), "accepted");
  EXPECT_EQ(ErrorParam(base::StrCat("{\"prompt\":[", prompts, "],\"n\":2}")), "accepted");
  EXPECT_EQ(ErrorParam(base::StrCat("{\"prompt\":[", prompts, "],\"n\":3}")), "n");
  EXPECT_EQ(ErrorParam(base::StrCat("{\"prompt\":[", prompts, ",\"x\"]}")), "prompt");
}

TEST(CompletionRequest, Options) {
  const Outcome o = ParseBody(R"({"prompt":"x","logprobs":5,"max_tokens":3,"suffix":null,"best_of":1})");
  ASSERT_FALSE(o.error.has_value());
  EXPECT_EQ(o.parsed.requests[0].sampling().top_logprobs(), 5U);
  EXPECT_TRUE(o.parsed.options.logprobs);
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","logprobs":6})"), "logprobs");
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","logprobs":true})"), "logprobs");
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","suffix":"y"})"), "suffix");
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","best_of":3})"), "best_of");
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","echo":true,"logprobs":1})"), "echo");
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","max_tokens":0})"), "max_tokens");
  EXPECT_EQ(ErrorParam(R"({"prompt":"x","response_format":{"type":"json_object"}})"), "response_format");
}

TEST(TokenizeRequest, Forms) {
  const auto parse = [](const std::string& body, pb::TokenizeRequest* out) {
    return ParseTokenizeRequest(body, *ParseJson(body, 64, 1000), kContext, out);
  };
  pb::TokenizeRequest vllm, llama, chat, bad;
  EXPECT_FALSE(parse(R"({"model":"m","prompt":"x"})", &vllm).has_value());
  EXPECT_EQ(vllm.text(), "x");
  EXPECT_TRUE(vllm.add_special_tokens());
  EXPECT_FALSE(parse(R"({"content":"x"})", &llama).has_value());
  EXPECT_FALSE(llama.add_special_tokens());
  EXPECT_FALSE(parse(R"({"messages":[{"role":"user","content":"x"}]})", &chat).has_value());
  EXPECT_EQ(chat.chat().messages_size(), 1);
  EXPECT_EQ(parse(R"({})", &bad)->param, "prompt");
  EXPECT_EQ(parse(R"({"model":"q","prompt":"x"})", &bad)->status, 404);
  pb::DetokenizeRequest ids;
  EXPECT_FALSE(ParseDetokenizeRequest(Json::parse(R"({"tokens":[1,2]})"), kContext, &ids).has_value());
  EXPECT_EQ(ids.ids_size(), 2);
  EXPECT_EQ(ParseDetokenizeRequest(Json::parse(R"({"tokens":"x"})"), kContext, &ids)->param, "tokens");
}

}  // namespace
}  // namespace agentserve::gateway
