// Which worker holds which prompt prefix: the narrow view placement needs, and a bounded memory of the router's own
// that needs no kvstore. Both may be wrong (a worker evicts as it likes); a wrong answer costs time, never correctness.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
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

// Remembers which workers served which chains, the most recent `most` blocks. A trie whose edges are runs of blocks: a
// block's hash names its whole prefix, so two chains agree up to one place, which a binary search finds, and a program
// that grows by a turn extends its last run. A call costs O(branches of its prefix + new blocks), not O(its blocks).
// Single-threaded.
class PrefixMemory final : public PrefixSource {
 public:
  explicit PrefixMemory(size_t most) : most_(most) {}
  // `worker` holds all of `chain` now.
  void Record(std::span<const base::Hash128> chain, WorkerId worker);
  void Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const override;
  size_t size() const { return blocks_; }
  size_t runs() const { return runs_.size(); }
  void CheckInvariants() const;

 private:
  // Workers per run: more replicas of one prefix do not help placement.
  static constexpr size_t kHolders = 8;
  struct Holder {
    WorkerId worker;
    uint32_t blocks = 0;  // leading blocks of the run
  };
  struct Run;
  using RunIt = std::list<Run>::iterator;
  struct Run {
    std::vector<base::Hash128> hashes;  // never empty
    std::vector<Holder> holders;        // newest first, at most kHolders
    RunIt parent;                       // runs_.end() for a root
    uint32_t children = 0;
  };

  static size_t Common(const Run& run, std::span<const base::Hash128> chain);
  static void Hold(Run* run, WorkerId worker, uint32_t blocks);
  RunIt Add(RunIt parent, std::span<const base::Hash128> hashes);
  RunIt Split(RunIt run, size_t at);
  void Evict();

  const size_t most_;
  size_t blocks_ = 0;
  // Most recently used first; a run always comes before its children, so the last one is a leaf.
  std::list<Run> runs_;
  std::unordered_map<base::Hash128, RunIt, base::Hash128Hasher> index_;  // by first hash of the run
};

}  // namespace agentserve::router
