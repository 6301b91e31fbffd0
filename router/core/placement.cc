#include "router/core/placement.h"

#include <algorithm>

namespace agentserve::router {
namespace {

Booking BookingFor(const Worker& w, const PlacementQuery& q) {
  Booking b;
  b.unreflected = w.Blocks(uint64_t{q.tokens} + 1);
  const uint32_t whole = w.Blocks(uint64_t{q.tokens} + std::max<uint32_t>(q.expected_more, 1));
  b.growth = whole > b.unreflected ? whole - b.unreflected : 0;
  return b;
}

bool Fits(const Worker& w, const PlacementQuery& q) {
  if (w.info.role != Role::kDecode || !w.ready() || w.saturated) return false;
  if (w.sequences.size() >= w.info.max_batch) return false;
  if (w.info.context_length != 0 && q.tokens >= w.info.context_length) return false;
  const Booking b = BookingFor(w, q);
  // An empty worker takes anything its pool can hold, or the queue would never move.
  if (w.sequences.empty()) return b.unreflected <= w.TotalBlocks();
  return w.FreeBlocks() >= int64_t{b.unreflected} + b.growth;
}

uint32_t NewTokens(const Worker& w, uint32_t tokens, std::span<const PrefixMatch> matches) {
  uint64_t have = 0;
  for (const PrefixMatch& m : matches) {
    if (m.worker == w.id) have = uint64_t{m.blocks} * w.info.block_tokens;
  }
  // At least the last token is always run, to sample from it.
  return have >= tokens ? 1 : tokens - static_cast<uint32_t>(have);
}

WorkerId PickPrefill(const WorkerTable& workers, const Worker& decode, const PlacementQuery& q,
                     std::span<const PrefixMatch> matches, bool* all_busy) {
  WorkerId best;
  uint64_t best_cost = 0;
  *all_busy = true;
  for (const auto& [id, p] : workers.all()) {
    if (p.info.role != Role::kPrefill || !p.ready() || p.saturated || decode.peers.count(id) == 0) continue;
    if (p.sequences.size() >= p.info.max_batch || p.Blocks(q.tokens) > p.TotalBlocks()) continue;
    if (p.sequences.empty()) *all_busy = false;
    const uint64_t cost = uint64_t{NewTokens(p, q.tokens, matches)} * (p.sequences.size() + 1);
    if (best.value == 0 || cost < best_cost) best = id, best_cost = cost;
  }
  return best;
}

}  // namespace

bool AnyCapacity(const WorkerTable& workers, const PlacementQuery& q) {
  return std::any_of(workers.all().begin(), workers.all().end(), [&](const auto& e) { return Fits(e.second, q); });
}

bool Place(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q,
           std::span<const PrefixMatch> matches, Placement* out) {
  const Worker* best = nullptr;
  uint64_t best_cost = 0;
  for (const auto& [id, w] : workers.all()) {
    if (!Fits(w, q)) continue;
    const uint64_t cost = uint64_t{NewTokens(w, q.tokens, matches)} * (w.sequences.size() + 1);
    if (best == nullptr || cost < best_cost || (cost == best_cost && id == q.sticky)) best = &w, best_cost = cost;
  }
  if (best == nullptr) return false;
  out->decode = best->id;
  out->prefill = WorkerId();
  out->new_tokens = NewTokens(*best, q.tokens, matches);
  out->booking = BookingFor(*best, q);
  if (out->new_tokens >= config.prefill_threshold) {
    bool prefill_busy = false;
    const WorkerId p = PickPrefill(workers, *best, q, matches, &prefill_busy);
    const bool local_is_sooner = best->sequences.empty() && prefill_busy;
    if (!local_is_sooner) out->prefill = p;
  }
  return true;
}

bool CouldEverFit(const WorkerTable& workers, uint32_t tokens, uint32_t* largest_blocks, uint32_t* needed_blocks) {
  bool any_decode = false;
  *largest_blocks = 0;
  *needed_blocks = 0;
  for (const auto& [id, w] : workers.all()) {
    if (w.info.role != Role::kDecode) continue;
    any_decode = true;
    *largest_blocks = std::max(*largest_blocks, w.TotalBlocks());
    *needed_blocks = w.Blocks(uint64_t{tokens} + 1);
    if (*needed_blocks <= w.TotalBlocks() && (w.info.context_length == 0 || tokens < w.info.context_length))
      return true;
  }
  return !any_decode;
}

}  // namespace agentserve::router
