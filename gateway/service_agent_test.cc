// What the gateway does for agents: hints to the router, /v1/agentserve/*, tool calls reported.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "gateway/testing/gateway_fixture.h"

namespace agentserve::gateway::testing {
namespace {

using base::StrCat;
using nlohmann::json;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kHello[] = R"({"messages":[{"role":"user","content":"hi"}]})";
constexpr char kTeamA[] = "authorization: Bearer secret-a\r\n";

std::string Ask(std::string_view method, std::string_view path, std::string_view body, std::string_view headers = "") {
  return StrCat(method, " ", path, " HTTP/1.1\r\nhost: x\r\n", headers, "content-length: ", body.size(), "\r\n\r\n",
                body);
}

void TwoTeams(GatewayConfig& c) {
  c.api_keys = {"secret-a", "secret-b", "secret-c"};
  c.api_key_names = {"team-a", "", "team-a"};
}

TEST(Agents, KeysNameTenants) {
  GatewayFixture g(TwoTeams);
  const std::pair<const char*, const char*> tenants[] = {
      {"secret-a", "team-a"}, {"secret-b", "key-1"}, {"secret-c", "team-a"}};
  for (const auto& [key, tenant] : tenants) {
    g.Ask(Post("/v1/chat/completions", kHello, StrCat("authorization: Bearer ", key, "\r\n")));
    EXPECT_EQ(g.router().last_request().agent().tenant_id(), tenant);
  }
}

TEST(Agents, WithoutKeysTheBodyNamesTheTenant) {
  GatewayFixture g;
  g.Ask(Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}],"user":"u1"})"));
  EXPECT_EQ(g.router().last_request().agent().tenant_id(), "u1");
  g.Ask(Post("/v1/completions", R"({"prompt":"hi","safety_identifier":"s1","user":"u1"})"));
  EXPECT_EQ(g.router().last_request().agent().tenant_id(), "s1");
}

TEST(Agents, BadHintsOfOurOwnAre400AndOthersAreCounted) {
  GatewayFixture g;
  const RawResponse bad = g.Ask(Post("/v1/chat/completions", kHello, "X-AgentServe-Priority: soon\r\n"));
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(json::parse(bad.body)["error"]["param"], "x-agentserve-priority");
  EXPECT_EQ(g.router().generate_calls, 0);
  EXPECT_EQ(g.Ask(Post("/v1/chat/completions", kHello, "x-dynamo-request-priority: soon\r\n")).status, 200);
  EXPECT_THAT(g.Metrics(), HasSubstr("agentserve_gateway_agent_hints_ignored_total{source=\"dynamo\"} 1"));
  EXPECT_THAT(g.Metrics(), HasSubstr("agentserve_gateway_agent_hints_ignored_total{source=\"nvext\"} 0"));
}

TEST(Agents, RepliesSayWhatTheRouterMadeOfThem) {
  GatewayFixture g;
  g.router().set_script([](const pb::GenerateRequest&) {
    Script s = Say({"x"});
    s.steps[0].event.mutable_accepted()->set_request_id("rid");
    s.steps[0].event.mutable_accepted()->set_program_id("prog");
    return s;
  });
  for (const char* extra : {"", R"(,"stream":true)"}) {
    const RawResponse r =
        g.Ask(Post("/v1/chat/completions", StrCat(R"({"messages":[{"role":"user","content":"hi"}])", extra, "}")));
    EXPECT_EQ(r.headers.at("x-agentserve-request-id"), "rid") << extra;
    EXPECT_EQ(r.headers.at("x-agentserve-program-id"), "prog") << extra;
    EXPECT_THAT(r.body, HasSubstr(g.router().last_request().trace().response_id()));
    EXPECT_THAT(g.router().last_request().trace().response_id(), StartsWith("chatcmpl-"));
  }
}

TEST(Agents, DecisionsAreShownToTheirTenant) {
  GatewayFixture g(TwoTeams);
  EXPECT_EQ(g.Ask(Get("/v1/agentserve/requests/known-1/decision")).status, 401);
  const RawResponse r = g.Ask(Get("/v1/agentserve/requests/known-1/decision", kTeamA));
  ASSERT_EQ(r.status, 200) << r.body;
  const json d = json::parse(r.body);
  EXPECT_EQ(d["request_id"], "known-1");
  EXPECT_EQ(d["program_named_by"], "claude_code");
  EXPECT_EQ(d["order"]["passed_over"]["no_slot"], 3);
  EXPECT_EQ(d["place"]["candidates"][0]["verdict"], "chosen");
  EXPECT_EQ(d["timeline"]["queue_ms"], 1.5);
  EXPECT_TRUE(d["response_id"].is_null());
  EXPECT_EQ(g.Ask(Get("/v1/agentserve/requests/other/decision", kTeamA)).status, 404);
  EXPECT_EQ(g.Ask(Get("/v1/agentserve/decisions?program_id=a%2Fb&limit=7", kTeamA)).status, 200);
  EXPECT_EQ(g.Ask(Get("/v1/agentserve/decisions?limit=x", kTeamA)).status, 400);
  EXPECT_THAT(g.router().agent_calls(),
              ElementsAre("explain team-a known-1", "explain team-a other", "list team-a a/b 7"));
}

