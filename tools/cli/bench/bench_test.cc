#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "tools/cli/bench/fake_server_for_test.h"
#include "tools/cli/bench/load.h"
#include "tools/cli/bench/report.h"
#include "tools/cli/bench/stats.h"
#include "tools/cli/bench/workload.h"
#include "tools/cli/core/sse_parser.h"
#include "tools/cli/http/sse_client.h"

namespace agentserve::tools {
namespace {

using nlohmann::json;

TEST(Stats, PercentilesInterpolate) {
  EXPECT_EQ(Percentile({}, 0.5), 0);
  EXPECT_EQ(Percentile({7}, 0.99), 7);
  const std::vector<double> s = {1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(Percentile(s, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(s, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Percentile(s, 0.9), 3.7);
  EXPECT_DOUBLE_EQ(Percentile(s, 1), 4);
}
TEST(Stats, SummaryIsIndependentOfOrder) {
  std::vector<double> samples;
  for (int i = 100; i >= 0; --i) samples.push_back(i);
  const Summary s = Summarize(samples);
  EXPECT_EQ(s.count, 101u);
  EXPECT_DOUBLE_EQ(s.mean, 50);
  EXPECT_DOUBLE_EQ(s.p50, 50);
  EXPECT_DOUBLE_EQ(s.p90, 90);
  EXPECT_DOUBLE_EQ(s.p95, 95);
  EXPECT_DOUBLE_EQ(s.p99, 99);
  EXPECT_DOUBLE_EQ(s.max, 100);
  EXPECT_EQ(Summarize({}).count, 0u);
}

TEST(Workload, Ranges) {
  EXPECT_EQ(ParseLengthRange("x", "64")->most, 64u);
  EXPECT_EQ(ParseLengthRange("x", "3:5")->least, 3u);
  for (const char* bad : {"", "0", "5:3", "a", "1:", ":2", "-1", "1:2:3", "1000001"}) {
    EXPECT_FALSE(ParseLengthRange("x", bad).ok()) << bad;
  }
  base::SplitMix64 rng(1);
  bool low = false, high = false;
  for (int i = 0; i < 200; ++i) {
    const uint32_t n = ParseLengthRange("x", "3:5")->Draw(&rng);
    EXPECT_TRUE(n >= 3 && n <= 5);
    low = low || n == 3;
    high = high || n == 5;
  }
  EXPECT_TRUE(low && high);
}
TEST(Workload, ItemsDependOnSeedAndNumberOnly) {
  std::vector<uint32_t> pool;
  for (uint32_t i = 0; i < 100; ++i) pool.push_back(1000 + i);
  const Workload a({{50, 60}, {4, 4}, 20, 7}, pool), b({{50, 60}, {4, 4}, 20, 7}, pool),
      c({{50, 60}, {4, 4}, 20, 8}, pool);
  const auto prefix = [](const WorkItem& i) {
    return std::vector<uint32_t>(i.prompt_ids.begin(), i.prompt_ids.begin() + 20);
  };
  EXPECT_EQ(a.Item(3).prompt_ids, b.Item(3).prompt_ids);
  EXPECT_NE(a.Item(3).prompt_ids, a.Item(4).prompt_ids);
  EXPECT_EQ(prefix(a.Item(3)), prefix(a.Item(4)));
  EXPECT_NE(a.Item(3).prompt_ids[20], a.Item(4).prompt_ids[20]);
  EXPECT_NE(prefix(a.Item(3)), prefix(c.Item(3)));
  EXPECT_EQ(a.Item(0).output_tokens, 4u);
}
TEST(Workload, PoissonGapsHaveTheRate) {
  PoissonGaps gaps(200, 1);
  double sum = 0, squares = 0;
  constexpr int kCount = 20000;
  for (int i = 0; i < kCount; ++i) {
    const double g = static_cast<double>(gaps.Next()) / 1e9;
    ASSERT_GE(g, 0);
    sum += g;
    squares += g * g;
  }
  const double mean = sum / kCount;
  EXPECT_NEAR(mean, 0.005, 0.0002);
  EXPECT_NEAR(squares / kCount - mean * mean, 0.005 * 0.005, 0.005 * 0.005 * 0.1);  // exponential: variance = mean^2
}

TEST(Record, TimesOfAStream) {
  RequestRecord r;
  StreamReader reader(&r);
  r.start = 1'000'000'000;
  const auto at = [](int ms) { return 1'000'000'000 + ms * base::kNsPerMs; };
  EXPECT_TRUE(reader.OnEvent(R"({"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null})", at(5)));
  reader.OnEvent(R"({"choices":[{"delta":{"content":"a"}}]})", at(10));
  reader.OnEvent(R"({"choices":[{"delta":{"content":"b"}}]})", at(14));
  reader.OnEvent(R"({"choices":[{"delta":{"content":"c"}}]})", at(20));
  reader.OnEvent(R"({"choices":[{"delta":{},"finish_reason":"length"}]})", at(21));
  reader.OnEvent(
      R"({"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}})",
      at(21));
  EXPECT_FALSE(reader.OnEvent("[DONE]", at(22)));
  reader.OnEnd(at(23));
  EXPECT_TRUE(r.ok()) << r.error;
  EXPECT_DOUBLE_EQ(r.ttft_ms(), 10);
  EXPECT_DOUBLE_EQ(r.tpot_ms(), 5);
  EXPECT_DOUBLE_EQ(r.e2e_ms(), 23);
  EXPECT_EQ(r.gaps_ms, (std::vector<float>{4, 6}));
  EXPECT_EQ(r.cached_tokens, 4u);
}
TEST(Record, WhatGoesWrongIsNamed) {
  const auto run = [](const std::vector<std::string>& events) {
    RequestRecord r;
    StreamReader reader(&r);
    for (const std::string& e : events) {
      if (!reader.OnEvent(e, 1)) break;
    }
    reader.OnEnd(2);
    return r.error;
  };
  const std::string usage = R"({"choices":[{"text":"x","finish_reason":"stop"}],"usage":{"completion_tokens":1}})";
  EXPECT_EQ(run({usage, "[DONE]"}), "");
  EXPECT_EQ(run({usage}), "truncated");
  EXPECT_EQ(run({R"({"choices":[{"text":"x"}]})", "[DONE]"}), "incomplete");
  EXPECT_EQ(run({R"({"error":{"message":"no"}})", "[DONE]"}), "stream_error");
  EXPECT_EQ(run({"{"}), "bad_json");
}

TEST(Sse, PiecesCommentsAndLineEnds) {
  SseParser parser;
  std::vector<std::string> events;
  const auto sink = [&events](std::string_view d) {
    events.emplace_back(d);
    return d != "stop";
  };
  for (const char* piece :
       {": ping\n\nda", "ta: a\r\n", "data:b\n\n", "event: x\nid: 1\ndata: c\n\ndata: st", "op\n\n"}) {
    parser.Feed(piece, sink);
  }
  EXPECT_EQ(events, (std::vector<std::string>{"a\nb", "c", "stop"}));
  SseParser endless;
  bool ok = true;
  for (int i = 0; i < 10 && ok; ++i) ok = endless.Feed(std::string(1 << 20, 'x'), sink);
  EXPECT_TRUE(!ok && endless.too_long());
}

std::string Chunk(const std::string& text) { return json{{"choices", {{{"text", text}, {"index", 0}}}}}.dump(); }

// Streams `max_tokens` words, 2 ms apart.
void ServeCompletions(const std::string& request, int socket) {
  const json body = json::parse(request.substr(request.find("\r\n\r\n") + 4), nullptr, false);
  const int tokens = body.value("max_tokens", 0);
  FakeServer::Send(socket, FakeServer::StreamHead());
  for (int i = 0; i < tokens; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    FakeServer::Send(socket, FakeServer::Event(Chunk("w ")));
  }
  json last = {{"choices", {{{"text", ""}, {"index", 0}, {"finish_reason", "length"}}}}};
  FakeServer::Send(socket, FakeServer::Event(last.dump()));
  const size_t prompt = body["prompt"].is_array() ? body["prompt"].size() : 1;
  json usage = {{"choices", json::array()}, {"usage", {{"prompt_tokens", prompt}, {"completion_tokens", tokens}}}};
  FakeServer::Send(socket, FakeServer::Event(usage.dump()) + FakeServer::Event("[DONE]") + FakeServer::StreamEnd());
}

LoadConfig Config(const FakeServer& server) {
  LoadConfig c;
  c.url = server.url();
  c.model = "m";
  c.concurrency = 4;
  c.requests = 12;
  c.warmup = 2;
  return c;
}
Workload Small() { return Workload({{5, 5}, {3, 6}, 0, 1}, {1, 2, 3}); }

TEST(Load, ClosedLoopAgainstAServer) {
  FakeServer server(ServeCompletions);
  std::vector<LoadProgress> seen;
  const auto records = RunLoad(Config(server), Small(), [&seen](const LoadProgress& p) { seen.push_back(p); });
  ASSERT_TRUE(records.ok());
  EXPECT_EQ(server.connections(), 14);
  const BenchReport report = MakeReport(*records, {1000, 100});
  EXPECT_EQ(report.completed, 12u);
  EXPECT_EQ(report.failed, 0u);
  EXPECT_EQ(report.prompt_tokens, 60u);
  EXPECT_EQ(report.within_slo, 12u);
  EXPECT_EQ(report.itl_ms.count, report.completion_tokens - 12);
  EXPECT_GE(report.ttft_ms.p50, 1.5);
  EXPECT_LE(report.ttft_ms.p50, report.e2e_ms.p50);
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back().ended, 12);
  const json parsed = json::parse(ReportJson(report, R"({"a":1})"));
  EXPECT_EQ(parsed["settings"]["a"], 1);
  EXPECT_EQ(parsed["ttft_ms"]["count"], 12);
  EXPECT_NE(ReportTable(report).find("completed 12, failed 0"), std::string::npos);
}

TEST(Load, OpenLoopKeepsItsRateAndItsBound) {
  FakeServer server(ServeCompletions);
  LoadConfig c = Config(server);
  c.warmup = 0;
  c.rate = 500;
  c.requests = 60;
  c.concurrency = 3;
  const auto records = RunLoad(c, Small(), {});
  ASSERT_TRUE(records.ok());
  const BenchReport report = MakeReport(*records, {});
  EXPECT_EQ(records->size(), 60u);
  // 500/s of about 10 ms each is 5 at once on average: with 3 allowed, some must be refused.
  EXPECT_GT(report.errors.at("client_limit"), 0u);
  EXPECT_EQ(report.completed + report.errors.at("client_limit"), 60u);
}

TEST(Load, DurationEndsTheRun) {
  FakeServer server(ServeCompletions);
  LoadConfig c = Config(server);
  c.requests = 0;
  c.warmup = 0;
  c.duration_s = 0.15;
  const auto start = std::chrono::steady_clock::now();
  const auto records = RunLoad(c, Small(), {});
  ASSERT_TRUE(records.ok());
  EXPECT_GT(records->size(), 4u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(Load, FailuresAreCountedByKind) {
  std::atomic<int> number{0};
  FakeServer server([&number](const std::string& request, int socket) {
    switch (number++ % 4) {
      case 0:
        FakeServer::Send(socket, FakeServer::Answer(429, R"({"error":{"message":"full"}})"));
        break;
      case 1:  // cut in the middle of a chunk
        FakeServer::Send(socket, FakeServer::StreamHead() + FakeServer::Event(Chunk("x")) + "ff\r\nda");
        break;
      case 2:
        FakeServer::Send(socket, FakeServer::StreamHead() + FakeServer::Event(R"({"error":{"message":"x"}})") +
                                     FakeServer::Event("[DONE]") + FakeServer::StreamEnd());
        break;
      default:
        ServeCompletions(request, socket);
    }
  });
  LoadConfig c = Config(server);
  c.warmup = 0;
  c.concurrency = 1;
  c.requests = 8;
  const auto records = RunLoad(c, Small(), {});
  ASSERT_TRUE(records.ok());
  const BenchReport report = MakeReport(*records, {});
  EXPECT_EQ(report.completed, 2u);
  EXPECT_EQ(report.errors, (std::map<std::string, size_t>{{"http_429", 2}, {"broken", 2}, {"stream_error", 2}}));
}

TEST(Load, TimeoutAndNobodyThere) {
  std::atomic<bool> end{false};
  LoadConfig c;
  {
    FakeServer server([&end](const std::string&, int socket) {
      FakeServer::Send(socket, FakeServer::StreamHead());
      while (!end) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    });
    c = Config(server);
    c.warmup = 0;
    c.requests = 2;
    c.timeout_s = 0.1;
    const auto records = RunLoad(c, Small(), {});
    end = true;
    ASSERT_TRUE(records.ok());
    EXPECT_EQ(MakeReport(*records, {}).errors.at("timeout"), 2u);
  }
  const auto records = RunLoad(c, Small(), {});  // the server is gone
  ASSERT_TRUE(records.ok());
  EXPECT_EQ(MakeReport(*records, {}).errors.at("connect"), 2u);
}

TEST(Questions, ModelAndTokens) {
  FakeServer server([](const std::string& request, int socket) {
    const bool models = request.rfind("GET /v1/models", 0) == 0;
    const bool keyed = request.find("Authorization: Bearer k") != std::string::npos;
    if (!keyed) return FakeServer::Send(socket, FakeServer::Answer(401, R"({"error":{"message":"no key"}})"));
    FakeServer::Send(socket, FakeServer::Answer(200, models ? R"({"data":[{"id":"tiny"}]})" : R"({"tokens":[5,3,5]})"));
  });
  EXPECT_EQ(*FirstModel(server.url(), "k"), "tiny");
  EXPECT_EQ(FetchTokenPool(server.url(), "k", "tiny"), (std::vector<uint32_t>{3, 5}));
  EXPECT_TRUE(FetchTokenPool(server.url(), "", "tiny").empty());
  EXPECT_EQ(FirstModel(server.url(), "").status().message(), "GET /v1/models: HTTP status 401: no key");
}

TEST(Exchange, PlainAnswersAndEarlyStop) {
  FakeServer server(ServeCompletions);
  HttpRequest request;
  request.body = R"({"max_tokens":100,"prompt":"x"})";
  int events = 0;
  const HttpOutcome outcome =
      ExchangeBlocking(server.url(), request, [&events](std::string_view) { return ++events < 3; });
  EXPECT_TRUE(outcome.ok() && outcome.stopped);
  EXPECT_EQ(events, 3);
}

}  // namespace
}  // namespace agentserve::tools
