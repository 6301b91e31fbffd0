#include "gateway/openai/chat_request.h"

#include <gtest/gtest.h>

#include "base/strings.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;

struct Outcome {
  std::optional<ApiError> error;
  ParsedGeneration parsed;
};

const RequestLimits kLimits;

Outcome ParseBody(const std::string& body) {
  Outcome out;
  const auto json = ParseJson(body, kLimits.json_depth, kLimits.json_values);
  EXPECT_TRUE(json.ok()) << json.status() << " in " << body;
  if (!json.ok()) return out;
  const ParseContext ctx{kLimits, {"m", 4096, 1000, 0}};
  out.error = ParseChatRequest(body, *json, ctx, &out.parsed);
  return out;
}

// A minimal request with more members.
Outcome With(const std::string& members) {
  return ParseBody(
      StrCat(R"({"model":"m","messages":[{"role":"user","content":"hi"}])", members.empty() ? "" : ",", members, "}"));
}

Outcome Messages(const std::string& messages) { return ParseBody(StrCat(R"({"messages":)", messages, "}")); }

const pb::GenerateRequest& Request(const Outcome& o) {
  EXPECT_FALSE(o.error.has_value()) << o.error->message;
  return o.parsed.requests.at(0);
}

void ExpectBad(const Outcome& o, std::string_view param, int status = 400) {
  ASSERT_TRUE(o.error.has_value()) << "accepted, but " << param << " is bad";
  EXPECT_EQ(o.error->status, status) << o.error->message;
  EXPECT_EQ(o.error->param, param) << o.error->message;
}

TEST(ChatRequest, MinimalLeavesDefaultsAbsent) {
  const Outcome o = With("");
  const auto& r = Request(o);
  EXPECT_EQ(r.model(), "m");
  EXPECT_EQ(r.n(), 1U);
  ASSERT_EQ(r.chat().messages_size(), 1);
  EXPECT_EQ(r.chat().messages(0).content(), "hi");
  EXPECT_FALSE(r.sampling().has_temperature());
  EXPECT_FALSE(r.sampling().has_max_tokens());
  EXPECT_FALSE(r.sampling().has_seed());
  EXPECT_FALSE(r.sampling().has_top_logprobs());
  EXPECT_FALSE(o.parsed.options.stream);
}

// Members, and whether they are good; bad ones must name the member.
struct Boundary {
  const char* field;
  const char* value;
  bool good;
};

class FieldBoundary : public ::testing::TestWithParam<Boundary> {};