TEST(Agents, WithoutKeysTheQueryNamesTheTenant) {
  GatewayFixture g;
  g.Ask(Get("/v1/agentserve/decisions"));
  g.Ask(Get("/v1/agentserve/decisions?user=u1"));
  EXPECT_THAT(g.router().agent_calls(), ElementsAre("list anonymous  0", "list u1  0"));
}

TEST(Agents, ProgramsEndAndToolsAreReported) {
  GatewayFixture g(TwoTeams);
  const std::string tool = R"({"tool":"search","phase":"start"})";
  EXPECT_EQ(g.Ask(Post("/v1/agentserve/programs/known%2Fa/tool", tool, kTeamA)).status, 200);
  EXPECT_EQ(g.Ask(Post("/v1/agentserve/programs/nope/tool", tool, kTeamA)).status, 404);
  for (const char* bad : {"{}", R"({"phase":"begin"})", R"({"phase":"end","tool":7})", "[]", "x"}) {
    EXPECT_EQ(g.Ask(Post("/v1/agentserve/programs/known/tool", bad, kTeamA)).status, 400) << bad;
  }
  EXPECT_EQ(g.Ask(Ask("DELETE", "/v1/agentserve/programs/known", "", kTeamA)).status, 200);
  const RawResponse gone = g.Ask(Ask("DELETE", "/v1/agentserve/programs/nope", "", kTeamA));
  EXPECT_EQ(gone.status, 404);
  EXPECT_EQ(json::parse(gone.body)["error"]["code"], "program_not_found");
  EXPECT_EQ(g.Ask(Get("/v1/agentserve/programs/known", kTeamA)).status, 405);
  EXPECT_EQ(g.Ask(Ask("DELETE", StrCat("/v1/agentserve/programs/", std::string(129, 'x')), "", kTeamA)).status, 400);
  EXPECT_THAT(g.router().agent_calls(), ElementsAre("tool team-a known/a search 1", "tool team-a nope search 1",
                                                    "end team-a known", "end team-a nope"));
}

TEST(Agents, CallsAreDeclared) {
  GatewayFixture g(TwoTeams);
  const std::string plan = R"({"calls":[{"id":"a","osl":5},{"id":"b","depends_on":["a","x"]}]})";
  const RawResponse r = g.Ask(Ask("PUT", "/v1/agentserve/programs/p", plan, kTeamA));
  ASSERT_EQ(r.status, 200) << r.body;
  EXPECT_EQ(json::parse(r.body)["pending_calls"], 2);
  for (const char* bad : {"{}", R"({"calls":7})", R"({"calls":[{}]})", R"({"calls":[{"id":"a","depends_on":[1]}]})",
                          R"({"calls":[{"id":"a","osl":-1}]})"}) {
    EXPECT_EQ(g.Ask(Ask("PUT", "/v1/agentserve/programs/p", bad, kTeamA)).status, 400) << bad;
  }
  EXPECT_THAT(g.router().agent_calls(), ElementsAre("declare team-a p a<5 b<a,x,0"));
}

TEST(Agents, ToolCallsOfAnswersAreReported) {
  GatewayFixture g(TwoTeams);
  g.router().set_script([](const pb::GenerateRequest& request) {
    Script s = Say({PromptOf(request) == "call" ? R"({"name": "get_weather", "parameters": {"city": "Rome"}})" : "no"});
    s.steps[0].event.mutable_accepted()->set_request_id("rid");
    return s;
  });
  const auto ask = [&](const char* what, const char* extra) {
    return g.Ask(Post("/v1/chat/completions",
                      StrCat(R"({"messages":[{"role":"user","content":")", what,
                             R"("}],"tools":[{"type":"function","function":{"name":"get_weather"}}])", extra, "}"),
                      kTeamA));
  };
  EXPECT_EQ(json::parse(ask("speak", "").body)["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(g.router().agent_calls().empty());
  EXPECT_EQ(json::parse(ask("call", "").body)["choices"][0]["finish_reason"], "tool_calls");
  ask("call", R"(,"stream":true)");
  EXPECT_TRUE(GatewayFixture::Eventually([&] { return g.router().agent_calls().size() == 2; }));
  EXPECT_THAT(g.router().agent_calls(), Contains("tool team-a rid get_weather 1").Times(2));
}

}  // namespace
}  // namespace agentserve::gateway::testing
