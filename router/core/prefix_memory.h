// Which worker holds which prompt prefix: the narrow view placement needs, and a bounded memory of the router's own
// that needs no kvstore. Both may be wrong (a worker evicts as it likes); a wrong answer costs time, never correctness.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "router/core/types.h"

namespace agentserve::router {

// Leading blocks of a chain that a worker holds.
struct PrefixMatch {
  WorkerId worker;
  uint32_t blocks = 0;
};

class PrefixSource {
 public:
  virtual ~PrefixSource() = default;
  // Adds or raises entries of `out` (one per worker). Called on the core's thread.
  virtual void Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const = 0;
};

// Raises the entry of `worker` to `blocks`, adding it if absent.
void RaiseMatch(WorkerId worker, uint32_t blocks, std::vector<PrefixMatch>* out);

// Remembers the workers that served each block, the most recent `most` blocks. Single-threaded.
class PrefixMemory final : public PrefixSource {
 public:
  explicit PrefixMemory(size_t most) : most_(most) {}
  // `worker` holds all of `chain` now.
  void Record(std::span<const base::Hash128> chain, WorkerId worker);
  void Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const override;
  size_t size() const { return index_.size(); }
  void CheckInvariants() const;

 private:
  // Workers per block: more replicas of one prefix do not help placement.
  static constexpr size_t kHolders = 8;
  struct Entry {
    base::Hash128 hash;
    std::vector<WorkerId> holders;  // newest first, at most kHolders
  };
  const size_t most_;
  std::list<Entry> lru_;  // most recent first
  std::unordered_map<base::Hash128, std::list<Entry>::iterator, base::Hash128Hasher> index_;
};

}  // namespace agentserve::router
