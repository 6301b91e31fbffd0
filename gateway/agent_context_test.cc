#include "gateway/agent_context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace agentserve::gateway {
namespace {

using common::v1::IdentitySource;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

AgentReading ReadAll(HeaderList headers, const std::string& body = "{}", CallerIdentity caller = {"key-0", true}) {
  HttpRequest r;
  r.headers = std::move(headers);
  return ReadAgentContext(r, nlohmann::json::parse(body), caller);
}

common::v1::AgentContext Read(HeaderList headers, const std::string& body = "{}") {
  const AgentReading reading = ReadAll(std::move(headers), body);
  EXPECT_FALSE(reading.error) << reading.error->message;
  return reading.context;
}

TEST(AgentContext, OwnHeaders) {
  const auto c = Read({{"x-agentserve-program-id", "p"},
                       {"x-agentserve-parent-program-id", "q"},
                       {"x-agentserve-call-id", "plan"},
                       {"x-agentserve-workflow-class", "react"},
                       {"x-agentserve-step-index", "3"},
                       {"x-agentserve-steps-left", "4"},
                       {"x-agentserve-blocking", "false"},
                       {"x-agentserve-priority", "500"},
                       {"x-agentserve-strict-tier", "1"},
                       {"x-agentserve-deadline-ms", "2500"},
                       {"x-agentserve-osl", "99"},
                       {"x-agentserve-total-calls", "7"},
                       {"x-agentserve-tool-name", "search"},
                       {"x-agentserve-tool-gap-ms", "10"},
                       {"x-agentserve-kv-retain-ms", "20"},
                       {"x-agentserve-final", "true"},
                       {"x-agentserve-timeline", "1"},
                       {"x-agentserve-budget-ms", "not ours to judge"},
                       {"x-agentserve-depends-on", "a, b,,c"}});
  EXPECT_EQ(c.tenant_id(), "key-0");
  EXPECT_EQ(c.program_id(), "p");
  EXPECT_EQ(c.identity(), common::v1::IDENTITY_SOURCE_OWN);
  EXPECT_EQ(c.parent_program_id(), "q");
  EXPECT_EQ(c.call_id(), "plan");
  EXPECT_EQ(c.workflow_class(), "react");
  EXPECT_EQ(c.step_index(), 3U);
  EXPECT_EQ(c.steps_left_hint(), 4U);
  EXPECT_FALSE(c.blocking());
  EXPECT_EQ(c.priority(), 100) << "clamped";
  EXPECT_EQ(c.strict_tier(), 1U);
  EXPECT_EQ(c.deadline_ms(), 2500U);
  EXPECT_EQ(c.osl_hint(), 99U);
  EXPECT_EQ(c.total_calls_hint(), 7U);
  EXPECT_EQ(c.tool_name(), "search");
  EXPECT_EQ(c.tool_gap_ms_hint(), 10U);
  EXPECT_EQ(c.kv_retain_ms(), 20U);
  EXPECT_TRUE(c.final());
  EXPECT_THAT(c.depends_on(), ElementsAre("a", "b", "c"));
}

// What each dialect says, alone.
struct Dialect {
  const char* name;
  HeaderList headers;
  std::string body;
  std::string program, parent;
  bool final;
  IdentitySource source;
};

std::vector<Dialect> Dialects() {
  using namespace common::v1;
  return {
      {"dynamo session",
       {{"x-dynamo-session-id", "run-42:researcher"},
        {"x-dynamo-parent-session-id", "run-42"},
        {"x-dynamo-session-final", "true"}},
       "{}",
       "run-42:researcher",
       "run-42",
       true,
       IDENTITY_SOURCE_DYNAMO},
      {"dynamo trajectory",
       {{"x-dynamo-trajectory-id", "a"}, {"x-dynamo-parent-trajectory-id", "b"}, {"x-dynamo-trajectory-final", "true"}},
       "{}",
       "a",
       "b",
       true,
       IDENTITY_SOURCE_DYNAMO},
      {"claude code, root", {{"x-claude-code-session-id", "s"}}, "{}", "s", "", false, IDENTITY_SOURCE_CLAUDE_CODE},
      {"claude code, sub-agent",
       {{"x-claude-code-session-id", "s"}, {"x-claude-code-agent-id", "x"}},
       "{}",
       "s/x",
       "s",
       false,
       IDENTITY_SOURCE_CLAUDE_CODE},
      {"claude code, sub-agent of a sub-agent",
       {{"x-claude-code-session-id", "s"}, {"x-claude-code-agent-id", "y"}, {"x-claude-code-parent-agent-id", "x"}},
       "{}",
       "s/y",
       "s/x",
       false,
       IDENTITY_SOURCE_CLAUDE_CODE},
      {"codex, root", {{"session-id", "c"}, {"thread-id", "c"}}, "{}", "c", "", false, IDENTITY_SOURCE_CODEX},
      {"codex, sub-agent",
       {{"session-id", "c"}, {"thread-id", "t"}, {"x-codex-parent-thread-id", "c"}},
       "{}",
       "c/t",
       "c",
       false,
       IDENTITY_SOURCE_CODEX},
      {"codex, thread only", {{"thread-id", "t"}}, "{}", "t", "", false, IDENTITY_SOURCE_CODEX},
      {"opencode", {{"x-session-id", "o"}}, "{}", "o", "", false, IDENTITY_SOURCE_OPENCODE},
      {"opencode, child",
       {{"x-session-id", "o"}, {"x-parent-session-id", "p"}},
       "{}",
       "o",
       "p",
       false,
       IDENTITY_SOURCE_OPENCODE},
      {"sglang gateway", {{"x-smg-routing-key", "k"}}, "{}", "k", "", false, IDENTITY_SOURCE_ROUTING_KEY},
      {"nvext", {}, R"({"nvext":{"agent_hints":{"prefix_id":"n"}}})", "n", "", false, IDENTITY_SOURCE_NVEXT},
      {"body program", {}, R"({"program_id":"b","parent_program_id":"q"})", "b", "q", false, IDENTITY_SOURCE_BODY},
      {"body program as a number", {}, R"({"program_id":17})", "17", "", false, IDENTITY_SOURCE_BODY},
      {"body session", {}, R"({"session_id":"s"})", "s", "", false, IDENTITY_SOURCE_BODY},
      {"metadata",
       {},
       R"({"metadata":{"agent.program_id":"m","agent.parent_program_id":"mp","agent.final":"true"}})",
       "m",
       "mp",
       true,
       IDENTITY_SOURCE_METADATA},
      {"cache key", {}, R"({"prompt_cache_key":"k"})", "k", "", false, IDENTITY_SOURCE_CACHE_KEY},
      {"nothing", {}, "{}", "", "", false, IDENTITY_SOURCE_UNSPECIFIED},
  };
}

TEST(AgentContext, EveryDialect) {
  for (const Dialect& d : Dialects()) {
    const AgentReading reading = ReadAll(d.headers, d.body);
    const auto& c = reading.context;
    EXPECT_EQ(c.program_id(), d.program) << d.name;
    EXPECT_EQ(c.parent_program_id(), d.parent) << d.name;
    EXPECT_EQ(c.final(), d.final) << d.name;
    EXPECT_EQ(c.identity(), d.source) << d.name;
    EXPECT_THAT(reading.ignored, IsEmpty()) << d.name;
    EXPECT_FALSE(reading.error) << d.name;
  }
}

TEST(AgentContext, OrderOfPrecedence) {
  const std::string body = R"({"program_id":"body","session_id":"sid","prompt_cache_key":"pck","priority":5,
    "metadata":{"agent.program_id":"meta","agent.workflow_class":"plan"},
    "nvext":{"agent_hints":{"priority":9,"prefix_id":"nv","osl":12,"strict_priority":true,"total_requests":3}}})";
  HeaderList headers{
      {"x-smg-routing-key", "smg"},           {"x-session-id", "opencode"},          {"session-id", "codex"},
      {"x-claude-code-session-id", "claude"}, {"x-dynamo-trajectory-id", "traject"}, {"x-dynamo-session-id", "dynamo"},
      {"x-agentserve-program-id", "own"}};
  for (const char* want : {"own", "dynamo", "traject", "claude", "codex", "opencode", "smg"}) {
    EXPECT_EQ(Read(headers, body).program_id(), want);
    headers.pop_back();
  }
  const auto c = Read({}, body);
  EXPECT_EQ(c.program_id(), "nv");
  EXPECT_EQ(c.priority(), 9) << "nvext is before the body field";
  EXPECT_EQ(c.osl_hint(), 12U);
  EXPECT_EQ(c.strict_tier(), 1U);
  EXPECT_EQ(c.workflow_class(), "plan");
  EXPECT_EQ(Read({}, R"({"program_id":"b","prompt_cache_key":"k"})").program_id(), "b");
  EXPECT_EQ(Read({}, R"({"session_id":"s","metadata":{"agent.program_id":"m"}})").program_id(), "s");
  EXPECT_EQ(Read({}, R"({"metadata":{"agent.program_id":"m"},"prompt_cache_key":"k"})").program_id(), "m");
  const auto previous = Read({}, R"({"previous_response_id":"chatcmpl-1","prompt_cache_key":"k"})");
  EXPECT_EQ(previous.previous_response_id(), "chatcmpl-1") << "the router prefers it to the key";
  EXPECT_EQ(previous.program_id(), "k");
}

