// Who a call belongs to and what it waits for: the hooks of identity, program inference and call graphs.
#include <algorithm>

#include "base/check.h"
#include "base/strings.h"
#include "router/core/router_core.h"

namespace agentserve::router {
namespace {

std::string Joined(const std::vector<std::string>& names) {
  // A message shows the first few.
  constexpr size_t kShown = 4;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) {
    base::StrAppend(&out, i == 0 ? "\"" : ", \"", names[i], "\"");
  }
  if (names.size() > kShown) base::StrAppend(&out, " and ", names.size() - kShown, " more");
  return out;
}

PromptView ViewOfPrompt(const Submission& sub) {
  return {sub.agent.tenant_id, sub.chain, *sub.prompt, sub.block_tokens, sub.agent.turn};
}

}  // namespace

// Cuts hints to the tenant's terms and finds the program of a call that names none.
void RouterCore::Identify(Submission* sub) {
  AgentInfo& agent = sub->agent;
  sub->clamped |=
      ClampToRule(config_.tenant_rules.Of(agent.tenant_id), sub->sampling.max_tokens, config_.park_most_ms, &agent);
  for (int i = 0; i < kNumClamped; ++i) {
    if (Has(sub->clamped, static_cast<Clamped>(i))) ++identity_stats_.clamped[i];
  }
  if (!agent.program_id.empty() && agent.identity == Identity::kNone) agent.identity = Identity::kOwn;
  if (config_.infer_programs) {
    const PromptView prompt = ViewOfPrompt(*sub);
    if (agent.program_id.empty() && prompt.chain.size() >= ProgramFinder::kMinBlocks) {
      if (const auto found = finder_.Find(prompt)) {
        agent.program_id = found->program;
        agent.identity = Identity::kPrefix;
      } else {
        // The tail of the chain makes the name differ between routers, the number within one.
        agent.program_id = base::StrCat("auto-", prompt.chain.back().Hex().substr(0, 8), "-", next_request_);
        agent.identity = Identity::kNew;
      }
    }
    if (!agent.program_id.empty()) finder_.Record(prompt, agent.program_id);
  }
  ++identity_stats_.identified[static_cast<size_t>(agent.identity)];
}

// Whether the call may queue at once, in `ready`. False: refused, `result` says why.
bool RouterCore::EnterGraph(const Submission& sub, bool* ready, SubmitResult* result) {
  const AgentInfo& agent = sub.agent;
  const std::string program =
      agent.program_id.empty() ? std::string() : ProgramTable::Key(agent.tenant_id, agent.program_id);
  const absl::StatusOr<bool> arrived = dag_.Arrive(RequestKey(next_request_), program, agent);
  if (arrived.ok()) {
    *ready = *arrived;
    return true;
  }
  ++identity_stats_.graph_refused;
  const bool full = absl::IsResourceExhausted(arrived.status());
  result->refused = full ? EndReason::kQueueFull : EndReason::kBadDependency;
  result->message = base::MessageOf(arrived.status());
  result->retry_after = full ? base::kNsPerSecond : 0;
  return false;
}

void RouterCore::HoldForGraph(Request* r) {
  r->waits = true;
  ++identity_stats_.graph_waits;
  waiting_calls_ += r->sub.n;
  waiting_bytes_ += r->sub.bytes;
  waiting_tokens_ += r->sub.prompt->size();
  if (Program* p = r->program.empty() ? nullptr : programs_.Find(r->program); p != nullptr) ++p->waiting_calls;
}

void RouterCore::LeaveGraphBounds(Request* r) {
  AS_CHECK(r->waits);
  r->waits = false;
  waiting_calls_ -= r->sub.n;
  waiting_bytes_ -= r->sub.bytes;
  waiting_tokens_ -= r->sub.prompt->size();
  Program* p = r->program.empty() ? nullptr : programs_.Find(r->program);
  if (p != nullptr && p->waiting_calls > 0) --p->waiting_calls;
}

void RouterCore::ReleaseFromGraph(const std::vector<RequestKey>& released, TimeNs now) {
  for (RequestKey key : released) {
    const auto it = requests_.find(key);
    if (it == requests_.end() || !it->second.waits) continue;
    Request& r = it->second;
    LeaveGraphBounds(&r);
    r.queued_since = now;
    r.dependency_ms = base::ToMs(now - r.sub.arrival);
    EnterQueue(&r, now);
    SetTimer(&r);
  }
}

// After a request's end: what waited for it, or for its program if it was the last call of it, may go on.
void RouterCore::LeaveGraph(RequestKey key, const AgentInfo& agent, const std::string& program, TimeNs now) {
  std::vector<RequestKey> released;
  dag_.EndCall(key, &released);
  if (agent.final && !program.empty() && programs_.Find(program) == nullptr) {
    dag_.EndProgram(program, &released);
    finder_.Forget(agent.tenant_id, agent.program_id);
  }
  ReleaseFromGraph(released, now);
}

// The timer of a waiting request: its grace for unknown names is over, or all its time. True if the request goes on.
bool RouterCore::TickWaiting(Request* r, TimeNs now) {
  const auto missing = dag_.MissingOf(r->key, [this](const std::string& p) { return programs_.Find(p) != nullptr; });
  if (now >= r->sub.deadline) {
    CompleteRequest(
        r->key, EndReason::kDeadline,
        base::StrCat("the time budget ran out while the call waited for ", Joined(missing.names), " to end"), 0, now);
    return false;
  }
  r->grace_over = true;
  if (!missing.unknown.empty()) {
    ++identity_stats_.graph_unknown;
    CompleteRequest(r->key, EndReason::kBadDependency,
                    base::StrCat("depends_on names ", Joined(missing.unknown), ", but no call or program of that name ",
                                 "came or was declared within ", base::ToMs(config_.unknown_dependency_grace), " ms"),
                    0, now);
    return false;
  }
  SetTimer(r);
  return true;
}

absl::Status RouterCore::DeclareProgram(std::string_view tenant, std::string_view program,
                                        std::span<const DeclaredCallInfo> calls) {
  return dag_.Declare(ProgramTable::Key(tenant, program), tenant, calls);
}

bool RouterCore::KnowsProgram(std::string_view tenant, std::string_view program) const {
  const std::string key = ProgramTable::Key(tenant, program);
  return programs_.Find(key) != nullptr || dag_.DeclaredLeft(key) > 0;
}

Dag::Missing RouterCore::WaitsFor(RequestKey key) const {
  return dag_.MissingOf(key, [this](const std::string& p) { return programs_.Find(p) != nullptr; });
}

void RouterCore::CheckIdentity() const {
  dag_.CheckInvariants();
  finder_.CheckInvariants();
  uint64_t calls = 0, bytes = 0, tokens = 0, waiting = 0;
  for (const auto& [key, r] : requests_) {
    AS_CHECK_EQ(r.waits, dag_.Waits(key));
    if (!r.waits) continue;
    AS_CHECK(!r.dispatched);
    ++waiting;
    calls += r.sub.n;
    bytes += r.sub.bytes;
    tokens += r.sub.prompt->size();
    for (SeqId id : r.seqs) AS_CHECK(seqs_.at(id).phase == SeqPhase::kHeld);
  }
  AS_CHECK_EQ(waiting, dag_.waiting());
  AS_CHECK_EQ(calls, waiting_calls_);
  AS_CHECK_EQ(bytes, waiting_bytes_);
  AS_CHECK_EQ(tokens, waiting_tokens_);
  AS_CHECK_LE(queued_calls_ + waiting_calls_, config_.max_queued);
}

}  // namespace agentserve::router
