#include "router/core/placement.h"

#include <algorithm>
#include <array>
#include <tuple>

namespace agentserve::router {
namespace {

Booking BookingFor(const Worker& w, const PlacementQuery& q) {
  Booking b;
  b.unreflected = w.Blocks(uint64_t{q.tokens} + 1);
  const uint32_t whole = w.Blocks(uint64_t{q.tokens} + std::max<uint32_t>(q.expected_more, 1));
  b.growth = whole > b.unreflected ? whole - b.unreflected : 0;
  return b;
}

uint32_t BatchCap(const Worker& w, const CoreConfig& config, const PlacementQuery& q) {
  if (config.batch_cap == 0) return w.info.max_batch;
  const auto cap = static_cast<uint32_t>(config.batch_cap * q.overflow);
  return std::min(cap, w.info.max_batch);
}

Verdict Judge(const Worker& w, const CoreConfig& config, const PlacementQuery& q) {
  if (!w.ready()) return Verdict::kNotReady;
  if (w.saturated) return Verdict::kSaturated;
  if (w.info.context_length != 0 && q.tokens >= w.info.context_length) return Verdict::kTooLong;
  if (w.sequences.size() >= BatchCap(w, config, q)) return Verdict::kNoSlot;
  if (q.fresh && w.gated && !(q.resident && w.id == q.sticky)) return Verdict::kGated;
  const Booking b = BookingFor(w, q);
  // An empty worker takes anything its pool can hold, or the queue would never move.
  if (w.sequences.empty()) return b.unreflected <= w.TotalBlocks() ? Verdict::kFits : Verdict::kNoBlocks;
  return w.FreeBlocks() >= int64_t{b.unreflected} + b.growth ? Verdict::kFits : Verdict::kNoBlocks;
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

// What stands most in the way, of all workers: the one nearest to taking the call tells.
WaitReason WaitFor(const std::array<bool, kNumVerdicts>& seen) {
  auto any = [&](Verdict v) { return seen[static_cast<size_t>(v)]; };
  if (any(Verdict::kGated)) return WaitReason::kGated;
  if (any(Verdict::kNoBlocks)) return WaitReason::kNoBlocks;
  if (any(Verdict::kNoSlot)) return WaitReason::kNoSlot;
  if (any(Verdict::kSaturated)) return WaitReason::kSaturated;
  return any(Verdict::kTooLong) ? WaitReason::kTooLongHere : WaitReason::kNoWorker;
}

uint64_t Score(const Worker& w, const PlacementQuery& q, uint32_t new_tokens) {
  return uint64_t{q.by_prefix ? new_tokens : 1} * (w.sequences.size() + 1);
}

void ChoosePrefill(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q, const Worker& decode,
                   std::span<const PrefixMatch> matches, Placement* out) {
  const uint32_t deciding = q.append_local ? out->new_tokens : q.tokens;
  if (deciding < config.prefill_threshold) {
    out->reason = out->new_tokens < q.tokens ? PlaceReason::kLocalAppend : PlaceReason::kLocalShort;
    return;
  }
  bool prefill_busy = false;
  const WorkerId p = PickPrefill(workers, decode, q, matches, &prefill_busy);
  if (p.value == 0) {
    out->reason = PlaceReason::kLocalNoPrefill;
  } else if (decode.sequences.empty() && prefill_busy) {
    out->reason = PlaceReason::kLocalIdle;
  } else {
    out->reason = PlaceReason::kRemote;
    out->prefill = p;
  }
}

}  // namespace

bool AnyCapacity(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q, WaitReason* why) {
  std::array<bool, kNumVerdicts> seen{};
  for (const auto& [id, w] : workers.all()) {
    if (w.info.role != Role::kDecode) continue;
    const Verdict v = Judge(w, config, q);
    if (v == Verdict::kFits) return true;
    seen[static_cast<size_t>(v)] = true;
  }
  *why = WaitFor(seen);
  return false;
}

bool Place(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q,
           std::span<const PrefixMatch> matches, Placement* out) {
  const Worker* best = nullptr;
  const Worker* sticky = nullptr;
  uint64_t best_cost = 0;
  std::array<bool, kNumVerdicts> seen{};
  for (const auto& [id, w] : workers.all()) {
    if (w.info.role != Role::kDecode) continue;
    const Verdict v = Judge(w, config, q);
    seen[static_cast<size_t>(v)] = true;
    if (id == q.sticky && (v == Verdict::kNoSlot || v == Verdict::kNoBlocks)) sticky = &w;
    if (v != Verdict::kFits) continue;
    const uint64_t cost = Score(w, q, NewTokens(w, q.tokens, matches));
    if (best == nullptr || cost < best_cost || (cost == best_cost && id == q.sticky)) best = &w, best_cost = cost;
  }
  *out = Placement();
  if (best == nullptr) {
    out->wait = WaitFor(seen);
    return false;
  }
  out->new_tokens = NewTokens(*best, q.tokens, matches);
  if (sticky != nullptr && q.wait_for_tokens > 0 && !best->sequences.empty()) {
    out->saved_tokens = out->new_tokens - std::min(out->new_tokens, NewTokens(*sticky, q.tokens, matches));
    if (out->saved_tokens >= q.wait_for_tokens) {
      out->waits_for_sticky = true;
      out->wait = sticky->sequences.size() >= sticky->info.max_batch ? WaitReason::kNoSlot : WaitReason::kNoBlocks;
      return false;
    }
  }
  out->decode = best->id;
  out->booking = BookingFor(*best, q);
  ChoosePrefill(workers, config, q, *best, matches, out);
  return true;
}

std::vector<Candidate> Explain(const WorkerTable& workers, const CoreConfig& config, const PlacementQuery& q,
                               std::span<const PrefixMatch> matches, WorkerId chosen, uint32_t* seen) {
  struct Row {
    bool chosen;
    Verdict verdict;
    uint64_t score;
    uint32_t new_tokens;
    const Worker* worker;
  };
  std::vector<Row> rows;
  for (const auto& [id, w] : workers.all()) {
    if (w.info.role != Role::kDecode) continue;
    const uint32_t fresh = NewTokens(w, q.tokens, matches);
    const Verdict v = id == chosen ? Verdict::kChosen : Judge(w, config, q);
    rows.push_back({id == chosen, v, Score(w, q, fresh), fresh, &w});
  }
  *seen = static_cast<uint32_t>(rows.size());
  const size_t most = std::min(rows.size(), DecisionRecord::kMostCandidates);
  const auto end = rows.begin() + static_cast<std::ptrdiff_t>(most);
  std::partial_sort(rows.begin(), end, rows.end(), [](const Row& a, const Row& b) {
    const bool a_fits = a.verdict == Verdict::kFits, b_fits = b.verdict == Verdict::kFits;
    return std::tuple(!a.chosen, !a_fits, a.score, a.worker->id) <
           std::tuple(!b.chosen, !b_fits, b.score, b.worker->id);
  });
  std::vector<Candidate> out;
  out.reserve(most);
  for (size_t i = 0; i < most; ++i) {
    const Worker& w = *rows[i].worker;
    out.push_back({w.id, w.info.name, rows[i].verdict, rows[i].new_tokens, static_cast<uint32_t>(w.sequences.size()),
                   w.FreeBlocks(), rows[i].score, w.id == q.sticky});
  }
  return out;
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
