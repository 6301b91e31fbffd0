// Hints within a tenant's terms, programs found by the core, and calls that wait for others in it.
#include "router/core/identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/block_hash.h"
#include "router/core/router_core.h"

namespace agentserve::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr TimeNs kSecond = base::kNsPerSecond;

TEST(ClampToRule, CutsToTheTermsAndSaysWhat) {
  TenantRule rule;
  rule.min_priority = -10;
  rule.max_priority = 20;
  rule.max_strict_tier = 1;
  rule.min_deadline_ms = 500;
  rule.max_kv_retain_ms = 1000;
  rule.workflow_class = "batch";
  AgentInfo a;
  a.priority = 90;
  a.strict_tier = 7;
  a.deadline_ms = 1;
  a.osl_hint = 5000;
  a.kv_retain_ms = 60'000;
  a.tool_gap_ms_hint = UINT64_MAX;
  EXPECT_EQ(ClampToRule(rule, 100, 600'000, &a), (1u << kNumClamped) - 1);
  EXPECT_EQ(a.priority, 20);
  EXPECT_EQ(a.strict_tier, 1U);
  EXPECT_EQ(a.deadline_ms, 500U);
  EXPECT_EQ(a.osl_hint, 100U);
  EXPECT_EQ(a.kv_retain_ms, 1000U);
  EXPECT_EQ(a.tool_gap_ms_hint, 604'800'000U);
  EXPECT_EQ(a.workflow_class, "batch");
  EXPECT_EQ(ClampToRule(rule, 100, 600'000, &a), 0U) << "within the terms now";
  a.priority = -50;
  EXPECT_TRUE(Has(ClampToRule(rule, 100, 600'000, &a), Clamped::kPriority));
  EXPECT_EQ(a.priority, -10);
  AgentInfo none;
  EXPECT_EQ(ClampToRule(TenantRule(), 1, 0, &none), 0U) << "what was not said is not cut";
  AgentInfo retain;
  retain.kv_retain_ms = 700'000;
  EXPECT_TRUE(Has(ClampToRule(TenantRule(), 1, 600'000, &retain), Clamped::kKvRetain)) << "the router's own bound";
}

TEST(AgentPolicy, GraphsShapeTheOrder) {
  AgentPolicyOptions options;
  OrderContext context;
  context.options = &options;
  AgentInfo agent;
  CallView call;
  call.agent = &agent;
  call.cost = 1000;
  ProgramView program;
  program.remaining = 1000;
  const Policy policy = *FindPolicy("agent");
  const OrderKey plain = policy.order(call, program, context).key;
  ASSERT_GE(plain.tier, 1);
  CallView last = call;
  last.last_of_join = true;
  EXPECT_EQ(policy.order(last, program, context).key.tier, plain.tier - 1) << "the last straggler, one class sooner";
  CallView critical = call;
  critical.path_tokens = 500;
  EXPECT_LT(policy.order(critical, program, context).key, plain) << "the longest path first";
  options.dag = false;
  EXPECT_EQ(policy.order(last, program, context).key.tier, plain.tier);
}

TEST(TenantRules, UnknownTenantsHaveTheFallback) {
  TenantRules rules;
  rules.fallback.max_priority = 5;
  rules.by_tenant["a"].max_priority = 50;
  EXPECT_EQ(rules.Of("a").max_priority, 50);
  EXPECT_EQ(rules.Of("b").max_priority, 5);
}

class IdentityTest : public ::testing::Test {
 protected:
  void Make(std::function<void(CoreConfig*)> tweak = nullptr) {
    CoreConfig c;
    c.end_tokens = {1};
    if (tweak) tweak(&c);
    core_ = std::make_unique<RouterCore>(c, now_);
    WorkerInfo w;
    w.name = "d0";
    w.incarnation = 1;
    w.address = "a:1";
    w.model_id = "m";
    w.model_fingerprint = "f";
    w.layout_fingerprint = 7;
    w.num_blocks = 1000;
    w.context_length = 16'384;
    w.max_batch = 64;
    worker_ = *core_->RegisterWorker(w, now_);
    core_->OnLinkUp(worker_, now_);
    Take();
  }
  Effects Take() {
    core_->CheckInvariants();
    Effects e;
    core_->TakeEffects(&e);
    return e;
  }
  Submission Sub(size_t first, size_t tokens, Turn turn = Turn::kUnknown) {
    Submission s;
    s.request_id = "r" + std::to_string(++subs_);
    auto prompt = std::make_shared<std::vector<TokenId>>();
    for (size_t i = 0; i < tokens; ++i) prompt->push_back(static_cast<TokenId>(first + i));
    s.prompt = prompt;
    s.block_tokens = 16;
    s.chain_root = engine::ChainRoot("t/", 7);
    engine::ExtendChain(s.chain_root, *prompt, 16, &s.chain);
    s.digest = {subs_, 1};
    s.sampling.max_tokens = 50;
    s.arrival = now_;
    s.deadline = now_ + 100 * kSecond;
    s.bytes = 100;
    s.agent.tenant_id = "t";
    s.agent.turn = turn;
    return s;
  }
  Submission Call(const std::string& program, const std::string& call, std::vector<std::string> needs) {
    Submission s = Sub(1000 * subs_, 40);
    s.agent.program_id = program;
    s.agent.call_id = call;
    s.agent.depends_on = std::move(needs);
    return s;
  }
  SubmitResult Submit(Submission s) { return core_->Submit(std::move(s), now_); }
  // Ends it as a client's cancel does.
  void End(RequestKey key) { core_->EndRequest(key, EndReason::kCancelled, "", now_); }
  std::vector<std::string> Dispatched() {
    std::vector<std::string> out;
    for (const Command& c : Take().commands) {
      if (c.kind == CommandKind::kReserve) out.push_back(c.spec->request_id);
    }
    return out;
  }

  TimeNs now_ = 5 * kSecond;
  std::unique_ptr<RouterCore> core_;
  WorkerId worker_;
  uint64_t subs_ = 0;
};

TEST_F(IdentityTest, CallsThatContinueAPromptAreOneProgram) {
  Make();
  const SubmitResult a = Submit(Sub(10, 100, Turn::kFirst));
  EXPECT_EQ(a.identity, Identity::kNew);
  EXPECT_THAT(a.program_id, HasSubstr("auto-"));
  const SubmitResult b = Submit(Sub(10, 160, Turn::kLater));
  EXPECT_EQ(b.identity, Identity::kPrefix);
  EXPECT_EQ(b.program_id, a.program_id);
  EXPECT_EQ(core_->programs().size(), 1U);
  const SubmitResult other = Submit(Sub(9'000, 100, Turn::kFirst));
  EXPECT_EQ(other.identity, Identity::kNew);
  EXPECT_NE(other.program_id, a.program_id);
  const SubmitResult tiny = Submit(Sub(70, 20));
  EXPECT_EQ(tiny.identity, Identity::kNone) << "too short to say anything";
  Submission named = Sub(10, 200, Turn::kLater);
  named.agent.program_id = "mine";
  EXPECT_EQ(Submit(std::move(named)).identity, Identity::kOwn) << "what the caller says is not doubted";
  EXPECT_EQ(core_->identity_stats().identified[static_cast<int>(Identity::kPrefix)], 1U);
  EXPECT_EQ(core_->identity_stats().identified[static_cast<int>(Identity::kNew)], 2U);
}

TEST_F(IdentityTest, InferenceCanBeSwitchedOff) {
  Make([](CoreConfig* c) { c->infer_programs = false; });
  EXPECT_EQ(Submit(Sub(10, 100)).identity, Identity::kNone);
  EXPECT_EQ(core_->programs().size(), 0U);
}

TEST_F(IdentityTest, AnEndedProgramIsNotContinued) {
  Make();
  const SubmitResult a = Submit(Sub(10, 100));
  core_->EndProgram("t", a.program_id, now_);
  EXPECT_EQ(Submit(Sub(10, 160)).identity, Identity::kNew);
}

TEST_F(IdentityTest, HintsAreClampedByTenant) {
  Make([](CoreConfig* c) { c->tenant_rules.by_tenant["t"].max_priority = 10; });
  Submission s = Sub(10, 40);
  s.agent.priority = 100;
  s.agent.osl_hint = 1'000'000;
  const SubmitResult r = Submit(std::move(s));
  EXPECT_EQ(r.clamped, (1u << static_cast<int>(Clamped::kPriority)) | (1u << static_cast<int>(Clamped::kOsl)));
  EXPECT_EQ(core_->identity_stats().clamped[static_cast<int>(Clamped::kPriority)], 1U);
}

TEST_F(IdentityTest, DependentCallsWaitOutsideTheQueue) {
  Make();
  const SubmitResult a = Submit(Call("p", "a", {}));
  const SubmitResult b = Submit(Call("p", "b", {}));
  EXPECT_EQ(Dispatched().size(), 2U);
  now_ += kSecond;
  const SubmitResult join = Submit(Call("p", "join", {"a", "b"}));
  ASSERT_TRUE(join.ok());
  EXPECT_TRUE(join.waits);
  EXPECT_EQ(core_->queued_requests(), 0U);
  EXPECT_EQ(core_->graph().waiting(), 1U);
  EXPECT_THAT(core_->WaitsFor(join.key).names, ElementsAre("a", "b"));
  EXPECT_TRUE(Dispatched().empty());
  End(a.key);
  EXPECT_TRUE(Dispatched().empty());
  now_ += 2 * kSecond;
  End(b.key);
  EXPECT_THAT(Dispatched(), ElementsAre("r3"));
  now_ += kSecond;
  End(join.key);
  const Effects e = Take();
  ASSERT_EQ(e.request_ends.size(), 1U);
  EXPECT_EQ(e.request_ends[0].timeline.dependency_ms, 2000);
  EXPECT_EQ(e.request_ends[0].timeline.queue_ms, 0);
}

TEST_F(IdentityTest, NSequencesWaitTogether) {
  Make();
  const SubmitResult a = Submit(Call("p", "a", {}));
  Submission s = Call("p", "", {"a"});
  s.n = 3;
  s.chain.clear();
  const SubmitResult r = Submit(std::move(s));
  EXPECT_TRUE(r.waits);
  Take();
  End(a.key);
  EXPECT_EQ(Dispatched().size(), 3U);
}

TEST_F(IdentityTest, ThingsThatNeverEndRunIntoTheDeadline) {
  Make();
  Submission forever = Call("p", "a", {});
  forever.deadline = now_ + 1000 * kSecond;
  Submit(std::move(forever));
  const SubmitResult b = Submit(Call("p", "b", {"a"}));
  Take();
  now_ += 15 * kSecond;  // past the grace for unknown names
  core_->OnLoad(worker_, {}, now_);
  core_->RegisterWorker(core_->workers().Find(worker_)->info, now_).IgnoreError();
  core_->Tick(now_);
  EXPECT_TRUE(core_->graph().Waits(b.key));
  now_ += 90 * kSecond;
  core_->Tick(now_);
  bool seen = false;
  for (const RequestDone& done : Take().request_ends) {
    if (done.request != b.key) continue;
    seen = true;
    EXPECT_EQ(done.reason, EndReason::kDeadline);
    EXPECT_THAT(done.message, HasSubstr("waited for \"a\""));
  }
  EXPECT_TRUE(seen);
}

TEST_F(IdentityTest, UnknownNamesHaveAGrace) {
  Make();
  const SubmitResult b = Submit(Call("p", "b", {"nobody"}));
  ASSERT_TRUE(b.waits);
  EXPECT_LE(core_->NextWake(), now_ + 10 * kSecond);
  now_ += 10 * kSecond;
  core_->Tick(now_);
  const Effects e = Take();
  ASSERT_EQ(e.request_ends.size(), 1U);
  EXPECT_EQ(e.request_ends[0].reason, EndReason::kBadDependency);
  EXPECT_THAT(e.request_ends[0].message, HasSubstr("\"nobody\""));
  EXPECT_EQ(core_->identity_stats().graph_unknown, 1U);
}

TEST_F(IdentityTest, DeclaredNamesAreKnown) {
  Make();
  ASSERT_TRUE(core_->DeclareProgram("t", "p", std::vector<DeclaredCallInfo>{{"a", {}, 7}}).ok());
  EXPECT_TRUE(core_->KnowsProgram("t", "p"));
  EXPECT_FALSE(core_->KnowsProgram("u", "p"));
  const SubmitResult b = Submit(Call("p", "b", {"a"}));
  now_ += 11 * kSecond;
  core_->RegisterWorker(core_->workers().Find(worker_)->info, now_).IgnoreError();
  core_->Tick(now_);
  EXPECT_TRUE(core_->graph().Waits(b.key));
  core_->EndProgram("t", "p", now_);
  EXPECT_FALSE(core_->graph().Waits(b.key));
}

TEST_F(IdentityTest, CirclesAreRefused) {
  Make();
  Submit(Call("p", "a", {"b"}));
  const SubmitResult r = Submit(Call("p", "b", {"a"}));
  EXPECT_FALSE(r.ok());
  EXPECT_EQ(r.refused, EndReason::kBadDependency);
  EXPECT_THAT(r.message, HasSubstr("circle"));
  core_->CheckInvariants();
}

TEST_F(IdentityTest, AProgramEndsWithItsFinalCall) {
  Make();
  Submission last = Call("child", "", {});
  last.agent.final = true;
  const SubmitResult child = Submit(std::move(last));
  const SubmitResult parent = Submit(Call("parent", "", {"child"}));
  EXPECT_TRUE(parent.waits);
  Take();
  End(child.key);
  EXPECT_THAT(Dispatched(), ElementsAre("r2"));
}

TEST_F(IdentityTest, WaitingCallsCountInTheQueuesBoundsAndHaveOneOfTheirOwn) {
  Make([](CoreConfig* c) { c->max_queued = 8; });
  const SubmitResult a = Submit(Call("p", "a", {}));
  EXPECT_TRUE(Submit(Call("p", "", {"a"})).waits);
  EXPECT_TRUE(Submit(Call("p", "", {"a"})).waits);
  const SubmitResult third = Submit(Call("p", "", {"a"}));
  EXPECT_EQ(third.refused, EndReason::kQueueFull);
  EXPECT_THAT(third.message, HasSubstr("wait for others"));
  End(a.key);
  core_->CheckInvariants();
}

TEST_F(IdentityTest, AWaitingCallCanBeCancelled) {
  Make();
  const SubmitResult a = Submit(Call("p", "a", {}));
  const SubmitResult b = Submit(Call("p", "b", {"a"}));
  const SubmitResult c = Submit(Call("p", "c", {"b"}));
  Take();
  End(b.key);
  const Effects e = Take();
  ASSERT_EQ(e.request_ends.size(), 1U);
  EXPECT_FALSE(core_->graph().Waits(c.key)) << "a call ends however it ends";
  End(a.key);
  EXPECT_EQ(core_->live_requests(), 1U);
}

}  // namespace
}  // namespace agentserve::router
