// What a fast worker keeps of KV that no sequence needs now: pins, worth, host memory. See engine/kv_tiers.h.
#include <algorithm>
#include <limits>

#include "engine/block_pool.h"
#include "tools/sim/fast_worker.h"

namespace agentserve::sim {
namespace {

TimeNs FromMs(double ms) { return static_cast<TimeNs>(ms * 1e6 + 0.5); }
constexpr uint32_t kAll = std::numeric_limits<uint32_t>::max();

}  // namespace

void FastWorker::Retain(const router::Command& c, TimeNs now) {
  if (Seq* s = Find(c.seq)) {
    s->has_keep = true;
    s->keep = c;
    return;
  }
  if (const auto it = finished_.find(c.seq.value); it != finished_.end()) KeepAs(c, SpansPtr(it->second), now);
}

void FastWorker::KeepAs(const router::Command& c, const SpansPtr& spans, TimeNs now) {
  PrefixTree::Node deepest = 0;
  tree_.Match(*spans, o_.block_tokens, kAll, &deepest);
  if (c.keep == router::KeepWhere::kDrop) {
    tree_.Unpin(deepest);
    tree_.MakeFinal(deepest);
    host_.Drop(spans->back().origin);
    return;
  }
  const auto worth = static_cast<uint32_t>(std::clamp(c.worth, 1.f / 64, 64.f) * PrefixTree::kBaseWorth);
  tree_.SetWorth(deepest, worth);
  if (c.keep == router::KeepWhere::kDevice) {
    if (c.ttl_ms > 0) {
      tree_.Pin(deepest, now + static_cast<TimeNs>(c.ttl_ms) * base::kNsPerMs, o_.num_blocks / 2);
    } else {
      tree_.Unpin(deepest);
    }
    return;
  }
  tree_.Unpin(deepest);
  if (!host_.enabled()) return;
  const uint32_t stored = host_.Extends(*spans, o_.block_tokens, 0, kAll);
  const uint32_t all = spans->back().end / o_.block_tokens;
  const double bytes = (all - std::min(all, stored)) * double(o_.block_tokens) * model_.calibration().bytes_per_token;
  copies_.emplace(now + FromMs(model_.HostCopyMs(bytes)), Copy{spans, 0, worth, true});
}

// The copy to the host is complete: what is still on the device of it is there too.
void FastWorker::StoreOnHost(const SpansPtr& spans, uint32_t worth) {
  PrefixTree::Node deepest = 0;
  const uint32_t here = tree_.Match(*spans, o_.block_tokens, kAll, &deepest);
  uint32_t from = 0;
  for (const workload::Span& s : *spans) {
    const uint32_t to = std::min(here, s.end / o_.block_tokens);
    host_.Put(s.origin, from, to, worth);
    from = std::max(from, to);
  }
  if (deepest != PrefixTree::kRoot) tree_.SetClean(deepest, true);
}

void FastWorker::Prefetch(const router::Command& c, TimeNs now) {
  const auto it = finished_.find(c.seq.value);
  if (it == finished_.end()) return;
  const SpansPtr spans = it->second;
  const TimeNs until = now + static_cast<TimeNs>(std::max<uint64_t>(1, c.ttl_ms)) * base::kNsPerMs;
  PrefixTree::Node deepest = 0;
  const uint32_t here = tree_.Match(*spans, o_.block_tokens, kAll, &deepest);
  tree_.Pin(deepest, until, o_.num_blocks / 2);
  if (!host_.enabled() || !waiting_.empty()) return;
  const uint32_t end = host_.Extends(*spans, o_.block_tokens, here, kAll);
  if (end <= here) return;
  const double bytes = (end - here) * double(o_.block_tokens) * model_.calibration().bytes_per_token;
  host_link_free_ = std::max(host_link_free_, now) + FromMs(model_.HostCopyMs(bytes));
  copies_.emplace(host_link_free_, Copy{spans, until, 0, false});
}

// As far as there are blocks that nobody needs.
void FastWorker::EndPrefetch(const SpansPtr& spans, TimeNs until) {
  PrefixTree::Node deepest = 0;
  const uint32_t here = tree_.Match(*spans, o_.block_tokens, kAll, &deepest);
  uint32_t end = host_.Extends(*spans, o_.block_tokens, here, kAll);
  const int64_t reserve = o_.num_blocks / 16 + static_cast<int64_t>(active_.size()) + tree_.pinned();
  const int64_t room = Available() - reserve - tree_.UnlockedOnPath(deepest);
  if (end <= here || room <= 0) return;
  end = static_cast<uint32_t>(std::min<int64_t>(end, here + room));
  tree_.Lock(deepest);  // the beginning must not be what makes room for the rest
  const int64_t used = int64_t{tree_.total()} + own_ + (end - here);
  if (used > o_.num_blocks) {
    own_ += end - here;
    MakeFree();
    own_ -= end - here;
  }
  const PrefixTree::Node last = tree_.Insert(*spans, o_.block_tokens, here, end, deepest);
  tree_.Lock(last);
  tree_.Unlock(deepest);
  tree_.Unlock(last);
  tree_.SetClean(last, true);
  tree_.Pin(last, until, o_.num_blocks / 2);
}

// A prompt that is partly in host memory is copied before it is answered, if that is cheaper than computing.
bool FastWorker::BeginLoad(Seq* s, TimeNs now) {
  if (!host_.enabled() || o_.role != router::Role::kDecode) return false;
  const uint32_t most = (s->length - 1) / o_.block_tokens;
  const uint32_t first = s->computed / o_.block_tokens;
  const uint32_t end = host_.Extends(*s->spans, o_.block_tokens, first, most);
  if (end <= first) return false;
  const uint32_t tokens = (end - first) * o_.block_tokens;
  const double copy_ms = model_.HostCopyMs(tokens * model_.calibration().bytes_per_token);
  if (copy_ms >= model_.PrefillMs(tokens, s->computed, o_.step_tokens)) return false;
  host_link_free_ = std::max(host_link_free_, now) + FromMs(copy_ms);
  s->loading = end - first;
  loads_.insert({host_link_free_, s->id});
  return true;
}

void FastWorker::EndLoad(Seq* s) {
  s->computed += s->loading * o_.block_tokens;
  if (!s->counted) s->host = s->loading * o_.block_tokens, s->cached = s->computed;
  s->loading = 0;
  Seal(s, s->computed);
  tree_.SetClean(s->node, true);
  if (s->runnable) s->state = State::kPrefill, prefilling_.insert(KeyOf(*s));
  AnswerReserve(s);
}

}  // namespace agentserve::sim
