// What the router knows of agents, over gRPC: programs, dependent calls, tools, explanations; and the tenants' file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "router/service/request_index.h"
#include "router/service/router_fixture.h"
#include "router/service/tenant_file.h"

namespace agentserve::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AgentTest : public RouterFixture {
 protected:
  v1::GenerateRequest Chat(const std::vector<std::pair<std::string, std::string>>& messages) {
    v1::GenerateRequest r = Ask("", 3);
    r.clear_text();
    for (const auto& [role, content] : messages) {
      auto* m = r.mutable_chat()->add_messages();
      m->set_role(role);
      m->set_content(content);
    }
    r.mutable_agent()->set_tenant_id("t");
    return r;
  }
  v1::GenerateRequest Call(const std::string& program, const std::string& call, std::vector<std::string> needs,
                           uint32_t tokens = 3) {
    v1::GenerateRequest r = Ask("hello", tokens);
    r.mutable_agent()->set_tenant_id("t");
    r.mutable_agent()->set_program_id(program);
    r.mutable_agent()->set_call_id(call);
    for (auto& n : needs) r.mutable_agent()->add_depends_on(n);
    return r;
  }
  grpc::Status Explain(const std::string& id, v1::Decision* out, const std::string& tenant = "t") {
    grpc::ClientContext context;
    v1::ExplainRequest request;
    v1::ExplainResponse response;
    request.set_request_id(id);
    request.set_tenant_id(tenant);
    const grpc::Status s = stub_->Explain(&context, request, &response);
    *out = response.decision();
    return s;
  }
  v1::Decision Why(const std::string& id) {
    v1::Decision d;
    const grpc::Status s = Explain(id, &d);
    EXPECT_TRUE(s.ok()) << s.error_message();
    return d;
  }
  bool ReportTool(const std::string& program, const std::string& request_id, const std::string& tool) {
    grpc::ClientContext context;
    v1::ReportToolRequest request;
    v1::ReportToolResponse response;
    request.set_tenant_id("t");
    request.set_program_id(program);
    request.set_request_id(request_id);
    request.set_tool_name(tool);
    request.set_phase(v1::ReportToolRequest::PHASE_START);
    EXPECT_TRUE(stub_->ReportTool(&context, request, &response).ok());
    return response.known();
  }
  bool EndProgram(const std::string& program) {
    grpc::ClientContext context;
    v1::EndProgramRequest request;
    v1::EndProgramResponse response;
    request.set_tenant_id("t");
    request.set_program_id(program);
    EXPECT_TRUE(stub_->EndProgram(&context, request, &response).ok());
    return response.known();
  }
  void AwaitWaiting(size_t n) {
    for (int i = 0; i < 500; ++i) {
      size_t waiting = 0;
      router_->shell().loop().Call([&] { waiting = router_->shell().core().graph().waiting(); });
      if (waiting == n) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "never were " << n << " calls waiting";
  }
};

const std::string kQuestion = "What is the weather like in Rome today, and what should I wear when I go out?";

TEST_F(AgentTest, TwoTurnsWithoutAnyHintAreOneProgram) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  const Answer one = Generate(Chat({{"user", kQuestion}}));
  ASSERT_TRUE(one.status.ok()) << one.status.error_message();
  const Answer two = Generate(Chat({{"user", kQuestion}, {"assistant", "Warm."}, {"user", "And tomorrow?"}}));
  const Answer other = Generate(Chat({{"user", kQuestion + " Please answer briefly."}}));
  const v1::Decision first = Why(one.request_id), second = Why(two.request_id), third = Why(other.request_id);
  EXPECT_EQ(first.identity(), common::v1::IDENTITY_SOURCE_NEW);
  EXPECT_EQ(second.identity(), common::v1::IDENTITY_SOURCE_PREFIX);
  EXPECT_EQ(second.program_id(), first.program_id());
  EXPECT_THAT(first.program_id(), HasSubstr("auto-"));
  EXPECT_NE(third.program_id(), first.program_id());
  EXPECT_TRUE(EndProgram(first.program_id()));
  EXPECT_FALSE(EndProgram(first.program_id()));
}

