// Generations over real sockets: order of a stream, errors, cancel, retries, slow clients.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "base/strings.h"
#include "gateway/testing/gateway_fixture.h"

namespace agentserve::gateway::testing {
namespace {

using base::StrCat;
using nlohmann::json;

std::string Chat(const std::string& members = "", const std::string& content = "hi") {
  return Post("/v1/chat/completions", StrCat(R"({"messages":[{"role":"user","content":")", content, "\"}]",
                                             members.empty() ? "" : ",", members, "}"));
}

const std::string kStream = R"("stream":true)";

TEST(Stream, OrderAndHeadersAreExact) {
  GatewayFixture g;
  const RawResponse r = g.Ask(Chat(R"("stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_EQ(r.status, 200);
  EXPECT_EQ(r.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(r.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(r.headers.at("x-accel-buffering"), "no");
  EXPECT_TRUE(r.headers.contains("x-request-id"));
  const std::string id = r.body.substr(13, r.body.find("\",\"object") - 13);
  ASSERT_TRUE(id.starts_with("chatcmpl-")) << r.body;
  const size_t created_at = r.body.find("\"created\":") + 10;
  const std::string created = r.body.substr(created_at, r.body.find(',', created_at) - created_at);
  const std::string open = StrCat(R"(data: {"id":")", id, R"(","object":"chat.completion.chunk","created":)", created,
                                  R"(,"model":"fake-model","choices":[)");
  const std::string tail = R"("logprobs":null,"finish_reason":null}],"usage":null})"
                           "\n\n";
  EXPECT_EQ(r.body, open + R"({"index":0,"delta":{"role":"assistant","content":""},)" + tail +  //
                        open + R"({"index":0,"delta":{"content":"Hello"},)" + tail +            //
                        open + R"({"index":0,"delta":{"content":" world"},)" + tail +           //
                        open +
                        R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null})"
                        "\n\n" +
                        open +
                        R"(],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,)"
                        R"("prompt_tokens_details":{"cached_tokens":2}}})"
                        "\n\ndata: [DONE]\n\n");
}

TEST(Stream, HeadersAndRoleComeBeforeTheFirstToken) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s;
    s.steps.push_back({0, Accepted(3)});
    s.steps.push_back({0, {}, true});
    return s;
  });
  RawClient c(g.port());
  c.Send(Chat(kStream));
  EXPECT_NE(c.ReadUntil("\"content\":\"\"", 3000).find("200 OK"), std::string::npos);
}

TEST(Stream, PingsInSilenceAlsoWhileQueued) {
  GatewayFixture g([](GatewayConfig& c) {
    c.ping_ms = 50;
    c.commit_headers_ms = 50;
  });
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s = Say({"x"});
    s.steps[0].delay_ms = 300;  // not even accepted
    return s;
  });
  const RawResponse r = g.Ask(Chat(kStream));
  EXPECT_NE(r.body.find(": ping\n\n"), std::string::npos);
  EXPECT_NE(r.body.find("[DONE]"), std::string::npos);
  EXPECT_LT(r.body.find("\"role\""), r.body.find(": ping"));
}

TEST(Stream, RefusalsBeforeOutputAreHttpErrors) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) {
    return Script{{}, DetailedStatus(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", 1200)};
  });
  for (const std::string& members : {std::string(), kStream}) {
    const RawResponse r = g.Ask(Chat(members));
    EXPECT_EQ(r.status, 429);
    EXPECT_EQ(r.headers.at("retry-after"), "2");
    EXPECT_EQ(r.headers.at("retry-after-ms"), "1200");
    EXPECT_EQ(json::parse(r.body)["error"]["code"], "rate_limit_exceeded");
  }
  EXPECT_EQ(g.router().generate_calls, 2) << "an answer of the router is not retried";
}

TEST(Stream, ErrorsAfterOutputEndTheStream) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s = Say({"Hel"});
    s.steps.resize(2);
    s.status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "lost");
    return s;
  });
  const RawResponse r = g.Ask(Chat(kStream));
  EXPECT_EQ(r.status, 200);
  const size_t error = r.body.find("data: {\"error\":");
  ASSERT_NE(error, std::string::npos);
  EXPECT_TRUE(r.body.ends_with("data: [DONE]\n\n"));
  EXPECT_EQ(r.body.find("\"finish_reason\":\""), std::string::npos);
  EXPECT_EQ(g.router().generate_calls, 1) << "what was emitted is never repeated";
  EXPECT_EQ(g.Ask(Chat()).status, 503);
}

TEST(Stream, AStreamWithoutDoneIsAnError) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s = Say({"x"});
    s.steps.pop_back();
    return s;
  });
  EXPECT_EQ(g.Ask(Chat()).status, 500);
  EXPECT_NE(g.Ask(Chat(kStream)).body.find("\"error\""), std::string::npos);
}

