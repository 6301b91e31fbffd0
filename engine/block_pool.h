// Book-keeping of the blocks of one KV pool. Hands out block ids; never touches memory.
//
//   FREE --Allocate--> WRITING(one owner) --Seal--> SEALED(held) --last hold dropped--> CACHED --evicted--> FREE
//                          \--last hold dropped--> FREE        \--(no name)-----------> FREE
//
// Single-threaded, owned by the worker's loop. Time is passed in. Invariants, see CheckInvariants():
//   1. free + writing + held + cached = total, and each block is in exactly one of these.
//   2. A WRITING block has exactly one hold; a SEALED one at least one; FREE and CACHED ones none.
//   3. Every FREE -> WRITING bumps the block's epoch.
//   4. Each name (hash) belongs to at most one block, which is SEALED or CACHED.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "engine/ids.h"

namespace agentserve::engine {

class BlockPool;

// The blocks of one sequence, in order: one hold on each, dropped from the last to the first (so that the ends of
// prefixes are evicted before their beginnings). Must not outlive its pool.
class BlockTable {
 public:
  BlockTable() = default;
  explicit BlockTable(BlockPool* pool) : pool_(pool) {}
  ~BlockTable() { Clear(); }
  BlockTable(BlockTable&& o) noexcept : pool_(o.pool_), ids_(std::exchange(o.ids_, {})) {}
  BlockTable& operator=(BlockTable&& o) noexcept;
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  std::span<const BlockId> ids() const { return ids_; }
  uint32_t size() const { return static_cast<uint32_t>(ids_.size()); }
  bool empty() const { return ids_.empty(); }
  BlockId operator[](size_t i) const { return ids_[i]; }
  void Clear();

 private:
  friend class BlockPool;
  BlockPool* pool_ = nullptr;
  std::vector<BlockId> ids_;
};

// What happened to a block, for the control page and the directory; in order.
struct BlockChange {
  enum class Kind : uint8_t {
    kOpened,   // FREE -> WRITING: `epoch` is the new one; apply before anything is written
    kSealed,   // readable under `epoch` with `digest`; `hash` is zero if it has no name
    kDropped,  // a named block under `epoch` will not be found any more
  };
  Kind kind;
  BlockId block;
  Epoch epoch;
  base::Hash128 hash;
  uint64_t digest = 0;
  uint32_t tokens = 0;
};

class BlockPool {
 public:
  struct Options {
    uint32_t num_blocks = 0;
    // False: sealed blocks get no name, so nothing is ever reused.
    bool prefix_cache = true;
  };
  enum class State : uint8_t { kFree, kWriting, kSealed, kCached };

  explicit BlockPool(const Options& options);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool();

  // Appends `count` WRITING blocks to `table`; evicts cached ones as needed: least recently used first, pinned ones
  // last. All or nothing.
  bool Allocate(uint32_t count, BlockTable* table);
  // Appends a hold on each block of the longest known beginning of `chain`. Returns how many.
  uint32_t MatchPrefix(std::span<const base::Hash128> chain, BlockTable* table);
  // How many blocks of `chain`, from the first on, are here.
  uint32_t PrefixLength(std::span<const base::Hash128> chain) const;
  // Of these, how many are CACHED (so taking them lowers `available`).
  uint32_t CachedPrefix(std::span<const base::Hash128> chain) const;
  // WRITING -> SEALED. `hash` zero: no name. A name that another block has already is not taken.
  // `tokens`: rows that hold data.
  struct SealInfo {
    base::Hash128 hash;
    uint64_t digest = 0;
    uint32_t tokens = 0;
  };
  void Seal(BlockId block, const SealInfo& info);

  // Protects the longest known beginning of `chain` from eviction while any unpinned block can be evicted instead,
  // until `until`. At most half of the pool is pinned; the pins that end first give way. Returns the blocks pinned.
  uint32_t PinPrefix(std::span<const base::Hash128> chain, base::TimeNs until);
  // Ends pins that are over.
  void ExpirePins(base::TimeNs now);

  uint32_t total() const { return static_cast<uint32_t>(blocks_.size()); }
  uint32_t free() const { return static_cast<uint32_t>(free_.size()); }
  uint32_t writing() const { return writing_; }
  uint32_t held() const { return held_; }
  uint32_t cached() const { return cached_; }
  uint32_t pinned() const { return static_cast<uint32_t>(pins_.size()); }
  // Blocks that Allocate can hand out.
  uint32_t available() const { return free() + cached_; }

  State state(BlockId b) const { return Get(b).state; }
  Epoch epoch(BlockId b) const { return Get(b).epoch; }
  uint64_t digest(BlockId b) const { return Get(b).digest; }
  uint32_t holds(BlockId b) const { return Get(b).holds; }

  // Changes since the last call. Between calls it grows by at most 3 per block touched.
  std::vector<BlockChange> TakeChanges() { return std::exchange(changes_, {}); }

  // Aborts if invariant 1 is broken; O(1).
  void CheckConservation() const;
  // Aborts if any invariant is broken; O(blocks).
  void CheckInvariants() const;

 private:
  friend class BlockTable;
  struct Block {
    State state = State::kFree;
    Epoch epoch;
    uint32_t holds = 0;
    base::Hash128 hash;  // zero = no name
    uint64_t digest = 0;
    uint32_t tokens = 0;
    base::TimeNs pinned_until = 0;         // 0 = not pinned
    std::list<BlockId>::iterator lru_pos;  // valid while CACHED
  };

  Block& Get(BlockId b);
  const Block& Get(BlockId b) const;
  void Hold(BlockId b);
  void Drop(BlockId b);
  void Unpin(BlockId b);
  void EvictOne();
  std::optional<BlockId> Find(const base::Hash128& hash) const;

  const Options options_;
  std::vector<Block> blocks_;
  std::vector<BlockId> free_;                                              // used as a stack
  std::list<BlockId> lru_;                                                 // CACHED blocks, next victim first
  std::unordered_map<base::Hash128, BlockId, base::Hash128Hasher> names_;  // never iterated for decisions
  std::set<std::pair<base::TimeNs, BlockId>> pins_;                        // pinned blocks by the end of their pin
  uint32_t writing_ = 0, held_ = 0, cached_ = 0;
  std::vector<BlockChange> changes_;
};

}  // namespace agentserve::engine
