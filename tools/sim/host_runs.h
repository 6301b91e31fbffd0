// The host tier of a simulated worker: runs of blocks by origin in a bounded store, the least worth evicted first, from
// its end. What engine::HostTier is for single blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>

#include "tools/workload/workload.h"

namespace agentserve::sim {

class HostRuns {
 public:
  explicit HostRuns(uint32_t capacity) : capacity_(capacity) {}

  bool enabled() const { return capacity_ > 0; }
  uint32_t stored() const { return stored_; }
  uint32_t capacity() const { return capacity_; }

  // Blocks [from, to) of an origin are here now; joined to what is there if they touch it, else instead of it.
  void Put(uint64_t origin, uint32_t from, uint32_t to, uint32_t worth) {
    if (from >= to || to - from > capacity_) return;
    Run& r = runs_[origin];
    order_.erase({r.due, origin});
    stored_ -= r.to - r.from;
    if (r.from == r.to || to < r.from || from > r.to) {
      r.from = from;
      r.to = to;
    } else {
      r.from = std::min(r.from, from);
      r.to = std::max(r.to, to);
    }
    r.due = clock_ + worth;
    stored_ += r.to - r.from;
    order_.insert({r.due, origin});
    while (stored_ > capacity_) EvictSome();
  }
  // Where the stored blocks end that follow block `first` of `spans` without a hole, at most `most`.
  uint32_t Extends(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t first, uint32_t most) const {
    for (const workload::Span& s : spans) {
      const uint32_t end = std::min(most, s.end / block_tokens);
      if (end <= first) continue;
      const auto it = runs_.find(s.origin);
      if (it == runs_.end() || it->second.from > first || it->second.to <= first) return first;
      first = std::min(end, it->second.to);
      if (first < end) return first;
    }
    return first;
  }
  bool Has(uint64_t origin, uint32_t from, uint32_t to) const {
    const auto it = runs_.find(origin);
    return it != runs_.end() && it->second.from <= from && it->second.to >= to;
  }
  void Drop(uint64_t origin) {
    const auto it = runs_.find(origin);
    if (it == runs_.end()) return;
    order_.erase({it->second.due, origin});
    stored_ -= it->second.to - it->second.from;
    runs_.erase(it);
  }

 private:
  struct Run {
    uint32_t from = 0, to = 0;
    uint64_t due = 0;
  };
  void EvictSome() {
    const auto [due, origin] = *order_.begin();
    clock_ = std::max(clock_, due);
    Run& r = runs_.at(origin);
    const uint32_t take = std::min(r.to - r.from, stored_ - capacity_);
    r.to -= take;
    stored_ -= take;
    if (r.from == r.to) Drop(origin);
  }

  const uint32_t capacity_;
  uint32_t stored_ = 0;
  uint64_t clock_ = 0;
  std::unordered_map<uint64_t, Run> runs_;
  std::set<std::pair<uint64_t, uint64_t>> order_;  // (due, origin)
};

}  // namespace agentserve::sim