TEST_P(FieldBoundary, IsEnforced) {
  const auto& [field, value, good] = GetParam();
  const Outcome o = With(StrCat("\"", field, "\":", value));
  if (good) {
    EXPECT_FALSE(o.error.has_value()) << field << "=" << value << ": " << o.error->message;
  } else {
    ASSERT_TRUE(o.error.has_value()) << field << "=" << value << " was accepted";
    EXPECT_EQ(o.error->status, 400);
    EXPECT_EQ(o.error->type, "invalid_request_error");
    EXPECT_TRUE(o.error->param.starts_with(field)) << o.error->param;
    EXPECT_LT(o.error->message.size(), 400U);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, FieldBoundary,
    ::testing::Values(
        Boundary{"temperature", "0", true}, Boundary{"temperature", "-0.0", true}, Boundary{"temperature", "2", true},
        Boundary{"temperature", "2.0001", false}, Boundary{"temperature", "-0.1", false},
        Boundary{"temperature", "\"1\"", false}, Boundary{"temperature", "true", false},
        Boundary{"temperature", "null", true}, Boundary{"temperature", "1e308", false}, Boundary{"top_p", "0", false},
        Boundary{"top_p", "1e-9", true}, Boundary{"top_p", "1", true}, Boundary{"top_p", "1.01", false},
        Boundary{"top_k", "-1", true}, Boundary{"top_k", "0", true}, Boundary{"top_k", "-2", false},
        Boundary{"top_k", "2147483647", true}, Boundary{"top_k", "2147483648", false}, Boundary{"top_k", "1.5", false},
        Boundary{"top_k", "3.0", true}, Boundary{"min_p", "1", true}, Boundary{"min_p", "1.1", false},
        Boundary{"presence_penalty", "-2", true}, Boundary{"presence_penalty", "-2.1", false},
        Boundary{"frequency_penalty", "2", true}, Boundary{"frequency_penalty", "2.1", false},
        Boundary{"repetition_penalty", "0", false}, Boundary{"repetition_penalty", "2", true},
        Boundary{"seed", "-9223372036854775808", true}, Boundary{"seed", "9223372036854775807", true},
        Boundary{"seed", "9223372036854775808", false}, Boundary{"seed", "1.5", false}, Boundary{"n", "1", true},
        Boundary{"n", "0", false}, Boundary{"n", "16", true}, Boundary{"n", "17", false}, Boundary{"n", "-1", false},
        Boundary{"max_tokens", "1", true}, Boundary{"max_tokens", "0", false},
        Boundary{"max_tokens", "2147483647", true}, Boundary{"max_tokens", "2147483648", false},
        Boundary{"max_tokens", "9007199254740993", false}, Boundary{"max_tokens", "18446744073709551615", false},
        Boundary{"max_completion_tokens", "0", false}, Boundary{"max_completion_tokens", "[]", false},
        Boundary{"stop", "\"x\"", true}, Boundary{"stop", "\"\"", false}, Boundary{"stop", "[]", true},
        Boundary{"stop", "[1]", false}, Boundary{"stop", "{}", false},
        Boundary{"stop", R"(["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g"])", true},
        Boundary{"stop", R"(["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"])", false},
        Boundary{"stop_token_ids", "[999]", true}, Boundary{"stop_token_ids", "[1000]", false},
        Boundary{"stop_token_ids", "[-1]", false}, Boundary{"logit_bias", "{\"5\":100}", true},
        Boundary{"logit_bias", "{\"5\":100.5}", false}, Boundary{"logit_bias", "{\"1000\":1}", false},
        Boundary{"logit_bias", "{\"x\":1}", false}, Boundary{"logit_bias", "{\"5x\":1}", false},
        Boundary{"logit_bias", "[1]", false}, Boundary{"logit_bias", "{\"-1\":1}", false},
        Boundary{"stream", "1", false}, Boundary{"stream", "true", true}, Boundary{"logprobs", "5", false},
        Boundary{"top_logprobs", "5", false}, Boundary{"messages", "[]", false}, Boundary{"messages", "{}", false},
        Boundary{"messages", "[1]", false}, Boundary{"cache_salt", "\"a-b_C.9\"", true},
        Boundary{"cache_salt", "\"a b\"", false}, Boundary{"cache_salt", "\"\"", false},
        Boundary{"response_format", "{\"type\":\"text\"}", true},
        Boundary{"response_format", "{\"type\":\"json_object\"}", false},
        Boundary{"response_format", "{\"type\":\"json_schema\",\"json_schema\":{}}", false},
        Boundary{"response_format", "{}", false}, Boundary{"tools", "[]", false}, Boundary{"tools", "{}", false},
        Boundary{"tool_choice", "\"auto\"", false}, Boundary{"tool_choice", "\"none\"", true},
        Boundary{"tool_choice", "\"required\"", false}, Boundary{"stream_options", "{\"include_usage\":true}", false},
        Boundary{"min_tokens", "0", true}, Boundary{"min_tokens", "-1", false}, Boundary{"ignore_eos", "true", true},
        Boundary{"structured_outputs", "{\"json\":{}}", false}, Boundary{"functions", "[{}]", false},
        Boundary{"chat_template", "\"x\"", false}, Boundary{"modalities", "[\"text\"]", true},
        Boundary{"modalities", "[\"text\",\"audio\"]", false}, Boundary{"use_beam_search", "true", false},
        Boundary{"add_generation_prompt", "false", false}, Boundary{"continue_final_message", "true", false},
        Boundary{"parallel_tool_calls", "1", false}, Boundary{"user", "{\"any\":1}", true},
        Boundary{"no_such_field", "1", true}));

TEST(ChatRequest, ModelIsChecked) {
  EXPECT_EQ(With("").error, std::nullopt);
  const Outcome o = ParseBody(R"({"model":"other","messages":[{"role":"user","content":"hi"}]})");
  ASSERT_TRUE(o.error.has_value());
  EXPECT_EQ(o.error->status, 404);
  EXPECT_EQ(o.error->type, "not_found_error");
  EXPECT_EQ(o.error->code, "model_not_found");
  EXPECT_EQ(Messages(R"([{"role":"user","content":"hi"}])").error, std::nullopt) << "an absent model is the served one";
}

TEST(ChatRequest, BodyMustBeAnObject) {
  for (const char* body : {"[]", "null", "1", "\"x\""}) {
    const Outcome o = ParseBody(body);
    ASSERT_TRUE(o.error.has_value()) << body;
    EXPECT_EQ(o.error->status, 400);
  }
}

TEST(ChatRequest, ContentForms) {
  const Outcome o = Messages(R"([{"role":"developer","content":"be brief"},
    {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
    {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
    {"role":"tool","tool_call_id":"c1","content":"42"},
    {"role":"assistant","tool_calls":[]},
    {"role":"assistant","content":[{"type":"refusal","refusal":"no"}]}])");
  const auto& m = Request(o).chat().messages();
  EXPECT_EQ(m[0].role(), "system");
  EXPECT_EQ(m[1].content(), "a\nb");
  EXPECT_FALSE(m[2].has_content());
  EXPECT_EQ(m[2].tool_calls(0).arguments_json(), "{\"x\":1}");
  EXPECT_EQ(m[3].tool_call_id(), "c1");
  EXPECT_EQ(m[4].content(), "");
  EXPECT_EQ(m[4].tool_calls_size(), 0);
  EXPECT_EQ(m[5].content(), "no");
}

TEST(ChatRequest, BadMessagesNameTheirPlace) {
  ExpectBad(
      Messages(
          R"([{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"u"}}]}])"),
      "messages[0].content[1].type");
  ExpectBad(Messages(R"([{"role":"user","content":null}])"), "messages[0].content");
  ExpectBad(Messages(R"([{"role":"user"}])"), "messages[0].content");
  ExpectBad(Messages(R"([{"role":"user","content":5}])"), "messages[0].content");
  ExpectBad(Messages(R"([{"role":"wizard","content":"x"}])"), "messages[0].role");
  ExpectBad(Messages(R"([{"content":"x"}])"), "messages[0].role");
  ExpectBad(Messages(R"([{"role":"user","content":"x"},{"role":"tool","content":"x"}])"), "messages[1].tool_call_id");
  ExpectBad(Messages(R"([{"role":"tool","tool_call_id":"a"}])"), "messages[0].content");
  ExpectBad(Messages(R"([{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":{}}}]}])"),
            "messages[0].tool_calls[0].function.arguments");
  ExpectBad(Messages(R"([{"role":"assistant","tool_calls":[{"id":"a"}]}])"), "messages[0].tool_calls[0].function");
}