TEST(Stream, ToolCalls) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest& r) { return ScriptByPrompt(r, 0); });
  const std::string tools = R"("tools":[{"type":"function","function":{"name":"get_weather"}}])";
  const json whole = json::parse(g.Ask(Chat(tools, "tool")).body)["choices"][0];
  EXPECT_EQ(whole["finish_reason"], "tool_calls");
  EXPECT_EQ(json::parse(whole["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>()),
            json::parse(R"({"city":"Paris"})"));
  EXPECT_NE(g.Ask(Chat(StrCat(tools, ",", kStream), "tools")).body.find("\"tool_calls\":[{\"index\":1,\"id\":\"call_"),
            std::string::npos);
}

TEST(Stream, AnUnreadableEventIsAnErrorSoon) {
  GatewayFixture g;
  // Half a character is not a proto string; gRPC then ends the reads and says nothing.
  g.router().set_script([](const pb::GenerateRequest&) { return Say({"a", "\xF0\x9F"}); });
  EXPECT_EQ(g.Ask(Chat(), 3000).status, 500);
  EXPECT_NE(g.Ask(Chat(kStream), 3000).body.find("\"error\""), std::string::npos);
}

TEST(Stream, DisconnectCancelsAtEveryStage) {
  GatewayFixture g;
  std::atomic<int> stage{0};
  g.router().set_script([&](const pb::GenerateRequest&) {
    Script s;
    if (stage >= 1) s.steps.push_back({0, Accepted(3)});
    if (stage >= 2) s.steps.push_back({0, Delta("x")});
    s.steps.push_back({0, {}, true});
    return s;
  });
  int expected = 0;
  for (stage = 0; stage < 3; ++stage) {
    for (const bool stream : {false, true}) {
      for (const int how : {0, 1, 2}) {
        RawClient c(g.port());
        c.Send(Chat(stream ? kStream : ""));
        ASSERT_TRUE(GatewayFixture::Eventually([&] { return g.router().running == 1; }));
        if (stream && stage == 2) c.ReadUntil("\"x\"");
        if (how == 0) c.Close();
        if (how == 1) c.Reset();
        if (how == 2) c.ShutdownSend();
        ++expected;
        EXPECT_TRUE(GatewayFixture::Eventually([&] { return g.router().cancelled_calls == expected; }, 2000))
            << "stage " << stage << " stream " << stream << " how " << how;
      }
    }
  }
  EXPECT_NE(g.Metrics().find("agentserve_gateway_client_disconnects_total 18"), std::string::npos);
  EXPECT_NE(g.Metrics().find("agentserve_gateway_requests_in_flight 0"), std::string::npos);
}

TEST(Stream, SlowReaderIsCutOff) {
  GatewayFixture g([](GatewayConfig& c) { c.http.outbound_bytes = 64 << 10; });
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s;
    s.steps.push_back({0, Accepted(3)});
    for (int i = 0; i < 3000; ++i) s.steps.push_back({i % 100 == 0 ? 1 : 0, Delta(std::string(4000, 'x'))});
    s.steps.push_back({0, {}, true});
    return s;
  });
  RawClient c(g.port(), 4096);
  c.Send(Chat(kStream));
  EXPECT_TRUE(GatewayFixture::Eventually([&] { return g.router().cancelled_calls == 1; }, 10'000));
  EXPECT_NE(g.Metrics().find("agentserve_gateway_slow_clients_total 1"), std::string::npos);
}

TEST(Stream, StalledReaderTimesOut) {
  GatewayFixture g([](GatewayConfig& c) {
    c.http.write_timeout_ms = 200;
    c.http.outbound_bytes = 64u << 20;
  });
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s;
    s.steps.push_back({0, Accepted(3)});
    for (int i = 0; i < 3000; ++i) s.steps.push_back({0, Delta(std::string(4000, 'x'))});
    s.steps.push_back({0, {}, true});
    return s;
  });
  RawClient c(g.port(), 4096);
  c.Send(Chat(kStream));
  EXPECT_TRUE(GatewayFixture::Eventually([&] { return g.router().cancelled_calls == 1; }, 10'000));
}

TEST(Stream, RouterRestartIsRetriedOnceIfNothingWasEmitted) {
  GatewayFixture g;
  std::atomic<bool> hang{true};
  g.router().set_script([&](const pb::GenerateRequest&) {
    if (!hang) return Say({"again"});
    Script s;
    s.steps.push_back({0, Accepted(3)});
    s.steps.push_back({0, {}, true});
    return s;
  });
  RawClient c(g.port());
  c.Send(Chat(kStream));
  ASSERT_TRUE(GatewayFixture::Eventually([&] { return g.router().running == 1; }));
  c.ReadUntil("\"content\":\"\"");
  hang = false;
  g.router().Stop();
  ASSERT_EQ(g.router().Start(g.router_port()), g.router_port());
  const std::string rest = c.ReadUntil("[DONE]\n\n", 8000);
  EXPECT_NE(rest.find("\"again\""), std::string::npos) << rest;
  EXPECT_EQ(rest.find("\"role\""), std::string::npos) << "no second begin";
  EXPECT_EQ(g.router().generate_calls, 2);
}

TEST(Stream, RouterGoneIs503) {
  GatewayFixture g([](GatewayConfig& c) { c.retry_wait_ms = 200; });
  g.router().Stop();
  const RawResponse r = g.Ask(Chat());
  EXPECT_EQ(r.status, 503);
  EXPECT_TRUE(r.headers.contains("retry-after"));
  EXPECT_TRUE(GatewayFixture::Eventually([&] { return g.Ask(Get("/ready")).status == 503; }));
}

TEST(Stream, BudgetEndsTheRequest) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest& r) {
    EXPECT_LE(r.budget_ms(), 300U);
    EXPECT_GT(r.budget_ms(), 0U);
    Script s;
    s.steps.push_back({0, {}, true});
    return s;
  });
  const RawResponse r = g.Ask(Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}]})",
                                   "x-agentserve-budget-ms: 300\r\n"));
  EXPECT_EQ(r.status, 504);
}

