// The HTTP server over real sockets: framing, limits, time-outs, keys, probes.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "base/strings.h"
#include "gateway/testing/gateway_fixture.h"

namespace agentserve::gateway::testing {
namespace {

using base::StrCat;
using nlohmann::json;

constexpr char kHello[] = R"({"messages":[{"role":"user","content":"hi"}]})";

std::string ErrorCode(const RawResponse& r) {
  const json e = json::parse(r.body)["error"];
  return e["code"].is_null() ? e["type"] : e["code"];
}

TEST(Http, ProbesAndPages) {
  GatewayFixture g;
  for (const char* path : {"/health", "/live", "/ready", "/metrics", "/version", "/"}) {
    EXPECT_EQ(g.Ask(Get(path)).status, 200) << path;
  }
  const RawResponse models = g.Ask(Get("/v1/models"));
  const json model = json::parse(models.body)["data"][0];
  EXPECT_EQ(model["id"], "fake-model");
  EXPECT_EQ(model["max_model_len"], 4096);
  EXPECT_EQ(model["created"], 1700000000);
  EXPECT_EQ(g.Ask(Get("/v1/models/fake-model")).status, 200);
  EXPECT_EQ(ErrorCode(g.Ask(Get("/v1/models/other"))), "model_not_found");
  EXPECT_TRUE(models.headers.contains("x-request-id"));
  RawClient head(g.port());
  head.Send("HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_TRUE(head.ReadUntil("\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
}

TEST(Http, NotReadyIsSaid) {
  GatewayFixture g([](GatewayConfig& c) { c.router = "127.0.0.1:1"; }, false);
  const RawResponse health = g.Ask(Get("/health"));
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(json::parse(health.body),
            json::parse(R"({"error":{"code":503,"message":"Loading model","type":"unavailable_error"}})"));
  EXPECT_EQ(g.Ask(Get("/ready")).status, 503);
  EXPECT_EQ(g.Ask(Get("/live")).status, 200);
  EXPECT_EQ(g.Ask(Get("/v1/models")).status, 503);
}

TEST(Http, UnknownRoutesAndMethods) {
  GatewayFixture g;
  EXPECT_EQ(g.Ask(Get("/nope")).status, 404);
  const RawResponse wrong = g.Ask(Get("/v1/chat/completions"));
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  EXPECT_EQ(ErrorCode(wrong), "method_not_allowed");
  EXPECT_EQ(g.Ask(Post("/health", "{}")).status, 405);
  EXPECT_EQ(g.Ask("BREW /health HTTP/1.1\r\nhost: x\r\n\r\n").status, 405);
}

TEST(Http, KeysGuardAllButProbes) {
  GatewayFixture g([](GatewayConfig& c) { c.api_keys = {"secret", "other"}; });
  for (const char* path : {"/health", "/live", "/ready", "/metrics", "/version"}) {
    EXPECT_EQ(g.Ask(Get(path)).status, 200) << path;
  }
  for (const char* path : {"/", "/v1/models", "/nope", "/invocations"}) EXPECT_EQ(g.Ask(Get(path)).status, 401) << path;
  const RawResponse denied = g.Ask(Post("/v1/chat/completions", kHello, "authorization: Bearer wrong\r\n"));
  EXPECT_EQ(denied.status, 401);
  EXPECT_EQ(ErrorCode(denied), "invalid_api_key");
  EXPECT_TRUE(denied.headers.contains("www-authenticate"));
  EXPECT_EQ(g.router().generate_calls, 0);
  EXPECT_EQ(g.Ask(Post("/v1/chat/completions", kHello, "authorization: Bearer other\r\n")).status, 200);
  EXPECT_EQ(g.router().last_request().agent().tenant_id(), "key-1");
}

TEST(Http, LargeBodiesAreRefusedBeforeTheyAreRead) {
  GatewayFixture g([](GatewayConfig& c) { c.http.body_bytes = 1000; });
  RawClient c(g.port());
  c.Send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n{\"mess");
  const RawResponse r = c.Read();
  EXPECT_EQ(r.status, 413);
  EXPECT_EQ(ErrorCode(r), "request_too_large");
  EXPECT_EQ(r.headers.at("connection"), "close");
  // Chunked: the limit is met while reading.
  RawClient chunked(g.port());
  chunked.Send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) chunked.Send(StrCat("64\r\n", std::string(100, 'x'), "\r\n"));
  EXPECT_EQ(chunked.Read().status, 413);
  EXPECT_EQ(g.Ask(Post("/v1/chat/completions", std::string(1000, ' '))).status, 400) << "at the limit it is read";
}

TEST(Http, HugeBodySeesItsReply) {
  GatewayFixture g;
  RawClient c(g.port());
  c.Send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n");
  std::thread sender([&] {
    for (int i = 0; i < 32; ++i) {
      if (!c.Send(std::string(1 << 20, 'x'))) break;
    }
  });
  sender.join();
  EXPECT_EQ(c.Read().status, 413) << "no reset before the reply was read";
}

TEST(Http, AllBodiesTogetherAreBounded) {
  GatewayFixture g([](GatewayConfig& c) { c.http.inflight_body_bytes = 3000; });
  RawClient holder(g.port());
  holder.Send("POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n");
  ASSERT_TRUE(GatewayFixture::Eventually(
      [&] { return g.Metrics().find("agentserve_gateway_body_bytes 2000") != std::string::npos; }));
  const RawResponse r = g.Ask(Post("/tokenize", std::string(2000, ' ')));
  EXPECT_EQ(r.status, 503);
  EXPECT_TRUE(r.headers.contains("retry-after"));
  holder.Close();
  ASSERT_TRUE(GatewayFixture::Eventually(
      [&] { return g.Metrics().find("agentserve_gateway_body_bytes 0") != std::string::npos; }));
  EXPECT_EQ(g.Ask(Post("/tokenize", R"({"prompt":"ab"})")).status, 200);
}

TEST(Http, HeadersAreBounded) {
  GatewayFixture g([](GatewayConfig& c) { c.http.header_bytes = 4096; });
  const RawResponse r = g.Ask(Get("/health", StrCat("x-long: ", std::string(5000, 'a'), "\r\n")));
  EXPECT_EQ(r.status, 431);
  EXPECT_EQ(ErrorCode(r), "headers_too_large");
  std::string many;
  for (int i = 0; i < 2000; ++i) many += "a: b\r\n";
  EXPECT_EQ(g.Ask(Get("/health", many)).status, 431);
}

TEST(Http, MalformedRequestsGet400) {
  GatewayFixture g;
  for (const char* bad : {
           "GARBAGE\r\n\r\n",
           "GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
           "GET /health HTTP/1.1\r\n\r\n",
           "GET /health HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
           "GET /health HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
           "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
           "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
           "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
           "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
           "POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
           "POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
       }) {
    const RawResponse r = g.Ask(bad);
    EXPECT_TRUE(r.status == 400 || r.status == 505) << r.status << " for " << bad;
    EXPECT_EQ(r.headers.count("connection") ? r.headers.at("connection") : "", "close") << bad;
  }
  EXPECT_EQ(g.Ask(Get("/health")).status, 200);
}

TEST(Http, BadJsonTorture) {
  GatewayFixture g;
  RawClient c(g.port());  // one connection for all: it must survive each
  for (const std::string body :
       {"", "{", "[]", "null", "{\"messages\":1}", "{\"messages\":[{}]}", "\xFF\xFE",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\xFF\"}]}", "{\"a\":1e999}", "{\"a\":NaN}"}) {
    ASSERT_TRUE(c.Send(Post("/v1/chat/completions", body)));
    const RawResponse r = c.Read();
    EXPECT_EQ(r.status, 400) << body;
    EXPECT_EQ(json::parse(r.body)["error"]["type"], "invalid_request_error");
    EXPECT_LT(r.body.size(), 2000U);
  }
  ASSERT_TRUE(c.Send(Post("/v1/chat/completions", std::string(100'000, '['))));
  EXPECT_EQ(c.Read().status, 400);
  EXPECT_EQ(g.router().generate_calls, 0);
}

TEST(Http, SlowHeadersAndBodiesTimeOut) {
  GatewayFixture g([](GatewayConfig& c) { c.http.header_timeout_ms = c.http.body_timeout_ms = 200; });
  RawClient slow(g.port());
  slow.Send("GET /health HT");
  for (int i = 0; i < 5; ++i) {  // dribbling does not extend the time
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    slow.Send("T");
  }
  EXPECT_EQ(slow.Read().status, 408);
  EXPECT_TRUE(slow.WaitClosed());
  RawClient body(g.port());
  body.Send("POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{");
  EXPECT_EQ(body.Read().status, 408);
  EXPECT_TRUE(body.WaitClosed());
}

TEST(Http, IdleConnectionsAreClosed) {
  GatewayFixture g([](GatewayConfig& c) { c.http.idle_timeout_ms = 100; });
  RawClient c(g.port());
  EXPECT_TRUE(c.WaitClosed(3000));
}

TEST(Http, KeepAliveAndPipelining) {
  GatewayFixture g;
  RawClient c(g.port());
  for (int i = 0; i < 3; ++i) {
    c.Send(Get("/health"));
    EXPECT_EQ(c.Read().status, 200);
  }
  c.Send(Post("/v1/chat/completions", kHello) + Get("/live") + Post("/tokenize", R"({"prompt":"ab"})"));
  EXPECT_EQ(json::parse(c.Read().body)["object"], "chat.completion");
  EXPECT_EQ(json::parse(c.Read().body)["status"], "ok");
  EXPECT_EQ(json::parse(c.Read().body)["count"], 3);
  c.Send(Get("/health", "connection: close\r\n"));
  EXPECT_EQ(c.Read().headers.at("connection"), "close");
  EXPECT_TRUE(c.WaitClosed());
}

TEST(Http, PipelinedBehindAStream) {
  GatewayFixture g;
  RawClient c(g.port());
  c.Send(Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"stream":true})") + Get("/live"));
  EXPECT_NE(c.Read().body.find("[DONE]"), std::string::npos);
  EXPECT_EQ(c.Read().status, 200);
}

TEST(Http, ByteByByteRequest) {
  GatewayFixture g;
  RawClient c(g.port());
  for (char b : Post("/tokenize", R"({"prompt":"ab"})")) c.Send(std::string_view(&b, 1));
  EXPECT_EQ(c.Read().status, 200);
}

TEST(Http, ExpectContinue) {
  GatewayFixture g;
  RawClient c(g.port());
  c.Send("POST /tokenize HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 15\r\n\r\n");
  EXPECT_EQ(c.Read().status, 100);
  c.Send(R"({"prompt":"ab"})");
  EXPECT_EQ(c.Read().status, 200);
}

TEST(Http, ConnectionLimit) {
  GatewayFixture g([](GatewayConfig& c) { c.http.connections = 2; });
  RawClient a(g.port()), b(g.port());
  ASSERT_TRUE(GatewayFixture::Eventually([&] { return g.server().connections() == 2; }));
  RawClient c(g.port());
  EXPECT_EQ(c.Read().status, 503);
  a.Close();
  ASSERT_TRUE(GatewayFixture::Eventually([&] { return g.Ask(Get("/health"), 500).status == 200; }));
}

TEST(Http, RequestIdsAreCarried) {
  GatewayFixture g;
  const std::string trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  const RawResponse r =
      g.Ask(Post("/v1/chat/completions", kHello, StrCat("x-request-id: abc-1\r\ntraceparent: ", trace, "\r\n")));
  EXPECT_EQ(r.headers.at("x-request-id"), "abc-1");
  EXPECT_EQ(g.router().last_metadata()["x-request-id"], "abc-1");
  EXPECT_EQ(g.router().last_metadata()["traceparent"], trace);
  EXPECT_EQ(g.router().last_request().trace().traceparent(), trace);
  EXPECT_EQ(g.router().last_request().trace().client_request_id(), "abc-1");
  const RawResponse odd =
      g.Ask(Get("/health", StrCat("x-request-id: ", std::string(200, 'x'), "\r\ntraceparent: no\r\n")));
  EXPECT_TRUE(odd.headers.at("x-request-id").starts_with("req-"));
}

TEST(Http, Cors) {
  GatewayFixture g([](GatewayConfig& c) {
    c.cors_origin = "https://app.example";
    c.api_keys = {"k"};
  });
  const RawResponse pre = g.Ask("OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(pre.status, 204);
  EXPECT_EQ(pre.headers.at("access-control-allow-origin"), "https://app.example");
  GatewayFixture off;
  EXPECT_FALSE(off.Ask(Get("/health")).headers.contains("access-control-allow-origin"));
  EXPECT_EQ(off.Ask("OPTIONS /health HTTP/1.1\r\nhost: x\r\n\r\n").status, 405);
}

TEST(Http, Tokenize) {
  GatewayFixture g;
  const json t = json::parse(g.Ask(Post("/v1/tokenize", R"({"prompt":"ab","add_special_tokens":false})")).body);
  EXPECT_EQ(t, json::parse(R"({"count":2,"max_model_len":4096,"tokens":[97,98]})"));
  const json d = json::parse(g.Ask(Post("/detokenize", R"({"tokens":[97,98]})")).body);
  EXPECT_EQ(d["prompt"], "ab");
  EXPECT_EQ(d["content"], "ab");
}

TEST(Http, DrainFinishesStreamsAndTurnsProbes) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) { return Say({"a", "b", "c"}, 100); });
  RawClient stream(g.port()), idle(g.port());
  ASSERT_TRUE(GatewayFixture::Eventually([&] { return g.server().connections() == 2; }));
  stream.Send(Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"stream":true})"));
  stream.ReadUntil("\"a\"");
  g.gateway().BeginDrain();
  g.server().BeginDrain();
  EXPECT_TRUE(idle.WaitClosed());
  EXPECT_NE(stream.ReadUntil("[DONE]\n\n").find("\"c\""), std::string::npos);
  EXPECT_TRUE(stream.WaitClosed());
  RawClient late(g.port());
  late.Send(Get("/health"));
  EXPECT_EQ(late.Read(500).status, 0) << "no new connections";
}

}  // namespace
}  // namespace agentserve::gateway::testing
