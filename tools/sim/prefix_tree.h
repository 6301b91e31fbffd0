// The prefix cache of a simulated worker: what engine::BlockPool does with names of single blocks, on runs of blocks. A
// node is a run of blocks with one origin; children hang at its end.
//
// Same order of eviction as the pool: only ends of leaves that nobody holds; final ones first, then by clock of the
// last release + worth (uniform worth: least recently used), pinned ones last. A hold on a block holds all before it.
// Invariants: a locked node has a locked parent; leaves_ are exactly the unlocked nodes without children; total =
// locked
// + cached, in blocks.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tools/workload/workload.h"

namespace agentserve::sim {

class PrefixTree {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;
  // As in engine::BlockPool.
  static constexpr uint32_t kBaseWorth = 1024, kSharedWorth = 8, kCleanDivisor = 4;

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
  // Keeps the path to `n` from eviction while others can go, until `until`, as far as `most_blocks` pinned ones allow.
  void Pin(Node n, int64_t until, uint32_t most_blocks);
  void ExpirePins(int64_t now);
  // Ends the pins of what only `n` continues.
  void Unpin(Node n);
  // What the path to `n` is worth from now on; kBaseWorth = nothing is known.
  void SetWorth(Node n, uint32_t worth);
  // Nobody will ask for what only `n` continues.
  void MakeFinal(Node n);
  // Whether host memory has a copy of the node's blocks.
  void SetClean(Node n, bool clean);
  void Clear();

  uint32_t total() const { return total_; }
  uint32_t locked() const { return locked_; }
  uint32_t cached() const { return total_ - locked_; }
  uint32_t pinned() const { return pinned_blocks_; }
  uint64_t evicted() const { return evicted_; }
  // Runs that were evicted although they were worth something: (origin, blocks), since the last call.
  struct Lost {
    uint64_t origin;
    uint32_t from, to, worth;
  };
  std::vector<Lost> TakeLost() { return std::exchange(lost_, {}); }
  void CheckInvariants() const;

 private:
  struct Entry {
    uint64_t origin = 0;
    uint32_t from = 0, to = 0;  // blocks
    Node parent = 0;
    uint32_t locks = 0;  // holds here and locked children
    uint32_t children = 0;
    uint32_t worth = kBaseWorth;
    uint64_t clock = 0, tick = 0;  // of the last release
    int64_t pinned_until = 0;
    Node next_of_origin = 0;  // other runs of the origin, 0 = none
    bool live = false, final = false, shared = false, clean = false, leaf = false;
    std::tuple<uint8_t, uint64_t, uint64_t, Node> key;  // in leaves_
  };

  Node New();
  void Free(Node n);
  void Released(Node n);
  void Refile(Node n);
  uint32_t WorthOf(const Entry& e) const;
  Node Split(Node n, uint32_t at);
  uint32_t Trim(Node n, uint32_t blocks);
  void Forget(Node n);

  std::vector<Entry> nodes_;
  std::vector<Node> free_;
  std::unordered_map<uint64_t, Node> by_origin_;  // first run of each origin
  std::unordered_map<uint64_t, uint32_t> ever_;   // origin -> end of its longest run
  std::vector<Node> pinned_;
  std::set<std::tuple<uint8_t, uint64_t, uint64_t, Node>> leaves_;  // next victim first
  std::vector<Lost> lost_;
  uint64_t clock_ = 0, tick_ = 0;
  // Pins are looked at this often: their ends need not be exact.
  static constexpr int64_t kPinGrain = 100'000'000;
  int64_t pins_checked_ = 0;
  uint32_t total_ = 0, locked_ = 0, pinned_blocks_ = 0;
  uint64_t evicted_ = 0;
};

}  // namespace agentserve::sim
