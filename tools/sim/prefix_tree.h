// The prefix cache of a simulated worker: what engine::BlockPool does with names and an LRU list of blocks, on runs of
// blocks instead of single ones. A node is a run of blocks with one origin; children hang at its end.
//
// Same results as the pool: a prefix is usable from its start; a hold on a block holds all before it; blocks nobody
// holds are evicted least recently released first, of one release the last block first (so always a leaf's end).
// Invariants: a locked node has a locked parent; unlocked nodes are exactly those of the LRU list, children before
// parents; total = locked + cached, in blocks.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "tools/workload/workload.h"

namespace agentserve::sim {

class PrefixTree {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;

  PrefixTree();

  // Blocks of the longest cached beginning of `spans`, at most `most`; *deepest gets the node that holds the last of
  // them, or kRoot. Splits nodes so that it ends there.
  uint32_t Match(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t most, Node* deepest);
  // Adds blocks [have, want) of `spans` below `parent` (where Match with `most` = want ended). Returns the deepest.
  Node Insert(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t have, uint32_t want, Node parent);

  // Blocks of the longest beginning of `spans` that was ever inserted, evicted or not.
  uint32_t EverSeen(std::span<const workload::Span> spans, uint32_t block_tokens, uint32_t most) const;
  // Blocks that Lock(n) would take from cached().
  uint32_t UnlockedOnPath(Node n) const;

  void Lock(Node n);
  void Unlock(Node n);
  // Frees `blocks` unlocked blocks, unpinned ones first; all or nothing is the caller's care: blocks <= cached().
  void Evict(uint32_t blocks);
  // Keeps the path to `n` from eviction until `until`, as far as `most_blocks` pinned ones allow; 0 ends it.
  void Pin(Node n, int64_t until, uint32_t most_blocks);
  void ExpirePins(int64_t now);
  void Clear();

  uint32_t total() const { return total_; }
  uint32_t locked() const { return locked_; }
  uint32_t cached() const { return total_ - locked_; }
  uint64_t evicted() const { return evicted_; }
  void CheckInvariants() const;

 private:
  struct Entry {
    uint64_t origin = 0;
    uint32_t from = 0, to = 0;  // blocks
    Node parent = 0;
    uint32_t locks = 0;  // holds here and locked children
    uint32_t children = 0;
    Node lru_prev = 0, lru_next = 0;  // valid while unlocked; the root is the list's head
    int64_t pinned_until = 0;
    Node next_of_origin = 0;  // other runs of the origin, 0 = none
    bool live = false;
  };

  Node New();
  void Free(Node n);
  void Append(Node n);  // to the LRU list's end
  void InsertAfter(Node n, Node at);
  void Detach(Node n);
  Node Split(Node n, uint32_t at);
  uint32_t Trim(Node n, uint32_t blocks);
  void Forget(Node n);

  std::vector<Entry> nodes_;
  std::vector<Node> free_;
  std::unordered_map<uint64_t, Node> by_origin_;  // first run of each origin
  std::unordered_map<uint64_t, uint32_t> ever_;   // origin -> end of its longest run
  std::vector<Node> pinned_;
  uint32_t total_ = 0, locked_ = 0, pinned_blocks_ = 0;
  uint64_t evicted_ = 0;
};

}  // namespace agentserve::sim
