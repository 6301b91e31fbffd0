#include "router/core/prefix_memory.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::router {

void RaiseMatch(WorkerId worker, uint32_t blocks, std::vector<PrefixMatch>* out) {
  for (PrefixMatch& m : *out) {
    if (m.worker == worker) {
      m.blocks = std::max(m.blocks, blocks);
      return;
    }
  }
  out->push_back({worker, blocks});
}

// How many leading hashes agree. Equal hashes mean equal prefixes, so they agree up to one place.
size_t PrefixMemory::Common(const Run& run, std::span<const base::Hash128> chain) {
  const size_t most = std::min(run.hashes.size(), chain.size());
  if (most > 0 && run.hashes[most - 1] == chain[most - 1]) return most;
  size_t low = 0, high = most;  // agree on [0, low), not at high
  while (low < high) {
    const size_t mid = (low + high) / 2;
    if (run.hashes[mid] == chain[mid]) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

void PrefixMemory::Hold(Run* run, WorkerId worker, uint32_t blocks) {
  auto it = std::find_if(run->holders.begin(), run->holders.end(), [&](const Holder& h) { return h.worker == worker; });
  if (it != run->holders.end()) {
    blocks = std::max(blocks, it->blocks);
    run->holders.erase(it);
  }
  run->holders.insert(run->holders.begin(), {worker, blocks});
  if (run->holders.size() > kHolders) run->holders.pop_back();
}

PrefixMemory::RunIt PrefixMemory::Add(RunIt parent, std::span<const base::Hash128> hashes) {
  runs_.push_front({{hashes.begin(), hashes.end()}, {}, parent, 0});
  if (parent != runs_.end()) ++parent->children;
  index_[hashes[0]] = runs_.begin();
  blocks_ += hashes.size();
  return runs_.begin();
}

// A new run right before `run` gets its first `at` hashes; `run` keeps the rest, its children and their pointers to it.
PrefixMemory::RunIt PrefixMemory::Split(RunIt run, size_t at) {
  const auto cut = run->hashes.begin() + static_cast<std::ptrdiff_t>(at);
  const RunIt head = runs_.insert(run, Run{{run->hashes.begin(), cut}, {}, run->parent, 1});
  run->hashes.erase(run->hashes.begin(), cut);
  run->parent = head;
  index_[head->hashes[0]] = head;
  index_[run->hashes[0]] = run;
  std::vector<Holder> tail;
  for (const Holder& h : run->holders) {
    head->holders.push_back({h.worker, std::min(h.blocks, static_cast<uint32_t>(at))});
    if (h.blocks > at) tail.push_back({h.worker, h.blocks - static_cast<uint32_t>(at)});
  }
  run->holders = std::move(tail);
  return head;
}

// The least recently used leaf loses its end.
void PrefixMemory::Evict() {
  while (blocks_ > most_) {
    const RunIt last = std::prev(runs_.end());
    AS_CHECK_EQ(last->children, 0u);
    const size_t surplus = blocks_ - most_;
    if (surplus < last->hashes.size()) {
      last->hashes.resize(last->hashes.size() - surplus);
      for (Holder& h : last->holders) h.blocks = std::min(h.blocks, static_cast<uint32_t>(last->hashes.size()));
      blocks_ = most_;
      return;
    }
    blocks_ -= last->hashes.size();
    index_.erase(last->hashes[0]);
    if (last->parent != runs_.end()) --last->parent->children;
    runs_.erase(last);
  }
}

void PrefixMemory::Record(std::span<const base::Hash128> chain, WorkerId worker) {
  chain = chain.first(std::min(chain.size(), most_));
  if (chain.empty()) return;
  RunIt parent = runs_.end();
  while (!chain.empty()) {
    auto it = index_.find(chain[0]);
    RunIt run;
    if (it == index_.end()) {
      if (parent != runs_.end() && parent->children == 0) {  // the chain goes on where its last run ends
        parent->hashes.insert(parent->hashes.end(), chain.begin(), chain.end());
        blocks_ += chain.size();
        Hold(&*parent, worker, static_cast<uint32_t>(parent->hashes.size()));
        break;
      }
      run = Add(parent, chain);
    } else {
      run = it->second;
    }
    const size_t common = Common(*run, chain);
    if (common < run->hashes.size() && common < chain.size()) run = Split(run, common);
    Hold(&*run, worker, static_cast<uint32_t>(common));
    chain = chain.subspan(common);
    parent = run;
  }
  // Leaf first, so that each run ends up before its children.
  for (RunIt run = parent; run != runs_.end(); run = run->parent) runs_.splice(runs_.begin(), runs_, run);
  Evict();
}

void PrefixMemory::Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const {
  uint32_t before = 0;
  while (!chain.empty()) {
    auto it = index_.find(chain[0]);
    if (it == index_.end()) return;
    const Run& run = *it->second;
    const auto common = static_cast<uint32_t>(Common(run, chain));
    for (const Holder& h : run.holders) RaiseMatch(h.worker, before + std::min(common, h.blocks), out);
    if (common < run.hashes.size()) return;
    before += common;
    chain = chain.subspan(common);
  }
}

void PrefixMemory::CheckInvariants() const {
  AS_CHECK_EQ(index_.size(), runs_.size());
  AS_CHECK_LE(blocks_, most_);
  size_t blocks = 0;
  std::unordered_map<const Run*, uint32_t> children, place;
  uint32_t at = 0;
  for (const Run& run : runs_) {
    AS_CHECK(!run.hashes.empty());
    AS_CHECK(&*index_.at(run.hashes[0]) == &run);
    AS_CHECK_LE(run.holders.size(), kHolders);
    for (const Holder& h : run.holders) AS_CHECK(h.blocks >= 1 && h.blocks <= run.hashes.size());
    blocks += run.hashes.size();
    place[&run] = at++;
    if (run.parent != runs_.end()) {
      ++children[&*run.parent];
      AS_CHECK(place.count(&*run.parent) == 1) << "a run before its parent";
    }
  }
  for (const Run& run : runs_) AS_CHECK_EQ(run.children, children[&run]);
  AS_CHECK_EQ(blocks, blocks_);
}

}  // namespace agentserve::router