TEST(AgentContext, AParentComesWithItsProgram) {
  // The parents of other sources do not mix in: they would name programs of another dialect.
  const auto c = Read({{"x-dynamo-session-id", "d"}, {"x-session-id", "o"}, {"x-parent-session-id", "op"}});
  EXPECT_EQ(c.program_id(), "d");
  EXPECT_EQ(c.parent_program_id(), "");
  // Ours goes with any program.
  const auto own =
      Read({{"x-agentserve-parent-program-id", "mine"}, {"x-session-id", "o"}, {"x-parent-session-id", "p"}});
  EXPECT_EQ(own.program_id(), "o");
  EXPECT_EQ(own.parent_program_id(), "mine");
  EXPECT_EQ(Read({{"x-session-id", "o"}, {"x-parent-session-id", "o"}}).parent_program_id(), "")
      << "nobody's own parent";
  // Dynamo's end marker counts beside native ids; our own word counts first.
  EXPECT_TRUE(Read({{"x-session-id", "o"}, {"x-dynamo-session-final", "true"}}).final());
  EXPECT_FALSE(Read({{"x-agentserve-final", "false"}, {"x-dynamo-session-final", "true"}}).final());
  EXPECT_FALSE(Read({{"x-agentserve-final", "false"}}, R"({"metadata":{"agent.final":"true"}})").final());
}