TEST_F(AgentTest, ExplanationsNameTheCallByAllItsIds) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  v1::GenerateRequest r = Call("p", "", {});
  r.mutable_trace()->set_client_request_id("label-1");
  r.mutable_trace()->set_response_id("chatcmpl-1");
  r.mutable_agent()->set_osl_hint(5000);
  r.mutable_agent()->set_workflow_class("react");
  const Answer a = Generate(r);
  ASSERT_TRUE(a.status.ok());
  for (const std::string& id : {a.request_id, std::string("label-1"), std::string("chatcmpl-1")}) {
    const v1::Decision e = Why(id);
    EXPECT_EQ(e.request_id(), a.request_id);
    EXPECT_EQ(e.state(), "ended");
    EXPECT_EQ(e.end_reason(), "done");
    EXPECT_EQ(e.identity(), common::v1::IDENTITY_SOURCE_OWN);
    EXPECT_EQ(e.workflow_class(), "react");
    EXPECT_THAT(e.clamped_hints(), ElementsAre("osl"));
    ASSERT_TRUE(e.has_record());
    EXPECT_EQ(e.decode_worker(), "decode-0");
    EXPECT_FALSE(e.pick().empty());
    EXPECT_FALSE(e.place().empty());
    ASSERT_EQ(e.candidates_size(), 1);
    EXPECT_EQ(e.candidates(0).verdict(), "chosen");
    EXPECT_EQ(e.completion_tokens(), 3U);
    EXPECT_GT(e.timeline().total_ms(), 0);
  }
  v1::Decision e;
  EXPECT_EQ(Explain(a.request_id, &e, "u").error_code(), grpc::StatusCode::NOT_FOUND) << "another tenant's";
  EXPECT_EQ(Explain("label-1", &e, "u").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Explain("chatcmpl-1", &e, "").ok()) << "operators name no tenant";
  const grpc::Status unknown = Explain("nothing", &e);
  EXPECT_EQ(Reason(unknown), "REQUEST_NOT_FOUND");
}

TEST_F(AgentTest, AListHasTheNewestFirst) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  std::vector<std::string> ids;
  for (const char* program : {"a", "b", "a"}) ids.push_back(Generate(Call(program, "", {})).request_id);
  const auto list = [&](const std::string& tenant, const std::string& program, uint32_t limit) {
    grpc::ClientContext context;
    v1::ListDecisionsRequest request;
    v1::ListDecisionsResponse response;
    request.set_tenant_id(tenant);
    request.set_program_id(program);
    request.set_limit(limit);
    EXPECT_TRUE(stub_->ListDecisions(&context, request, &response).ok());
    std::vector<std::string> out;
    for (const auto& e : response.decisions()) out.push_back(e.request_id());
    return out;
  };
  EXPECT_THAT(list("t", "", 0), ElementsAre(ids[2], ids[1], ids[0]));
  EXPECT_THAT(list("t", "a", 0), ElementsAre(ids[2], ids[0]));
  EXPECT_THAT(list("", "", 1), ElementsAre(ids[2]));
  EXPECT_TRUE(list("u", "", 0).empty());
}

TEST_F(AgentTest, APreviousResponseNamesTheProgram) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  v1::GenerateRequest first = Call("mine", "", {});
  first.mutable_trace()->set_response_id("chatcmpl-1");
  ASSERT_TRUE(Generate(first).status.ok());
  v1::GenerateRequest next = Ask("x", 3);
  next.mutable_agent()->set_tenant_id("t");
  next.mutable_agent()->set_previous_response_id("chatcmpl-1");
  v1::Decision e = Why(Generate(next).request_id);
  EXPECT_EQ(e.program_id(), "mine");
  EXPECT_EQ(e.identity(), common::v1::IDENTITY_SOURCE_PREVIOUS_RESPONSE);
  // It says more than a cache key, and less than a name.
  next.mutable_agent()->set_program_id("key");
  next.mutable_agent()->set_identity(common::v1::IDENTITY_SOURCE_CACHE_KEY);
  EXPECT_EQ(Why(Generate(next).request_id).program_id(), "mine");
  next.mutable_agent()->set_identity(common::v1::IDENTITY_SOURCE_OWN);
  EXPECT_EQ(Why(Generate(next).request_id).program_id(), "key");
  // Another tenant's reply is nobody's.
  next.mutable_agent()->set_tenant_id("u");
  next.mutable_agent()->clear_program_id();
  const Answer foreign = Generate(next);
  ASSERT_TRUE(foreign.status.ok());
  ASSERT_TRUE(Explain(foreign.request_id, &e, "u").ok());
  EXPECT_EQ(e.program_id(), "");
}

