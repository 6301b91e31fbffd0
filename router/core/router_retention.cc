// Where the KV of programs stays between their calls: what the core tells Retention, and what it sends on.
#include "router/core/router_core.h"

namespace agentserve::router {

RetentionView RouterCore::RetentionNow(TimeNs now) const { return {workers_, tool_stats_, queued_sequences(), now}; }

// A sequence of a program ends on its decode worker, which knows the names of its blocks for a while.
void RouterCore::ParkKv(const Sequence& s, TimeNs now) {
  const Request& r = RequestOf(s);
  if (!config_.agent.retain || r.program.empty() || s.index != 0 || s.decode.value == 0) return;
  const AgentInfo& agent = r.sub.agent;
  Retention::Turn turn;
  turn.program = r.program;
  turn.tenant = agent.tenant_id;
  turn.workflow_class = agent.workflow_class;
  turn.tool = agent.tool_name;
  if (const Program* p = programs_.Find(r.program); p != nullptr) {
    turn.workflow_class = p->workflow_class;
    if (!p->tool_name.empty()) turn.tool = p->tool_name;
    turn.gaps = p->gaps;
  }
  turn.worker = s.decode;
  turn.seq = s.id;
  turn.attempt = s.attempt;
  turn.tokens = static_cast<uint32_t>(r.sub.prompt->size() + s.generated.size());
  turn.chain = r.sub.chain;
  turn.gap_hint_ms = agent.tool_gap_ms_hint;
  turn.retain_ms = agent.kv_retain_ms;
  turn.final = agent.final;
  retention_.OnTurnEnd(turn, RetentionNow(now));
}

void RouterCore::CallCame(const Request& r, TimeNs now) {
  if (!r.program.empty()) retention_.OnCall(r.program, r.sub.chain, RetentionNow(now));
}

void RouterCore::PrefetchIfQueued(RequestKey key, TimeNs now) {
  const auto it = requests_.find(key);
  if (it == requests_.end() || it->second.dispatched || it->second.program.empty()) return;
  retention_.OnQueued(it->second.program, RetentionNow(now));
}

// What Retention wants becomes commands, after those of the event that caused it.
void RouterCore::SendRetention() {
  if (!retention_.has_actions()) return;
  for (const RetainAction& a : retention_.TakeActions()) {
    const Worker* w = workers_.Find(a.worker);
    if (w == nullptr || !w->linked) continue;
    Command& c = effects_.commands.emplace_back();
    c.worker = a.worker;
    c.kind = a.kind;
    c.seq = a.seq;
    c.attempt = a.attempt;
    c.keep = a.keep;
    c.ttl_ms = a.ttl_ms;
    c.worth = a.worth;
  }
}

}  // namespace agentserve::router
