// What the core knows of programs, expects of calls, and learns when they end.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "router/core/router_core.h"

namespace agentserve::router {
namespace {

// A program without a call for this long has ended, as far as learning goes; longer than nearly all tool runs. Where
// gaps are known to be short, four times as long as nearly all of them is enough to tell.
constexpr TimeNs kRetireAfter = 900 * base::kNsPerSecond;
constexpr double kGapsToKnow = 32;
// Means of costs follow a change within some hundred calls.
constexpr double kRate = 1.0 / 256;
constexpr double kGuessedCalls = 4;
constexpr uint32_t kMostStepsHint = 10'000;

// Nobody's programs shape another tenant's estimates.
std::string SizeClass(const AgentInfo& a, const std::string& workflow_class) {
  std::string key = a.tenant_id;
  key.push_back('\0');
  key.append(workflow_class);
  return key;
}

}  // namespace

void RouterCore::JoinProgram(Request* r, TimeNs now) {
  const AgentInfo& agent = r->sub.agent;
  CallQueue::Lane& lane = queue_.lane(r->lane);
  if (agent.program_id.empty()) {
    ++lane.programs;
    Estimate(r, nullptr);
    r->virtual_finish = lane.clock + CostLeft(*r, 0);
    return;
  }
  r->program = ProgramTable::Key(agent.tenant_id, agent.program_id);
  int64_t parent_age = next_arrival_;
  double parent_path = 0;
  if (!agent.parent_program_id.empty()) {
    const Program* parent = programs_.Find(ProgramTable::Key(agent.tenant_id, agent.parent_program_id));
    if (parent != nullptr) parent_age = parent->age, parent_path = parent->path;
  }
  Program forgotten;
  Program& p = programs_.Touch(r->program, next_arrival_, &forgotten);
  if (!forgotten.key.empty()) {
    gate_.OnBack(forgotten.serial);
    idle_programs_.erase({forgotten.retire_at, forgotten.serial});
  }
  if (p.calls == 0) {
    p.age = std::min(p.age, parent_age);
    p.path = parent_path;
    p.tenant = agent.tenant_id;
  }
  if (p.live_calls == 0) {
    ++lane.programs;
    p.width = 0;
    idle_programs_.erase({p.retire_at, p.serial});
  }
  gate_.OnReady(p.serial, true);
  if (p.phase == Program::Phase::kTool && p.tool_started > 0) {
    const double gap = base::ToMs(now - p.tool_started);
    const std::string& tool = agent.tool_name.empty() ? p.tool_name : agent.tool_name;
    p.gaps.Add(gap);
    tool_stats_.OnReturn(p.workflow_class, tool, gap);
    p.tool_name.clear();  // of that gap
  }
  ++p.calls;
  ++p.live_calls;
  p.phase = Program::Phase::kCalling;
  p.last_agent = agent;
  if (!agent.workflow_class.empty()) p.workflow_class = agent.workflow_class;
  Estimate(r, &p);
  r->path_before = p.path;
  if (p.virtual_finish <= 0) p.virtual_finish = lane.clock + RemainingCost(*r, &p, CostLeft(*r, 0));
  r->virtual_finish = p.virtual_finish;
}

void RouterCore::Estimate(Request* r, const Program* p) {
  const auto prompt = static_cast<uint32_t>(r->sub.prompt->size());
  r->fresh = p == nullptr || p->calls <= 1;
  r->tool_turn = !r->sub.agent.tool_name.empty();
  r->step = std::max(r->sub.agent.step_index, p == nullptr ? 0 : p->calls - 1);
  r->new_tokens = prompt - std::min(prompt - 1, p == nullptr ? 0 : p->context_tokens);
  if (p != nullptr) r->program_outputs = p->outputs;
  CallFeatures features = Features(*r);
  r->prediction = r->plain = predictor_.Predict(features);
  if (features.osl_hint) {
    features.osl_hint.reset();
    r->plain = predictor_.Predict(features);
  }
  r->difficulty = predictor_.Classify(r->prediction.Median());
  if (learned_calls_ > 0) return;
  // Nothing has ended yet: the mean of what is expected stands in for the mean of what was.
  ++estimated_calls_;
  order_context_.mean_call_cost += (CostLeft(*r, 0) - order_context_.mean_call_cost) / double(estimated_calls_);
}

CallFeatures RouterCore::Features(const Request& r) const {
  const AgentInfo& a = r.sub.agent;
  CallFeatures f;
  f.tenant = a.tenant_id;
  f.workflow_class = a.workflow_class;
  f.tool_name = a.tool_name;
  f.prompt_tokens = static_cast<uint32_t>(r.sub.prompt->size());
  f.new_tokens = r.new_tokens;
  f.max_tokens = r.sub.sampling.max_tokens;
  f.tools_offered = r.sub.tools_offered;
  f.step = r.step;
  f.tool_turn = r.tool_turn;
  f.osl_hint = a.osl_hint;
  f.program = r.program_outputs;
  return f;
}

// Expected cost of a call of which `generated` tokens are out.
double RouterCore::CostLeft(const Request& r, uint32_t generated, bool plain) const {
  const double prompt = static_cast<double>(r.sub.prompt->size());
  // A call that has outlived its prediction is expected to go on for half as long again.
  const double mean = (plain ? r.plain : r.prediction).Mean();
  const double left = std::max(mean - generated, generated / 2.0 + 1);
  const double fresh = generated > 0 ? prompt + generated : r.new_tokens;
  return r.sub.n * config_.agent.cost.Call(fresh, prompt + generated, left);
}

double RouterCore::ActualCost(const Request& r) const {
  const double prompt = static_cast<double>(r.sub.prompt->size());
  return config_.agent.cost.Call(std::max(1.0, prompt - r.cached_tokens), prompt, r.completion_tokens);
}

double RouterCore::RemainingCost(const Request& r, const Program* p, double call_cost) const {
  if (p == nullptr) return call_cost;
  const AgentInfo& a = r.sub.agent;
  if (a.final) return call_cost;
  const double own = (p->attained + call_cost) / p->calls;  // mean of its calls
  std::optional<uint32_t> steps_left = a.steps_left_hint;
  if (!steps_left && a.total_calls_hint && *a.total_calls_hint >= p->calls) steps_left = *a.total_calls_hint - p->calls;
  if (steps_left) {
    return call_cost + std::min(*steps_left, kMostStepsHint) * own;
  }
  // Before programs were seen to end: a few calls like its own, and half as much again as it had once it had those.
  const double guess = std::max(kGuessedCalls * own - p->attained, p->attained / 2);
  return std::max(call_cost, sizes_.Residual(SizeClass(a, p->workflow_class), p->attained, guess));
}

Order RouterCore::OrderOf(const Sequence& s, const Request& r, const Program* p) const {
  CallView call;
  call.arrival = s.arrival;
  call.queued_at = s.queued_at;
  if (r.sub.agent.deadline_ms) {
    call.deadline = r.sub.arrival + static_cast<TimeNs>(*r.sub.agent.deadline_ms) * base::kNsPerMs;
  }
  call.prompt_tokens = static_cast<uint32_t>(r.sub.prompt->size());
  call.generated_tokens = static_cast<uint32_t>(s.generated.size());
  call.predicted_output = std::max(1.0, r.prediction.Median() - call.generated_tokens);
  call.cost = CostLeft(r, call.generated_tokens);
  call.difficulty = r.difficulty;
  call.agent = &r.sub.agent;
  if (!r.program.empty()) {
    const GraphView graph = dag_.ViewOf(r.program, r.sub.agent.call_id);
    call.last_of_join = graph.join_left == 1 && graph.join_width > 1;
    call.path_tokens = graph.path_tokens;
  }
  if (r.sub.oracle) call.oracle = &*r.sub.oracle;
  ProgramView view;
  view.first_arrival = s.arrival;
  view.calls = 1;
  if (p != nullptr) {
    view.first_arrival = p->age;
    view.calls = p->calls;
    view.live_calls = p->Running();
    view.width = p->width;
    view.attained = p->attained;
    view.path = p->path;
  }
  view.remaining = RemainingCost(r, p, call.cost);
  if (p != nullptr && queue_.lane(r.lane).policy.agent) {
    const double horizon_ms = std::max(1000.0, config_.agent.horizon_scale * order_context_.mean_wait_ms);
    const GapHistogram& gaps = tool_stats_.Best(p->workflow_class, p->tool_name);
    if (gaps.weight() > 0) view.soon = ProbReturnWithin(gaps, p->gaps, 0, horizon_ms);
  }
  view.virtual_finish = r.virtual_finish;
  return queue_.lane(r.lane).policy.order(call, view, order_context_);
}

// Its queued calls stand where they would if they came now. Only when it matters: after its service grew by an eighth,
// so a program of k calls is ordered O(log) times for each, or when one call is left of a fan-out.
void RouterCore::ReorderProgram(Program* p) {
  if (p->queued.empty()) return;
  const bool straggler = p->Straggler();
  const double grown = p->attained - p->ordered_at;
  if (grown * 8 <= p->ordered_at && straggler == p->ordered_straggler) return;
  p->ordered_at = p->attained;
  p->ordered_straggler = straggler;
  for (SeqId id : p->queued) {
    Sequence& s = seqs_.at(id);
    const Request& r = RequestOf(s);
    if (!queue_.lane(r.lane).policy.follows_program) continue;
    QueuePlace place = *queue_.Find(id);
    place.order = OrderOf(s, r, p);
    queue_.Remove(id);
    queue_.Add(id, place);
    s.key = place.order.key;
  }
}

void RouterCore::Learn(const Request& r, double cost, TimeNs now) {
  ++learned_calls_;
  // The estimate from before counts as 16 calls.
  const double rate = std::max(kRate, 1.0 / static_cast<double>(learned_calls_ + 16));
  order_context_.mean_call_cost += rate * (cost - order_context_.mean_call_cost);
  order_context_.mean_wait_ms += rate * (r.timeline.queue_ms - order_context_.mean_wait_ms);
  const double served_ns = static_cast<double>(now - r.sub.arrival) - r.timeline.queue_ms * 1e6;
  if (served_ns > 0) {
    order_context_.ns_per_cost += rate * (served_ns / std::max(cost, 1.0) - order_context_.ns_per_cost);
  }
  predictor_.Learn(Features(r), r.prediction, r.completion_tokens / r.sub.n);
}

void RouterCore::LeaveProgram(const Request& r, EndReason reason, TimeNs now) {
  const double cost = r.last_decode.value != 0 ? ActualCost(r) : 0;
  CallQueue::Lane& lane = queue_.lane(r.lane);
  AS_CHECK_GE(lane.live, 1u);
  --lane.live;
  if (r.charged > 0) queue_.Settle(r.lane, cost - r.charged);
  lane.clock += cost / std::max(1u, lane.programs);
  if (reason == EndReason::kDone) Learn(r, cost, now);
  Program* p = r.program.empty() ? nullptr : programs_.Find(r.program);
  if (p == nullptr) {
    if (lane.programs > 0) --lane.programs;
    return;
  }
  if (p->live_calls > 0) --p->live_calls;
  p->attained_tokens += r.sub.prompt->size() + r.completion_tokens;
  if (cost > 0) {
    sizes_.OnProgress(SizeClass(r.sub.agent, p->workflow_class), p->attained, p->attained + cost);
    p->attained += cost;
    p->path = std::max(p->path, r.path_before + cost);
    p->context_tokens = static_cast<uint32_t>(r.sub.prompt->size()) + r.completion_tokens;
  }
  if (reason == EndReason::kDone) p->outputs.Add(std::log1p(r.completion_tokens / r.sub.n), 0.2);
  if (r.last_decode.value != 0) p->last_decode = r.last_decode;
  if (p->live_calls > 0) {
    ReorderProgram(p);
    return;
  }
  if (lane.programs > 0) --lane.programs;
  // Between its calls a program runs a tool, or ponders; both are a gap until the next call.
  p->phase = Program::Phase::kTool;
  p->tool_started = now;
  if (r.sub.agent.final) {
    ProgramEnded(p);
    return;
  }
  p->retire_at = now + kRetireAfter;
  if (const GapHistogram& gaps = tool_stats_.Best(p->workflow_class, p->tool_name); gaps.returned() >= kGapsToKnow) {
    const double long_ms = std::max(1000.0, 4 * gaps.Quantile(0.99));
    p->retire_at = now + std::min(kRetireAfter, static_cast<TimeNs>(long_ms * 1e6));
  }
  idle_programs_.emplace(std::pair(p->retire_at, p->serial), p->key);
  gate_.OnReady(p->serial, false);
  if (r.last_decode.value != 0) {
    gate_.OnIdle(p->serial, p->last_decode, {p->context_tokens, now, false, p->workflow_class, p->tool_name, p->gaps});
  }
}

// `p` is gone afterwards.
void RouterCore::ProgramEnded(Program* p) {
  if (p->live_calls == 0) {
    sizes_.OnEnd(SizeClass(p->last_agent, p->workflow_class), p->attained);
    tool_stats_.OnGone(p->workflow_class, p->tool_name);
  }
  gate_.OnBack(p->serial);
  idle_programs_.erase({p->retire_at, p->serial});
  const std::string key = p->key;
  programs_.Erase(key);
}

void RouterCore::RetirePrograms(TimeNs now) {
  while (!idle_programs_.empty() && idle_programs_.begin()->first.first <= now) {
    Program* p = programs_.Find(idle_programs_.begin()->second);
    if (p != nullptr && p->serial == idle_programs_.begin()->first.second) {
      sizes_.OnEnd(SizeClass(p->last_agent, p->workflow_class), p->attained);
      tool_stats_.OnGone(p->workflow_class, p->tool_name);
      gate_.OnBack(p->serial);
    }
    idle_programs_.erase(idle_programs_.begin());
  }
}

}  // namespace agentserve::router