TEST_F(AgentTest, DependentCallsWaitAndSayForWhat) {
  StartRouter();
  auto d = Worker("decode-0", [](auto* o) { o->step_us = 5'000; });
  AwaitReady(1);
  Answer root, join;
  std::thread a([&] { root = Generate(Call("p", "root", {}, 40)); });
  v1::GenerateRequest request = Call("p", "join", {"root"});
  request.mutable_trace()->set_client_request_id("the-join");
  std::thread b([&] { join = Generate(request); });
  AwaitWaiting(1);
  const v1::Decision e = Why("the-join");
  EXPECT_EQ(e.state(), "waiting");
  EXPECT_THAT(e.waits_for(), ElementsAre("root"));
  EXPECT_FALSE(e.has_record());
  a.join();
  b.join();
  EXPECT_TRUE(root.status.ok());
  ASSERT_TRUE(join.status.ok()) << join.status.error_message();
  EXPECT_GT(join.final.timeline().dependency_ms(), 0);
  EXPECT_EQ(Why("the-join").state(), "ended");
}

TEST_F(AgentTest, BadDependenciesAreRefusedClearly) {
  StartRouter([](auto* c) { c->core.unknown_dependency_grace = 50 * base::kNsPerMs; });
  auto d = Worker("decode-0");
  AwaitReady(1);
  const Answer unknown = Generate(Call("p", "b", {"nobody"}));
  EXPECT_EQ(unknown.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Reason(unknown.status), "BAD_DEPENDENCY");
  EXPECT_THAT(unknown.status.error_message(), HasSubstr("\"nobody\""));
  const Answer self = Generate(Call("p", "c", {"c"}));
  EXPECT_EQ(Reason(self.status), "BAD_DEPENDENCY");
  EXPECT_THAT(self.status.error_message(), HasSubstr("circle"));
  EXPECT_EQ(Reason(Generate(Call("", "c", {})).status), "INVALID_FIELD") << "a call's name needs a program";
  EXPECT_EQ(Reason(Generate(Call("p", std::string("a\0b", 3), {})).status), "INVALID_FIELD");
  EXPECT_EQ(Reason(Generate(Call("p", "", std::vector<std::string>(65, "x"))).status), "INVALID_FIELD");
  EXPECT_EQ(Reason(Generate(Call("p", "", {""})).status), "INVALID_FIELD");
}

TEST_F(AgentTest, DeclaredProgramsAndTools) {
  StartRouter();
  auto d = Worker("decode-0");
  AwaitReady(1);
  const auto declare = [&](std::vector<std::pair<std::string, std::string>> calls) {
    grpc::ClientContext context;
    v1::DeclareProgramRequest request;
    v1::DeclareProgramResponse response;
    request.set_tenant_id("t");
    request.set_program_id("p");
    for (auto& [id, need] : calls) {
      auto* c = request.add_calls();
      c->set_call_id(id);
      if (!need.empty()) c->add_depends_on(need);
    }
    const grpc::Status s = stub_->DeclareProgram(&context, request, &response);
    return std::pair(s.error_code(), response.pending());
  };
  EXPECT_EQ(declare({{"a", ""}, {"b", "a"}}), std::pair(grpc::StatusCode::OK, 2U));
  EXPECT_EQ(declare({{"c", "d"}, {"d", "c"}}).first, grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(declare({{"", ""}}).first, grpc::StatusCode::INVALID_ARGUMENT);
  // The declared dependency holds though the call does not repeat it.
  Answer b;
  std::thread later([&] { b = Generate(Call("p", "b", {})); });
  AwaitWaiting(1);
  const Answer a = Generate(Call("p", "a", {}));
  later.join();
  EXPECT_TRUE(a.status.ok());
  EXPECT_TRUE(b.status.ok());
  EXPECT_TRUE(ReportTool("", a.request_id, "search"));
  EXPECT_EQ(Why(a.request_id).tool_name(), "search");
  EXPECT_TRUE(ReportTool("p", "", "search"));
  EXPECT_FALSE(ReportTool("nobody", "", "search"));
  EXPECT_FALSE(ReportTool("", "nothing", "search"));
  EXPECT_TRUE(EndProgram("p"));
}

TEST(RequestIndex, IsBoundedAndFindsTheNewest) {
  RequestIndex index(3);
  for (uint64_t i = 1; i <= 10; ++i) {
    RequestNote n;
    n.key = RequestKey(i);
    n.request_id = "r" + std::to_string(i);
    n.response_id = "reply" + std::to_string(i);
    n.label = "same";
    n.tenant = i % 2 == 0 ? "even" : "odd";
    index.Add(n);
    index.CheckInvariants();
  }
  EXPECT_EQ(index.all().size(), 3U);
  EXPECT_EQ(index.Find("", "r7"), nullptr);
  EXPECT_EQ(index.Find("even", "r9"), nullptr);
  EXPECT_EQ(index.Find("odd", "r9")->response_id, "reply9");
  EXPECT_EQ(index.Find("odd", "same")->request_id, "r9");
  EXPECT_EQ(index.Find("even", "same")->request_id, "r10");
  EXPECT_EQ(index.Find("", "same")->request_id, "r10");
  EXPECT_EQ(index.Find("", "reply8")->request_id, "r8");
  RequestDone done;
  done.request = RequestKey(3);
  index.OnEnd(done);  // forgotten: ignored
  done.request = RequestKey(9);
  done.completion_tokens = 7;
  index.OnEnd(done);
  EXPECT_TRUE(index.Find("", "r9")->ended);
  EXPECT_EQ(index.Find("", "r9")->completion_tokens, 7U);
  index.CheckInvariants();
}

TEST(TenantFile, FillsTheCoresConfig) {
  CoreConfig c;
  const absl::Status s = ReadTenants(R"({"default":{"max_priority":0,"max_strict_tier":0},
    "policies":{"batch":"fifo"},
    "tenants":{"team-a":{"share":2.5,"class":"batch","max_priority":50,"pin_share":0.1,"workflow_class":"nightly"},
               "team-b":{}}})",
                                     "f", &c);
  ASSERT_TRUE(s.ok()) << s;
  EXPECT_EQ(c.tenant_rules.fallback.max_priority, 0);
  EXPECT_EQ(c.tenant_rules.Of("team-a").max_priority, 50);
  EXPECT_EQ(c.tenant_rules.Of("team-a").max_strict_tier, 0U) << "the rest is as the default";
  EXPECT_EQ(c.tenant_rules.Of("team-a").pin_share, 0.1);
  EXPECT_EQ(c.tenant_rules.Of("team-b").max_priority, 0);
  EXPECT_EQ(c.tenant_share.at("team-a"), 2.5);
  EXPECT_EQ(c.tenant_class.at("team-a"), "batch");
  EXPECT_EQ(c.tenant_policy.at("batch"), "fifo");
}

TEST(TenantFile, MistakesAreNamed) {
  const std::pair<const char*, const char*> bad[] = {
      {"[]", "must be a JSON object"},
      {"{", "f"},
      {R"({"tenant":{}})", "unknown member"},
      {R"({"tenants":[]})", "must be an object"},
      {R"({"tenants":{"a":{"max_prio":1}}})", "tenants.a: unknown member"},
      {R"({"tenants":{"a":{"max_priority":101}}})", "tenants.a.max_priority must be a whole number from -100 to 100"},
      {R"({"tenants":{"a":{"max_priority":1.5}}})", "whole number"},
      {R"({"tenants":{"a":{"min_priority":5,"max_priority":1}}})", "min_priority is above max_priority"},
      {R"({"tenants":{"a":{"share":0}}})", "share must be a number from"},
      {R"({"tenants":{"a":{"pin_share":2}}})", "pin_share must be a number from 0 to 1"},
      {R"({"tenants":{"a":{"class":""}}})", "must be a name"},
      {R"({"tenants":{"a":7}})", "tenants.a must be an object"},
      {R"({"policies":{"x":"best"}})", "unknown policy"},
      {R"({"default":{"share":2}})", "default has no share"},
  };
  for (const auto& [text, message] : bad) {
    CoreConfig c;
    const absl::Status s = ReadTenants(text, "f", &c);
    EXPECT_FALSE(s.ok()) << text;
    EXPECT_THAT(std::string(s.message()), HasSubstr(message)) << text;
  }
  CoreConfig c;
  EXPECT_FALSE(ReadTenantFile("/nonexistent/tenants.json", &c).ok());
}

}  // namespace
}  // namespace agentserve::router