TEST(Stream, CompletionsFanOut) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest& r) { return Say({"<", PromptOf(r), ">"}); });
  const json r = json::parse(g.Ask(Post("/v1/completions", R"({"prompt":["a","b","c"],"echo":true})")).body);
  ASSERT_EQ(r["choices"].size(), 3U);
  EXPECT_EQ(r["choices"][2]["index"], 2);
  EXPECT_EQ(r["choices"][2]["text"], "c<c>");
  EXPECT_EQ(r["usage"]["completion_tokens"], 9);
  const std::string ids = g.Ask(Post("/v1/completions", R"({"prompt":[[97,98]],"echo":true})")).body;
  EXPECT_EQ(json::parse(ids)["choices"][0]["text"], "ab<>");
  const std::string s = g.Ask(Post("/v1/completions", R"({"prompt":["a","b"],"stream":true})")).body;
  EXPECT_TRUE(s.ends_with("data: [DONE]\n\n"));
}

TEST(Stream, FanOutFailureIsOneError) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest& r) {
    if (PromptOf(r) == "bad") {
      return Script{{}, DetailedStatus(grpc::StatusCode::INVALID_ARGUMENT, "too long", "CONTEXT_LENGTH_EXCEEDED")};
    }
    Script s;
    s.steps.push_back({0, {}, true});
    return s;
  });
  const RawResponse r = g.Ask(Post("/v1/completions", R"({"prompt":["a","bad"]})"));
  EXPECT_EQ(r.status, 400);
  EXPECT_EQ(json::parse(r.body)["error"]["code"], "context_length_exceeded");
  EXPECT_TRUE(GatewayFixture::Eventually([&] { return g.router().running == 0; }));
}

TEST(Stream, TokenIdsComeWithTheirPrompt) {
  GatewayFixture g;
  const json r = json::parse(g.Ask(Chat(R"("return_token_ids":true)")).body)["choices"][0];
  EXPECT_EQ(r["token_ids"], json::parse("[7,7]"));
  EXPECT_EQ(r["prompt_token_ids"], json::parse("[104,105]"));
  EXPECT_TRUE(g.router().last_request().has_token_ids()) << "generated from exactly these ids";
}

TEST(Stream, TimelineOnRequest) {
  GatewayFixture g;
  const RawResponse r = g.Ask(
      Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}]})", "x-agentserve-timeline: 1\r\n"));
  const json t = json::parse(r.body)["timings"];
  EXPECT_EQ(t["transfer_path"], "mapped");
  EXPECT_GT(t["gateway_ttft_ms"], 0.0);
  EXPECT_FALSE(json::parse(g.Ask(Chat()).body).contains("timings"));
}

TEST(Stream, MetricsCount) {
  GatewayFixture g;
  g.Ask(Chat(R"("store":true,"zzz":1)"));
  g.Ask(Chat(R"("temperature":9)"));
  const std::string m = g.Metrics();
  for (const char* line : {
           "agentserve_gateway_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
           "agentserve_gateway_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1",
           "agentserve_gateway_time_to_first_token_seconds_count 1",
           "agentserve_gateway_inter_token_latency_seconds_count 1",
           "agentserve_gateway_e2e_request_latency_seconds_count 1",
           "agentserve_gateway_generation_tokens_total 2",
           "agentserve_gateway_prompt_tokens_total 5",
           "agentserve_gateway_finish_total{reason=\"stop\"} 1",
           "agentserve_gateway_ignored_fields_total{field=\"store\"} 1",
           "agentserve_gateway_ignored_fields_total{field=\"other\"} 1",
           "agentserve_gateway_rejects_total{reason=\"invalid_request_error\"} 1",
           "agentserve_gateway_requests_in_flight 0",
       }) {
    EXPECT_NE(m.find(line), std::string::npos) << line << "\nnot in\n" << m;
  }
}

TEST(Stream, ManyAtOnce) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) { return Say({"a", "b", "c", "d"}, 2); });
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      RawClient c(g.port());
      for (int i = 0; i < 10; ++i) {
        c.Send(Chat(kStream));
        const RawResponse r = c.Read();
        if (r.status == 200 && r.body.ends_with("data: [DONE]\n\n")) ++good;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(good, 80);
}

}  // namespace
}  // namespace agentserve::gateway::testing
