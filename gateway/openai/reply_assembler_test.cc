#include "gateway/openai/reply_assembler.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "gateway/testing/fake_router.h"

namespace agentserve::gateway {
namespace {

using namespace testing;  // NOLINT: builders of events
using common::v1::FINISH_REASON_CANCELLED;
using common::v1::FINISH_REASON_LENGTH;
using common::v1::FINISH_REASON_STOP;
using nlohmann::json;

const ReplyIdentity kIdentity{"chatcmpl-1", 1700000000, "m"};

ReplyOptions Stream() {
  ReplyOptions o;
  o.stream = true;
  return o;
}

std::string Play(ReplyOptions options, const std::vector<pb::GenerateResponse>& events, size_t prompts = 1) {
  ReplyAssembler a(kIdentity, options, prompts, 42);
  std::string out;
  if (options.stream) a.Start(&out);
  for (const auto& e : events) {
    if (const auto error = a.OnEvent(0, e, &out)) {
      ReplyAssembler::Fail(*error, &out);
      return out;
    }
  }
  a.Finish({}, &out);
  return out;
}

// The `data:` payloads of a stream; [DONE] becomes the string "[DONE]".
std::vector<json> Chunks(const std::string& stream) {
  std::vector<json> out;
  size_t i = 0;
  while (i < stream.size()) {
    const size_t end = stream.find("\n\n", i);
    EXPECT_NE(end, std::string::npos);
    const std::string event = stream.substr(i, end - i);
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    const std::string payload = event.substr(6);
    out.push_back(payload == "[DONE]" ? json(payload) : json::parse(payload));
    i = end + 2;
  }
  return out;
}

constexpr char kHead[] =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[{"index":0,)";

TEST(ReplyAssembler, ChatStreamIsByteExact) {
  const std::string got =
      Play(Stream(), {Accepted(5), Delta("Hi"), Delta(" \"you\"\n"), End(FINISH_REASON_STOP, 2), Done(5, 2)});
  const std::string head = kHead;
  EXPECT_EQ(got, head +
                     R"("delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})"
                     "\n\n" +
                     head +
                     R"("delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]})"
                     "\n\n" +
                     head +
                     R"("delta":{"content":" \"you\"\n"},"logprobs":null,"finish_reason":null}]})"
                     "\n\n" +
                     head +
                     R"("delta":{},"logprobs":null,"finish_reason":"stop"}]})"
                     "\n\n" +
                     "data: [DONE]\n\n");
}

