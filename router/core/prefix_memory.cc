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

void PrefixMemory::Record(std::span<const base::Hash128> chain, WorkerId worker) {
  // From the end, so that the start of a chain is the most recent and outlives its tail.
  for (size_t i = std::min(chain.size(), most_); i-- > 0;) {
    auto it = index_.find(chain[i]);
    if (it == index_.end()) {
      if (index_.size() >= most_) {
        index_.erase(lru_.back().hash);
        lru_.pop_back();
      }
      lru_.push_front({chain[i], {}});
      it = index_.emplace(chain[i], lru_.begin()).first;
    } else {
      lru_.splice(lru_.begin(), lru_, it->second);
    }
    std::vector<WorkerId>& holders = it->second->holders;
    std::erase(holders, worker);
    holders.insert(holders.begin(), worker);
    if (holders.size() > kHolders) holders.pop_back();
  }
}

void PrefixMemory::Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const {
  std::vector<WorkerId> active;
  for (uint32_t i = 0; i < chain.size(); ++i) {
    auto it = index_.find(chain[i]);
    if (it == index_.end()) break;
    const std::vector<WorkerId>& holders = it->second->holders;
    if (i == 0) {
      active = holders;
    } else {
      std::erase_if(active, [&](WorkerId w) { return std::find(holders.begin(), holders.end(), w) == holders.end(); });
    }
    if (active.empty()) break;
    for (WorkerId w : active) RaiseMatch(w, i + 1, out);
  }
}

void PrefixMemory::CheckInvariants() const {
  AS_CHECK_EQ(index_.size(), lru_.size());
  AS_CHECK_LE(index_.size(), most_);
}

}  // namespace agentserve::router