constexpr char kTool[] = R"("tools":[{"type":"function","function":{"name":"zeta","parameters":{"b":1,"a":2}}}])";

TEST(ChatRequest, ToolsKeepTheirText) {
  const Outcome o = With(kTool);
  EXPECT_EQ(Request(o).chat().tools_json(),
            R"([{"type":"function","function":{"name":"zeta","parameters":{"b":1,"a":2}}}])");
  EXPECT_EQ(o.parsed.options.tool_names, std::vector<std::string>{"zeta"});
  EXPECT_TRUE(o.parsed.options.parallel_tool_calls);
}

TEST(ChatRequest, ToolChoice) {
  const Outcome none = With(StrCat(kTool, R"(,"tool_choice":"none")"));
  EXPECT_EQ(Request(none).chat().tools_json(), "");
  EXPECT_TRUE(none.parsed.options.tool_names.empty());
  EXPECT_EQ(With(StrCat(kTool, R"(,"tool_choice":"auto")")).error, std::nullopt);
  for (const char* choice : {R"("required")", R"({"type":"function","function":{"name":"zeta"}})",
                             R"({"type":"allowed_tools"})", R"("sometimes")", "5"}) {
    ExpectBad(With(StrCat(kTool, ",\"tool_choice\":", choice)), "tool_choice");
  }
  const Outcome required = With(StrCat(kTool, R"(,"tool_choice":"required")"));
  EXPECT_NE(required.error->message.find("not supported yet"), std::string::npos);
}

TEST(ChatRequest, BadTools) {
  ExpectBad(With(R"("tools":[{"type":"custom"}])"), "tools[0].type");
  ExpectBad(With(R"("tools":[{"type":"function"}])"), "tools[0].function");
  ExpectBad(With(R"("tools":[{"type":"function","function":{"name":"a b"}}])"), "tools[0].function.name");
  ExpectBad(With(R"("tools":[{"type":"function","function":{"name":"a","parameters":[]}}])"),
            "tools[0].function.parameters");
}

TEST(ChatRequest, MaxCompletionTokensWins) {
  EXPECT_EQ(Request(With(R"("max_tokens":5,"max_completion_tokens":7)")).sampling().max_tokens(), 7U);
  EXPECT_EQ(Request(With(R"("max_tokens":5)")).sampling().max_tokens(), 5U);
  ExpectBad(With(R"("max_tokens":5,"min_tokens":6)"), "min_tokens");
}

TEST(ChatRequest, Logprobs) {
  EXPECT_EQ(Request(With(R"("logprobs":true)")).sampling().top_logprobs(), 0U);
  EXPECT_TRUE(Request(With(R"("logprobs":true)")).sampling().has_top_logprobs());
  EXPECT_EQ(Request(With(R"("logprobs":true,"top_logprobs":20)")).sampling().top_logprobs(), 20U);
  ExpectBad(With(R"("logprobs":true,"top_logprobs":21)"), "top_logprobs");
  ExpectBad(With(R"("logprobs":false,"top_logprobs":1)"), "top_logprobs");
}

TEST(ChatRequest, StreamOptions) {
  const Outcome o = With(R"("stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false})");
  EXPECT_FALSE(o.error.has_value());
  EXPECT_TRUE(o.parsed.options.include_usage);
  ExpectBad(With(R"("stream":true,"stream_options":{"include_usage":1})"), "stream_options.include_usage");
}

TEST(ChatRequest, ContinueFinalMessage) {
  const Outcome o = ParseBody(R"({"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}],
    "continue_final_message":true,"add_generation_prompt":false,"chat_template_kwargs":{"date_string":"1 Jan 2026"}})");
  EXPECT_TRUE(Request(o).chat().continue_final_message());
  EXPECT_EQ(Request(o).chat().date_string(), "1 Jan 2026");
}

TEST(ChatRequest, IgnoredFieldsAreListed) {
  const Outcome o = With(R"("user":"u","store":true,"zzz":1,"metadata":{"a":"b"},"prompt_cache_key":"k")");
  EXPECT_FALSE(o.error.has_value());
  EXPECT_EQ(o.parsed.ignored, (std::vector<std::string>{"store", "zzz"}));
}

}  // namespace
}  // namespace agentserve::gateway
