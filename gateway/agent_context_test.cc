#include "gateway/agent_context.h"

#include <gtest/gtest.h>

namespace agentserve::gateway {
namespace {

common::v1::AgentContext Read(HeaderList headers, const std::string& body = "{}") {
  HttpRequest r;
  r.headers = std::move(headers);
  return ReadAgentContext(r, nlohmann::json::parse(body), "key-0");
}

TEST(AgentContext, OwnHeaders) {
  const auto c = Read({{"x-agentserve-program-id", "p"},
                       {"x-agentserve-parent-program-id", "q"},
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
                       {"x-agentserve-depends-on", "a, b,,c"}});
  EXPECT_EQ(c.tenant_id(), "key-0");
  EXPECT_EQ(c.program_id(), "p");
  EXPECT_EQ(c.parent_program_id(), "q");
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
  EXPECT_EQ(c.depends_on_size(), 3);
}

TEST(AgentContext, OrderOfPrecedence) {
  const std::string body = R"({"program_id":"body","session_id":"sid","prompt_cache_key":"pck","priority":5,
    "metadata":{"agent.program_id":"meta","agent.workflow_class":"plan"},
    "nvext":{"agent_hints":{"priority":9,"prefix_id":"nv","osl":12,"strict_priority":true,"total_requests":3}}})";
  HeaderList headers{{"x-session-id", "opencode"},
                     {"session-id", "codex"},
                     {"x-claude-code-session-id", "claude"},
                     {"x-dynamo-session-id", "dynamo"},
                     {"x-agentserve-program-id", "own"}};
  for (const char* want : {"own", "dynamo", "claude", "codex", "opencode"}) {
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
  EXPECT_EQ(Read({}, R"({"prompt_cache_key":"k"})").program_id(), "k");
}

TEST(AgentContext, PriorityOfVllmIsInverted) {
  EXPECT_EQ(Read({}, R"({"priority":5})").priority(), -5);
  EXPECT_EQ(Read({}, R"({"priority":-7})").priority(), 7);
  EXPECT_EQ(Read({}, R"({"priority":-9223372036854775808})").priority(), 100);
  EXPECT_FALSE(Read({}, "{}").has_priority());
}

TEST(AgentContext, Families) {
  const auto dynamo =
      Read({{"x-dynamo-session-id", "a"}, {"x-dynamo-parent-session-id", "b"}, {"x-dynamo-session-final", "true"}});
  EXPECT_EQ(dynamo.parent_program_id(), "b");
  EXPECT_TRUE(dynamo.final());
  const auto claude = Read({{"x-claude-code-session-id", "s"}, {"x-claude-code-agent-id", "x"}});
  EXPECT_EQ(claude.program_id(), "s/x");
  EXPECT_EQ(claude.parent_program_id(), "s");
  EXPECT_EQ(Read({{"x-session-id", "s"}, {"x-parent-session-id", "p"}}).parent_program_id(), "p");
}

TEST(AgentContext, NonsenseNeverFails) {
  const auto c = Read({{"x-agentserve-priority", "high"},
                       {"x-agentserve-final", "maybe"},
                       {"x-agentserve-deadline-ms", "-5"},
                       {"x-agentserve-program-id", std::string(1000, 'x')},
                       {"x-agentserve-unknown", "1"}},
                      R"({"nvext":[1],"metadata":"x","priority":{},"messages":5,"session_id":7})");
  EXPECT_FALSE(c.has_priority());
  EXPECT_EQ(c.program_id().size(), kMaxProgramIdBytes);
  EXPECT_EQ(c.deadline_ms(), 0U);
  EXPECT_EQ(Read({}, R"({"program_id":"bad\u0001id"})").program_id(), "");
}

TEST(AgentContext, ToolOfTheLastMessage) {
  const auto c = Read({}, R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f"}},
    {"id":"2","function":{"name":"g"}}]},{"role":"tool","tool_call_id":"2","content":"x"}]})");
  EXPECT_EQ(c.tool_name(), "g");
}

}  // namespace
}  // namespace agentserve::gateway
