#include "router/core/gate.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::router {

void Gate::OnIdle(uint64_t program, WorkerId worker, IdleProgram idle) {
  OnBack(program);
  PerWorker& p = workers_[worker];
  p.by_order.emplace(next_, std::move(idle));
  ++p.changes;
  where_[program] = {worker, next_++};
}

void Gate::OnBack(uint64_t program) {
  auto it = where_.find(program);
  if (it == where_.end()) return;
  PerWorker& p = workers_[it->second.first];
  p.by_order.erase(it->second.second);
  ++p.changes;
  where_.erase(it);
}

void Gate::OnReady(uint64_t program, bool ready) {
  auto it = where_.find(program);
  if (it == where_.end()) return;
  PerWorker& p = workers_[it->second.first];
  p.by_order.at(it->second.second).ready = ready;
  ++p.changes;
}

// Tokens that what runs on `w` leaves for idle programs.
double Gate::IdleRoom(const Worker& w) {
  const double free = static_cast<double>(std::max<int64_t>(w.FreeBlocks(), 0));
  return std::min(free, static_cast<double>(w.TotalBlocks())) * w.info.block_tokens;
}

bool Gate::Resident(uint64_t program, const Worker& w) const {
  auto at = where_.find(program);
  if (at == where_.end() || at->second.first != w.id) return false;
  const PerWorker& p = workers_.at(w.id);
  double room = IdleRoom(w);
  size_t looked = 0;
  for (auto it = p.by_order.rbegin(); it != p.by_order.rend() && ++looked <= kMostLooked; ++it) {
    room -= it->second.context_tokens;
    if (room < 0) return false;
    if (it->first == at->second.second) return true;
  }
  return false;
}

void Gate::OnWorkerGone(WorkerId worker) {
  auto w = workers_.find(worker);
  if (w == workers_.end()) return;
  std::erase_if(where_, [&](const auto& e) { return e.second.first == worker; });
  workers_.erase(w);
}

double Gate::BackSoon(PerWorker* p, const Worker& w, const AgentPolicyOptions& options, const ToolStats& tools,
                      TimeNs now) const {
  const bool fresh = p->summed_at >= 0 && now - p->summed_at < kStale && 8 * p->changes <= p->by_order.size();
  if (fresh) return p->back_soon_tokens;
  double sum = 0, room = IdleRoom(w);
  size_t looked = 0;
  for (auto it = p->by_order.rbegin(); it != p->by_order.rend() && ++looked <= kMostLooked; ++it) {
    const IdleProgram& i = it->second;
    room -= i.context_tokens;
    if (room < 0) break;  // from here on they are gone
    const double elapsed = base::ToMs(now - i.since);
    sum += i.context_tokens * (i.ready ? 1
                                       : ProbReturnWithin(tools.Best(i.workflow_class, i.tool), i.gaps, elapsed,
                                                          base::ToMs(options.back_soon)));
  }
  p->back_soon_tokens = sum;
  p->summed_at = now;
  p->changes = 0;
  return sum;
}

void Gate::Update(Worker* w, const AgentPolicyOptions& options, const ToolStats& tools, TimeNs now) {
  if (!options.gate || w->sequences.empty()) {
    w->gated = false;
    return;
  }
  const double total = std::max<double>(w->TotalBlocks(), 1);
  double used = total - static_cast<double>(w->FreeBlocks());
  if (auto it = workers_.find(w->id); it != workers_.end()) {
    used += BackSoon(&it->second, *w, options, tools, now) / w->info.block_tokens;
  }
  w->gated = used > (w->gated ? options.gate_open : options.gate_close) * total;
}

void Gate::CheckInvariants() const {
  size_t programs = 0;
  for (const auto& [id, p] : workers_) programs += p.by_order.size();
  AS_CHECK_EQ(programs, where_.size());
  for (const auto& [program, at] : where_) AS_CHECK(workers_.at(at.first).by_order.count(at.second) == 1);
}

}  // namespace agentserve::router