TEST(ReplyAssembler, UsageChunkOnlyIfAsked) {
  ReplyOptions o = Stream();
  o.include_usage = true;
  const auto chunks = Chunks(Play(o, {Accepted(5), Delta("Hi"), End(FINISH_REASON_LENGTH, 1), Done(5, 1, 3)}));
  ASSERT_EQ(chunks.size(), 5U);
  for (size_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(chunks[i].contains("usage"));
    EXPECT_TRUE(chunks[i]["usage"].is_null());
  }
  EXPECT_EQ(chunks[2]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(chunks[3]["choices"], json::array());
  EXPECT_EQ(chunks[3]["usage"], json::parse(R"({"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,
                                                "prompt_tokens_details":{"cached_tokens":3}})"));
  EXPECT_EQ(chunks[4], "[DONE]");
}

TEST(ReplyAssembler, ContinuousUsageCountsTokens) {
  ReplyOptions o = Stream();
  o.include_usage = o.continuous_usage = true;
  const auto chunks = Chunks(Play(o, {Accepted(5), Delta("a"), Delta("b"), End(FINISH_REASON_STOP, 2), Done(5, 2)}));
  EXPECT_EQ(chunks[1]["usage"]["completion_tokens"], 1);
  EXPECT_EQ(chunks[2]["usage"]["completion_tokens"], 2);
  EXPECT_EQ(chunks[4]["usage"]["completion_tokens"], 2);
  EXPECT_EQ(chunks[4]["usage"]["prompt_tokens"], 5);
}

TEST(ReplyAssembler, ChoicesInterleaveByIndex) {
  ReplyOptions o = Stream();
  o.n = 2;
  const auto chunks = Chunks(Play(o, {Accepted(5), Delta("a", 0), Delta("b", 1), End(FINISH_REASON_STOP, 1, 1),
                                      Delta("c", 0), End(FINISH_REASON_LENGTH, 2, 0), Done(5, 3)}));
  std::vector<int> indices;
  for (size_t i = 0; i + 1 < chunks.size(); ++i) indices.push_back(chunks[i]["choices"][0]["index"]);
  EXPECT_EQ(indices, (std::vector<int>{0, 1, 0, 1, 1, 0, 0}));
}

TEST(ReplyAssembler, CharactersAreNeverSplit) {
  const auto chunks = Chunks(Play(Stream(), {Accepted(1), Delta("a\xF0\x9F"), Delta("\x98"),
                                             Delta("\x80"
                                                   "b\xC3"),
                                             End(FINISH_REASON_STOP, 3), Done(1, 3)}));
  std::string text;
  for (const auto& c : chunks) {
    if (c.is_object()) text += c["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(text,
            "a\xF0\x9F\x98\x80"
            "b\xEF\xBF\xBD");
}

ReplyOptions WithTools(bool stream) {
  ReplyOptions o;
  o.stream = stream;
  o.tool_names = {"get_weather"};
  return o;
}

const std::vector<pb::GenerateResponse> kTwoCalls = {
    Accepted(5),
    Delta("{\"name\": \"get_wea"),
    Delta("ther\", \"parameters\": {\"city\": \"Par"),
    Delta("is\"}}; {\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}"),
    End(FINISH_REASON_STOP, 3),
    Done(5, 3)};

TEST(ReplyAssembler, StreamedToolCalls) {
  const auto chunks = Chunks(Play(WithTools(true), kTwoCalls));
  std::map<int, std::string> arguments;
  std::map<int, std::string> ids;
  std::string content;
  for (const auto& c : chunks) {
    if (!c.is_object()) continue;
    const json& delta = c["choices"][0]["delta"];
    content += delta.value("content", "");
    if (!delta.contains("tool_calls")) continue;
    for (const auto& call : delta["tool_calls"]) {
      const int index = call["index"];
      if (call.contains("id")) {
        EXPECT_FALSE(ids.contains(index)) << "one start per call";
        EXPECT_EQ(call["type"], "function");
        EXPECT_EQ(call["function"]["name"], "get_weather");
        EXPECT_EQ(call["function"]["arguments"], "");
        ids[index] = call["id"];
      } else {
        EXPECT_TRUE(ids.contains(index)) << "start comes first";
        EXPECT_FALSE(call["function"].contains("name"));
        arguments[index] += call["function"]["arguments"].get<std::string>();
      }
    }
  }
  ASSERT_EQ(arguments.size(), 2U);
  EXPECT_EQ(json::parse(arguments[0]), json::parse(R"({"city":"Paris"})"));
  EXPECT_EQ(json::parse(arguments[1]), json::parse(R"({"city":"Rome"})"));
  EXPECT_TRUE(ids[0].starts_with("call_"));
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_EQ(chunks[chunks.size() - 2]["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_EQ(chunks[chunks.size() - 2]["choices"][0]["delta"], json::object());
}

TEST(ReplyAssembler, WholeToolCalls) {
  const json reply = json::parse(Play(WithTools(false), kTwoCalls));
  const json& choice = reply["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  ASSERT_EQ(choice["message"]["tool_calls"].size(), 2U);
  EXPECT_TRUE(choice["message"]["tool_calls"][0]["function"]["arguments"].is_string());
  ReplyOptions one = WithTools(false);
  one.parallel_tool_calls = false;
  EXPECT_EQ(json::parse(Play(one, kTwoCalls))["choices"][0]["message"]["tool_calls"].size(), 1U);
}

TEST(ReplyAssembler, TextBehindToolsIsNotLost) {
  const json reply = json::parse(
      Play(WithTools(false), {Accepted(1), Delta("{\"name\": \"get_"), End(FINISH_REASON_STOP, 1), Done(1, 1)}));
  EXPECT_EQ(reply["choices"][0]["message"]["content"], "{\"name\": \"get_");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  EXPECT_FALSE(reply["choices"][0]["message"].contains("tool_calls"));
}

TEST(ReplyAssembler, FullChatReply) {
  const json reply = json::parse(
      Play(ReplyOptions(), {Accepted(5), Delta("Hi"), Delta("!"), End(FINISH_REASON_STOP, 2), Done(5, 2, 1)}));
  EXPECT_EQ(reply, json::parse(R"({"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m",
    "choices":[{"index":0,"message":{"role":"assistant","content":"Hi!","refusal":null},"logprobs":null,"finish_reason":"stop"}],
    "usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":1}}})"));
}

TEST(ReplyAssembler, ChatLogprobs) {
  ReplyOptions o;
  o.logprobs = true;
  o.top_logprobs = 2;
  const std::vector<pb::GenerateResponse> events = {Accepted(1), DeltaWithLogprobs("\xC3", -0.5F, {"a", "b"}),
                                                    End(FINISH_REASON_STOP, 1), Done(1, 1)};
  const json full = json::parse(Play(o, events));
  const json& token = full["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(token["token"], "\xEF\xBF\xBD");
  EXPECT_EQ(token["bytes"], json::parse("[195]"));
  EXPECT_EQ(token["logprob"], -0.5);
  EXPECT_EQ(token["top_logprobs"][1], json::parse(R"({"token":"b","logprob":-1.5,"bytes":[98]})"));
  o.stream = true;
  const auto chunks = Chunks(Play(o, events));
  EXPECT_EQ(chunks[1]["choices"][0]["logprobs"]["content"].size(), 1U) << "the chunk goes out though its text is held";
  EXPECT_EQ(chunks[1]["choices"][0]["delta"]["content"], "");
}

TEST(ReplyAssembler, TextCompletion) {
  ReplyOptions o;
  o.chat = false;
  o.logprobs = true;
  o.top_logprobs = 1;
  const json full =
      json::parse(Play(o, {Accepted(1), DeltaWithLogprobs("He", -0.5F, {"Yo"}), DeltaWithLogprobs("y", -1.0F, {"y"}),
                           End(FINISH_REASON_STOP, 2), Done(1, 2)}));
  EXPECT_EQ(full["object"], "text_completion");
  const json& choice = full["choices"][0];
  EXPECT_EQ(choice["text"], "Hey");
  EXPECT_EQ(choice["logprobs"], json::parse(R"({"tokens":["He","y"],"token_logprobs":[-0.5,-1.0],
    "top_logprobs":[{"Yo":-0.5,"He":-0.5},{"y":-1.0}],"text_offset":[0,2]})"));
}

TEST(ReplyAssembler, TextCompletionStreamWithEcho) {
  ReplyOptions o = Stream();
  o.chat = false;
  o.echo = true;
  ReplyAssembler a(kIdentity, o, 2, 1);
  a.SetEcho(0, "P0");
  a.SetEcho(1, "P1");
  std::string out;
  a.Start(&out);
  for (size_t prompt : {1, 0}) {
    for (const auto& e : {Accepted(1), Delta("x"), End(FINISH_REASON_STOP, 1), Done(1, 1)}) {
      EXPECT_FALSE(a.OnEvent(prompt, e, &out).has_value());
    }
  }
  ASSERT_TRUE(a.complete());
  a.Finish({}, &out);
  const auto chunks = Chunks(out);
  EXPECT_EQ(chunks[0]["choices"][0]["text"], "P0");
  EXPECT_EQ(chunks[1]["choices"][0]["text"], "P1");
  EXPECT_EQ(chunks[2]["choices"][0]["index"], 1);
  EXPECT_EQ(chunks[2]["choices"][0]["text"], "x");
  EXPECT_EQ(a.usage().prompt_tokens, 2U);
}

TEST(ReplyAssembler, Timings) {
  ReplyOptions o;
  o.timeline = true;
  const std::vector<pb::GenerateResponse> events = {Accepted(1), Delta("x"), End(FINISH_REASON_STOP, 1), Done(1, 1)};
  EXPECT_EQ(json::parse(Play(o, events))["timings"]["prefill_ms"], 1.5);
  o.stream = true;
  const auto chunks = Chunks(Play(o, events));
  ASSERT_EQ(chunks.size(), 4U) << "without include_usage no extra chunk";
  EXPECT_EQ(chunks[2]["timings"]["transfer_path"], "mapped");
  EXPECT_EQ(chunks[2]["choices"][0]["finish_reason"], "stop");
  o.include_usage = true;
  EXPECT_EQ(Chunks(Play(o, events))[3]["timings"]["prefill_ms"], 1.5);
}

TEST(ReplyAssembler, BrokenContractIsAnErrorNeverAStop) {
  const auto last = [](const std::vector<pb::GenerateResponse>& events) {
    const auto chunks = Chunks(Play(Stream(), events));
    EXPECT_EQ(chunks.back(), "[DONE]");
    for (const auto& c : chunks) {
      if (!c.contains("choices")) continue;
      EXPECT_TRUE(c["choices"][0]["finish_reason"].is_null());
    }
    return chunks[chunks.size() - 2]["error"]["code"].get<std::string>();
  };
  EXPECT_EQ(last({Accepted(1), Delta("x"), End(FINISH_REASON_CANCELLED, 1)}), "request_cancelled");
  EXPECT_EQ(last({Accepted(1), Delta("x", 1)}), "internal_error");
  EXPECT_EQ(last({Accepted(1), End(common::v1::FINISH_REASON_UNSPECIFIED, 1)}), "internal_error");
}

}  // namespace
}  // namespace agentserve::gateway
