// Invariants of the router core, recomputed from scratch.
#include <algorithm>

#include "base/check.h"
#include "router/core/router_core.h"

namespace agentserve::router {

void RouterCore::CheckParts() const {
  workers_.CheckInvariants();
  programs_.CheckInvariants();
  retention_.CheckInvariants();
  prefixes_.CheckInvariants();
  queue_.CheckInvariants();
  gate_.CheckInvariants();
  tool_stats_.CheckInvariants();
  predictor_.CheckInvariants();
  decisions_.CheckInvariants();
  AS_CHECK_LE(idle_programs_.size(), config_.max_programs);
  CheckIdentity();
}

void RouterCore::CheckInvariants() const {
  CheckParts();
  AS_CHECK_EQ(stats_.accepted, stats_.finished() + requests_.size());
  AS_CHECK_EQ(timers_.size(), requests_.size());
  AS_CHECK_LE(poison_order_.size(), config_.max_poisoned + 1u);

  uint64_t calls = 0, bytes = 0, tokens = 0;
  uint32_t waiting = 0, live = 0;
  for (const auto& [key, r] : requests_) {
    AS_CHECK(timers_.count({r.timer, key}) == 1);
    AS_CHECK_GE(r.live, 1u);
    uint32_t found = 0;
    for (uint32_t i = 0; i < r.seqs.size(); ++i) {
      auto it = seqs_.find(r.seqs[i]);
      if (it == seqs_.end()) continue;
      ++found;
      AS_CHECK(it->second.request == key && it->second.index == i);
      AS_CHECK_LE(it->second.generated.size(), r.sub.sampling.max_tokens);
    }
    AS_CHECK_EQ(found, r.live);
    live += found;
    if (r.dispatched || r.waits) continue;
    ++waiting;
    calls += r.sub.n;
    bytes += r.sub.bytes;
    tokens += r.sub.prompt->size();
  }
  AS_CHECK_EQ(live, seqs_.size());
  AS_CHECK_EQ(waiting, queued_requests_);
  AS_CHECK_EQ(calls, queued_calls_);
  AS_CHECK_EQ(bytes, queued_bytes_);
  AS_CHECK_EQ(tokens, queued_tokens_);
  AS_CHECK_LE(queued_calls_, config_.max_queued);
  AS_CHECK_LE(queued_bytes_, config_.max_queued_bytes);
  AS_CHECK_LE(queued_tokens_, config_.max_queued_tokens);

  size_t queued = 0, finishing = 0;
  std::map<WorkerId, int64_t> unreflected, growth, on_worker;
  for (const auto& [id, s] : seqs_) {
    AS_CHECK(s.id == id);
    queued += s.phase == SeqPhase::kQueued;
    finishing += s.phase == SeqPhase::kFinishing;
    const bool placed = s.phase != SeqPhase::kQueued && s.phase != SeqPhase::kHeld;
    AS_CHECK_EQ(placed, s.decode.value != 0) << "sequence " << id;
    if (s.phase == SeqPhase::kQueued) AS_CHECK(queue_.Find(id) != nullptr);
    if (s.phase == SeqPhase::kFinishing) AS_CHECK(finishing_.count({s.finish_by, id}) == 1);
    if (placed) {
      const Worker* d = workers_.Find(s.decode);
      AS_CHECK(d != nullptr && d->info.role == Role::kDecode && d->sequences.count(id) == 1);
      unreflected[s.decode] += s.booking.unreflected;
      growth[s.decode] += s.booking.growth;
      ++on_worker[s.decode];
    }
    if (s.prefill.value != 0) {
      AS_CHECK(s.phase == SeqPhase::kReserving || s.phase == SeqPhase::kPrefilling ||
               s.phase == SeqPhase::kTransferring);
      const Worker* p = workers_.Find(s.prefill);
      AS_CHECK(p != nullptr && p->info.role == Role::kPrefill && p->sequences.count(id) == 1);
      ++on_worker[s.prefill];
    }
  }
  AS_CHECK_EQ(queued, queue_.size());
  AS_CHECK_EQ(finishing, finishing_.size());
  for (const auto& [id, w] : workers_.all()) {
    AS_CHECK_EQ(int64_t(w.sequences.size()), on_worker[id]) << w.info.name;
    AS_CHECK_EQ(w.unreflected_blocks, unreflected[id]) << w.info.name;
    AS_CHECK_EQ(w.growth_blocks, growth[id]) << w.info.name;
    if (!w.linked) AS_CHECK(w.sequences.empty()) << w.info.name;
  }
}

}  // namespace agentserve::router
