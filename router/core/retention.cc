#include "router/core/retention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace agentserve::router {
namespace {

// Lengths of a pin that are compared.
constexpr double kPinsMs[] = {50,     100,    250,    500,     1'000,   2'000,   4'000,  8'000,
                              15'000, 30'000, 60'000, 120'000, 240'000, 480'000, 600'000};
// Shorter ones are decided again too often.
constexpr TimeNs kShortestPin = 1 * base::kNsPerSecond;
// A longer pin must gain this much more than a shorter one.
constexpr double kWorthLonger = 1.02;
// A hint of the client counts as so many gaps of the program.
constexpr int kHintGaps = 2;
// Worth of KV is how likely it is asked for within this time, about the time that unused blocks last in a busy pool.
constexpr double kSoonMs = 60'000;
// Worth of a block whose program is sure to be back; workers copy what is worth more than 1 before they evict it.
constexpr double kMostWorth = 16;

}  // namespace

const char* RetainReasonName(RetainReason r) {
  constexpr const char* kNames[kNumRetainReasons] = {
      "pin_worth",  "pin_asked",         "host_copy",       "host_price",     "host_quota",
      "host_late",  "cache_only",        "drop_final",      "drop_ended",     "drop_replaced",
      "drop_moved", "prefetch_tool_end", "prefetch_median", "prefetch_queued"};
  return kNames[static_cast<size_t>(r)];
}

// ---- entries ----

Retention::Parked* Retention::Find(std::string_view key) {
  const auto it = index_.find(key);
  return it == index_.end() ? nullptr : &*it->second;
}

Retention::Parked& Retention::Touch(std::string_view key) {
  if (const auto it = index_.find(key); it != index_.end()) {
    lru_.splice(lru_.begin(), lru_, it->second);
    return lru_.front();
  }
  if (index_.size() >= options_.most) Forget(&lru_.back());
  lru_.emplace_front();
  lru_.front().key = std::string(key);
  index_.emplace(lru_.front().key, lru_.begin());
  return lru_.front();
}

void Retention::Forget(Parked* p) {
  Move(p, Place::kNowhere);
  SetTimer(p, 0);
  const auto it = index_.find(p->key);
  const List::iterator node = it->second;
  index_.erase(it);
  lru_.erase(node);
}

void Retention::SetTimer(Parked* p, TimeNs at) {
  if (p->check_at != 0) timers_.erase({p->check_at, p->key});
  p->check_at = at;
  if (at != 0) timers_.insert({at, p->key});
}

void Retention::Move(Parked* p, Place place) {
  if (p->place == Place::kPinned) {
    const auto it = pinned_.find({p->worker, p->tenant});
    AS_CHECK(it != pinned_.end() && it->second >= p->blocks);
    it->second -= p->blocks;
    if (it->second == 0) pinned_.erase(it);
    pins_.erase({static_cast<uint64_t>(p->since), p->key});
  }
  p->place = place;
  if (place == Place::kPinned) {
    pinned_[{p->worker, p->tenant}] += p->blocks;
    pins_.insert({static_cast<uint64_t>(p->since), p->key});
  }
}

RetainAction& Retention::Act(Parked* p, CommandKind kind, RetainReason reason) {
  RetainAction& a = actions_.emplace_back();
  a.worker = p->worker;
  a.seq = p->seq;
  a.attempt = p->attempt;
  a.kind = kind;
  a.reason = reason;
  p->last_reason = reason;
  ++stats_.decisions[static_cast<size_t>(reason)];
  return a;
}

uint32_t Retention::pinned(WorkerId worker, const std::string& tenant) const {
  const auto it = pinned_.find({worker, tenant});
  return it == pinned_.end() ? 0 : it->second;
}

std::string_view Retention::LastReason(std::string_view program) const {
  const auto it = index_.find(program);
  return it == index_.end() ? std::string_view() : RetainReasonName(it->second->last_reason);
}

// ---- decisions ----

double Retention::ProbBack(const Parked& p, const ToolStats& tools, double elapsed_ms, double within_ms) const {
  const GapHistogram& tool = tools.Best(p.workflow_class, p.tool);
  // Nothing is known: as likely as not within the default, whenever one looks.
  if (tool.weight() <= 0 && p.gaps.count == 0) {
    return 1 - std::exp2(-within_ms / static_cast<double>(options_.default_ttl_ms));
  }
  if (tool.weight() <= 0) return p.gaps.ProbWithin(elapsed_ms, within_ms);
  return ProbReturnWithin(tool, p.gaps, elapsed_ms, within_ms);
}

Retention::Choice Retention::Best(const Parked& p, const Worker& w, const RetentionView& view) const {
  const double rate = w.info.prefill_tokens_per_s > 0 ? w.info.prefill_tokens_per_s : options_.prefill_tokens_per_s;
  double saved_s = p.tokens / rate;
  if (w.load.host_total_blocks > 0 && w.info.block_bytes > 0) {
    const double bytes = static_cast<double>(p.blocks) * static_cast<double>(w.info.block_bytes);
    saved_s = std::min(saved_s, bytes / options_.host_bytes_per_s);
  }
  uint32_t workers = 0;
  for (const auto& [id, other] : view.workers.all()) workers += other.info.role == Role::kDecode && other.ready();
  const double queued = static_cast<double>(view.queued) / std::max(workers, 1u);
  const double price = queued * p.blocks / std::max(1u, w.TotalBlocks());  // seconds per second
  const double elapsed_ms = base::ToMs(view.now - p.since);
  Choice best;
  best.back = ProbBack(p, view.tools, elapsed_ms, kSoonMs);
  if (elapsed_ms >= static_cast<double>(options_.most_ttl_ms)) return best;
  double held_s = 0, before_ms = 0, away = 1;  // E[min(T, t)], the last t, P(T > t)
  for (const double ms : kPinsMs) {
    if (ms > static_cast<double>(options_.most_ttl_ms)) break;
    const double back = ProbBack(p, view.tools, elapsed_ms, ms);
    held_s += (away + 1 - back) / 2 * (ms - before_ms) / 1e3;
    before_ms = ms;
    away = 1 - back;
    const double gain = back * saved_s - price * held_s;
    if (gain > 0 && gain > kWorthLonger * best.gain) {
      best.gain = gain;
      best.ttl = static_cast<TimeNs>(ms * 1e6);
    }
  }
  return best;
}

bool Retention::WithinQuota(const Parked& p, const Worker& w) const {
  const uint32_t own = p.place == Place::kPinned ? p.blocks : 0;
  const auto own_share = options_.tenant_shares.find(p.tenant);
  const double part = own_share == options_.tenant_shares.end() ? options_.tenant_share : own_share->second;
  const double share = part * w.TotalBlocks();
  return pinned(p.worker, p.tenant) - own + p.blocks <= share;
}

// Pins, moves to host memory, or leaves as cache. `late`: a pin ended and the program is not back.
void Retention::Decide(Parked* p, const RetentionView& view, bool late) {
  const Worker* w = view.workers.Find(p->worker);
  if (w == nullptr) return Forget(p);
  const Choice best = Best(*p, *w, view);
  p->queued = view.queued;
  const TimeNs asked = p->since + static_cast<TimeNs>(p->retain_ms) * base::kNsPerMs;
  const bool is_asked = p->retain_ms > 0 && asked > view.now;
  const bool quota = WithinQuota(*p, *w);
  const bool gains = view.queued > 0 && best.gain > 0;  // while nobody waits, worth alone keeps it
  const bool has_host = w->load.host_total_blocks > 0;
  const auto worth = static_cast<float>(std::clamp(kMostWorth * best.back, 0.25, kMostWorth));
  if (quota && (gains || is_asked)) {
    const TimeNs ttl = std::max(gains ? std::max(best.ttl, kShortestPin) : 0, is_asked ? asked - view.now : 0);
    RetainAction& a = Act(p, CommandKind::kRetain, gains ? RetainReason::kPinWorth : RetainReason::kPinAsked);
    a.keep = KeepWhere::kDevice;
    a.ttl_ms = static_cast<uint64_t>(ttl / base::kNsPerMs);
    a.worth = worth;
    Move(p, Place::kPinned);
    return SetTimer(p, view.now + ttl);
  }
  SetTimer(p, 0);
  if (p->place == Place::kHost) return AwaitMedian(p, view);
  const bool over_quota = !quota && (gains || is_asked);
  RetainAction& a = Act(p, CommandKind::kRetain,
                        !has_host          ? RetainReason::kCacheOnly
                        : over_quota       ? RetainReason::kHostQuota
                        : late             ? RetainReason::kHostLate
                        : view.queued == 0 ? RetainReason::kHostCopy
                                           : RetainReason::kHostPrice);
  a.keep = has_host ? KeepWhere::kHost : KeepWhere::kDevice;
  a.worth = worth;
  Move(p, has_host ? Place::kHost : Place::kCache);
  if (has_host) AwaitMedian(p, view);
}

// Back on the device by the time it is as likely as not to be asked for.
void Retention::AwaitMedian(Parked* p, const RetentionView& view) {
  if (p->prefetched) return;
  const double elapsed_ms = base::ToMs(view.now - p->since);
  const double median_ms = view.tools.Best(p->workflow_class, p->tool).Median(elapsed_ms);
  if (median_ms > elapsed_ms) SetTimer(p, p->since + static_cast<TimeNs>(median_ms * 1e6));
}

void Retention::Prefetch(Parked* p, RetainReason reason, const RetentionView& view) {
  if (p->place == Place::kNowhere || p->prefetched || view.workers.Find(p->worker) == nullptr) return;
  p->prefetched = true;
  const Worker& w = *view.workers.Find(p->worker);
  RetainAction& a = Act(p, CommandKind::kPrefetch, reason);
  // Long enough for the call to come, short enough not to matter if it does not.
  a.ttl_ms = WithinQuota(*p, w) ? std::min<uint64_t>(options_.default_ttl_ms, 5'000) : 1;
  SetTimer(p, view.now + static_cast<TimeNs>(a.ttl_ms) * base::kNsPerMs);
}

void Retention::DropOld(Parked* p) {
  if (p->old_worker.value == 0) return;
  RetainAction& a = Act(p, CommandKind::kRetain, p->old_reason);
  a.worker = std::exchange(p->old_worker, WorkerId());
  a.seq = p->old_seq;
  a.attempt = p->old_attempt;
  a.keep = KeepWhere::kDrop;
}

// ---- events ----

void Retention::OnTurnEnd(const Turn& turn, const RetentionView& view) {
  const Worker* w = view.workers.Find(turn.worker);
  if (w == nullptr) return;
  Parked& p = Touch(turn.program);
  if (p.continued && p.old_worker.value == 0 && p.worker != turn.worker) {
    p.old_worker = p.worker, p.old_seq = p.seq, p.old_attempt = p.attempt, p.old_reason = RetainReason::kDropMoved;
  }
  if (p.place == Place::kPinned) Act(&p, CommandKind::kRetain, RetainReason::kCacheOnly);  // a call beside this one
  Move(&p, Place::kNowhere);
  SetTimer(&p, 0);
  p.tenant = std::string(turn.tenant);
  p.workflow_class = std::string(turn.workflow_class);
  p.tool = std::string(turn.tool);
  p.worker = turn.worker;
  p.seq = turn.seq;
  p.attempt = turn.attempt;
  p.tokens = turn.tokens;
  p.blocks = std::max(1u, turn.tokens / std::max(1u, w->info.block_tokens));
  p.chain_blocks = static_cast<uint32_t>(turn.chain.size());
  p.chain_end = turn.chain.empty() ? base::Hash128{} : turn.chain.back();
  p.chain_middle = turn.chain.empty() ? base::Hash128{} : turn.chain[turn.chain.size() / 2];
  p.gaps = turn.gaps;
  for (int i = 0; turn.gap_hint_ms && i < kHintGaps; ++i) p.gaps.Add(static_cast<double>(*turn.gap_hint_ms));
  p.retain_ms = std::min(turn.retain_ms.value_or(0), options_.most_ttl_ms);
  p.waiting = true;
  p.continued = p.prefetched = false;
  p.since = view.now;
  DropOld(&p);
  if (turn.final) {
    Act(&p, CommandKind::kRetain, RetainReason::kDropFinal).keep = KeepWhere::kDrop;
    return Forget(&p);
  }
  Decide(&p, view, /*late=*/false);
}

void Retention::OnCall(std::string_view program, std::span<const base::Hash128> chain, const RetentionView&) {
  Parked* p = Find(program);
  if (p == nullptr || !p->waiting) return;
  p->waiting = false;
  SetTimer(p, 0);
  if (p->place == Place::kPinned) Move(p, Place::kCache);  // the pin runs out, or the call takes the blocks
  const auto has = [&](size_t i, const base::Hash128& name) { return i < chain.size() && chain[i] == name; };
  p->continued = p->chain_blocks > 0 && has(p->chain_blocks - 1, p->chain_end);
  if (p->continued || p->chain_blocks == 0 || !has(p->chain_blocks / 2, p->chain_middle)) return;
  // More than half of its history is the same and the end is not: the client has rewritten it. (Otherwise it may be
  // another conversation of the program, beside this one.)
  p->old_worker = p->worker, p->old_seq = p->seq, p->old_attempt = p->attempt;
  p->old_reason = RetainReason::kDropReplaced;
}

void Retention::OnQueued(std::string_view program, const RetentionView& view) {
  Parked* p = Find(program);
  if (p == nullptr || p->place != Place::kHost) return;
  Prefetch(p, RetainReason::kPrefetchQueued, view);
}

void Retention::OnToolStart(std::string_view program, std::string_view tool, const RetentionView& view) {
  Parked* p = Find(program);
  if (p == nullptr || !p->waiting) return;
  const bool same = p->tool == tool;
  p->tool = std::string(tool);
  if (!same && p->place != Place::kNowhere) Decide(p, view, /*late=*/false);
}

void Retention::OnToolEnd(std::string_view program, const RetentionView& view) {
  Parked* p = Find(program);
  if (p == nullptr || !p->waiting) return;
  if (p->place == Place::kHost || p->place == Place::kCache) Prefetch(p, RetainReason::kPrefetchToolEnd, view);
}

void Retention::OnProgramEnd(std::string_view program, const RetentionView&) {
  Parked* p = Find(program);
  if (p == nullptr) return;
  DropOld(p);
  Act(p, CommandKind::kRetain, RetainReason::kDropEnded).keep = KeepWhere::kDrop;
  Forget(p);
}

void Retention::OnPressure(const RetentionView& view) {
  if (reviewed_at_ >= 0 && view.now < reviewed_at_ + options_.review_every) return;
  reviewed_at_ = view.now;
  std::vector<Parked*> look;
  for (const auto& [since, key] : pins_) {
    if (look.size() >= options_.most_reviewed) break;
    Parked* p = Find(key);
    // As long as the queue has not doubled, the last decision stands.
    if (view.queued > 2 * p->queued) look.push_back(p);
  }
  for (Parked* p : look) Decide(p, view, /*late=*/false);
}

void Retention::OnWorkerGone(WorkerId worker) {
  for (auto it = lru_.begin(); it != lru_.end();) {
    Parked& p = *it++;
    if (p.old_worker == worker) p.old_worker = WorkerId();
    if (p.worker == worker) Forget(&p);
  }
}

void Retention::Tick(const RetentionView& view) {
  while (!timers_.empty() && timers_.begin()->first <= view.now) {
    Parked* p = Find(timers_.begin()->second);
    SetTimer(p, 0);
    if (p->place == Place::kHost && !p->prefetched) {
      Prefetch(p, RetainReason::kPrefetchMedian, view);
    } else if (p->place == Place::kPinned) {
      Decide(p, view, /*late=*/true);
    }
  }
}

TimeNs Retention::NextWake() const {
  return timers_.empty() ? std::numeric_limits<TimeNs>::max() : timers_.begin()->first;
}

void Retention::CheckInvariants() const {
  AS_CHECK_EQ(index_.size(), lru_.size());
  AS_CHECK_LE(index_.size(), options_.most);
  std::map<std::pair<WorkerId, std::string>, uint32_t> pinned;
  size_t timers = 0, pins = 0;
  for (const Parked& p : lru_) {
    if (p.place == Place::kPinned) pinned[{p.worker, p.tenant}] += p.blocks;
    pins += p.place == Place::kPinned;
    AS_CHECK(p.place != Place::kPinned || pins_.contains({static_cast<uint64_t>(p.since), p.key}));
    AS_CHECK(p.check_at == 0 || timers_.contains({p.check_at, p.key})) << p.key;
    timers += p.check_at != 0;
  }
  AS_CHECK(pinned == pinned_);
  AS_CHECK_EQ(timers, timers_.size());
  AS_CHECK_EQ(pins, pins_.size());
}

}  // namespace agentserve::router