TEST(AgentContext, PriorityOfVllmIsInverted) {
  EXPECT_EQ(Read({}, R"({"priority":5})").priority(), -5);
  EXPECT_EQ(Read({}, R"({"priority":-7})").priority(), 7);
  EXPECT_EQ(Read({}, R"({"priority":-9223372036854775808})").priority(), 100);
  EXPECT_EQ(Read({}, R"({"priority":1e300})").priority(), -100);
  EXPECT_FALSE(Read({}, "{}").has_priority());
  EXPECT_EQ(Read({{"x-dynamo-request-priority", "3"}}, R"({"priority":5})").priority(), 3) << "Dynamo's is not";
}

TEST(AgentContext, HintsOfTheNeMoAgentToolkit) {
  const auto c = Read({}, R"({"nvext":{"agent_hints":{"osl":"HIGH","iat":"LOW","priority":990,"total_requests":10,
    "latency_sensitivity":2}}})");
  EXPECT_EQ(c.osl_hint(), 2048U);
  EXPECT_EQ(c.tool_gap_ms_hint(), 50U);
  EXPECT_EQ(c.priority(), 100);
  EXPECT_EQ(c.total_calls_hint(), 10U);
  const auto n = Read({{"x-dynamo-request-strict-priority", "2"}},
                      R"({"nvext":{"agent_hints":{"osl":77,"iat":1234,"strict_priority":1}}})");
  EXPECT_EQ(n.osl_hint(), 77U);
  EXPECT_EQ(n.tool_gap_ms_hint(), 1234U);
  EXPECT_EQ(n.strict_tier(), 2U) << "headers override the body";
}

TEST(AgentContext, BadValuesInOurOwnHeadersAreErrors) {
  const std::pair<const char*, std::string> bad[] = {
      {"x-agentserve-priority", "high"},
      {"x-agentserve-deadline-ms", "5s"},
      {"x-agentserve-osl", "1.5"},
      {"x-agentserve-strict-tier", "99999999999999999999999"},
      {"x-agentserve-final", "maybe"},
      {"x-agentserve-blocking", "2"},
      {"x-agentserve-program-id", std::string(129, 'x')},
      {"x-agentserve-workflow-class", "caf\xC3\xA9"},
      {"x-agentserve-depends-on", "a," + std::string(129, 'x')},
  };
  for (const auto& [header, value] : bad) {
    const AgentReading r = ReadAll({{header, value}});
    ASSERT_TRUE(r.error) << header;
    EXPECT_EQ(r.error->status, 400);
    EXPECT_EQ(r.error->param, header);
    EXPECT_THAT(r.error->message, HasSubstr(header));
    EXPECT_LT(r.error->message.size(), 300U);
  }
  std::string many = "a";
  for (int i = 0; i < 64; ++i) many += ",a" + std::to_string(i);
  EXPECT_THAT(ReadAll({{"x-agentserve-depends-on", many}}).error->message, HasSubstr("65 names; at most 64"));
  EXPECT_EQ(Read({{"x-agentserve-deadline-ms", "-5"}}).deadline_ms(), 0U) << "out of range is clamped";
  EXPECT_FALSE(Read({{"x-agentserve-priority", ""}}).has_priority()) << "empty is absent";
}

TEST(AgentContext, BadValuesInOtherDialectsAreLeftOutAndCounted) {
  const std::tuple<const char*, HeaderList, std::string> bad[] = {
      {"own_header", {{"x-agentserve-proirity", "1"}}, "{}"},
      {"dynamo", {{"x-dynamo-session-id", std::string(1025, 'x')}}, "{}"},
      {"dynamo", {{"x-dynamo-session-final", "perhaps"}}, "{}"},
      {"dynamo", {{"x-dynamo-request-priority", "high"}}, "{}"},
      {"claude_code", {{"x-claude-code-session-id", "caf\xC3\xA9"}}, "{}"},
      {"codex", {{"session-id", "\x01"}}, "{}"},
      {"opencode", {{"x-session-id", "\x7F"}}, "{}"},
      {"smg", {{"x-smg-routing-key", std::string(5000, 'x')}}, "{}"},
      {"nvext", {}, R"({"nvext":{"agent_hints":{"osl":"ENORMOUS"}}})"},
      {"nvext", {}, R"({"nvext":{"agent_hints":{"prefix_id":{}}}})"},
      {"body", {}, R"({"program_id":["x"]})"},
      {"body", {}, R"({"program_id":"bad\u0001id"})"},
      {"body", {}, R"({"priority":{}})"},
      {"metadata", {}, R"({"metadata":{"agent.osl":"many","agent.name":"free text is anybody's"}})"},
  };
  for (const auto& [source, headers, body] : bad) {
    const AgentReading r = ReadAll(headers, body);
    EXPECT_FALSE(r.error) << source << " " << body;
    EXPECT_THAT(r.ignored, ElementsAre(source)) << body;
    EXPECT_EQ(r.context.program_id(), "") << source << " " << body;
    EXPECT_EQ(r.context.identity(), common::v1::IDENTITY_SOURCE_UNSPECIFIED);
  }
  for (const char* odd : {R"({"nvext":[1],"metadata":"x","messages":5})", R"({"nvext":null,"metadata":null})",
                          R"({"nvext":{"agent_hints":7},"messages":[]})", R"({"messages":[1,"x",{"role":3}]})"}) {
    EXPECT_FALSE(ReadAll({}, odd).error) << odd;
  }
}

TEST(AgentContext, LongForeignIdsStayDistinct) {
  const std::string a(300, 'x');
  const auto one = Read({{"x-session-id", a + "1"}}), two = Read({{"x-session-id", a + "2"}});
  EXPECT_EQ(one.program_id().size(), kMaxProgramIdBytes);
  EXPECT_NE(one.program_id(), two.program_id());
  EXPECT_EQ(one.program_id(), Read({{"x-session-id", a + "1"}}).program_id());
  // Two ids of allowed length that are too long together.
  const std::string half(100, 's');
  EXPECT_EQ(Read({{"x-claude-code-session-id", half}, {"x-claude-code-agent-id", "a" + half}}).program_id().size(),
            kMaxProgramIdBytes);
}

TEST(AgentContext, TenantIsTheKeyOrWhatTheBodyNames) {
  const std::string body = R"({"user":"u","safety_identifier":"s"})";
  EXPECT_EQ(ReadAll({}, body, {"team", true}).context.tenant_id(), "team") << "a key cannot be talked out of it";
  EXPECT_EQ(ReadAll({}, body, {"anonymous", false}).context.tenant_id(), "s");
  EXPECT_EQ(ReadAll({}, R"({"user":"u"})", {"anonymous", false}).context.tenant_id(), "u");
  EXPECT_EQ(ReadAll({}, R"({"user":7})", {"anonymous", false}).context.tenant_id(), "anonymous");
  EXPECT_EQ(ReadAll({{"x-agentserve-tenant-id", "root"}}, "{}", {"team", true}).context.tenant_id(), "team");
}

TEST(AgentContext, TurnAndToolOfTheMessages) {
  const auto c = Read({}, R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f"}},
    {"id":"2","function":{"name":"g"}}]},{"role":"tool","tool_call_id":"2","content":"x"}]})");
  EXPECT_EQ(c.tool_name(), "g");
  EXPECT_EQ(c.turn(), common::v1::TURN_LATER);
  EXPECT_EQ(Read({}, R"({"messages":[{"role":"system"},{"role":"user"}]})").turn(), common::v1::TURN_FIRST);
  EXPECT_EQ(Read({}, R"({"prompt":"x"})").turn(), common::v1::TURN_UNSPECIFIED);
}

TEST(AgentContext, ProgramIdsOfPaths) {
  EXPECT_EQ(GoodProgramId("s/x y"), "s/x y");
  EXPECT_FALSE(GoodProgramId(""));
  EXPECT_FALSE(GoodProgramId(std::string(129, 'x')));
  EXPECT_FALSE(GoodProgramId("a\nb"));
}

}  // namespace
}  // namespace agentserve::gateway
