// Book-keeping of the blocks of one KV pool. Hands out block ids; never touches memory.
//
//   FREE --Allocate--> WRITING(one owner) --Seal--> SEALED(held) --last hold dropped--> CACHED --evicted--> FREE
//                          \--last hold dropped--> FREE        \--(no name)-----------> FREE
//
// Named blocks form trees: the parent of a block is the one before it in its prompt. Only a CACHED block without named
// children here (a leaf) is evicted while there is one, so a prefix outlives what follows it. Leaves go in this order:
//   final      declared to be over (MakeFinal): the program has ended, or its history was replaced
//   orphan     the block before it is gone, so that no prompt can find it
//   by value   the least `due` = clock + worth, where the clock is the due of the last victim. With equal worth this is
//              least-recently-used; a block of k times the worth survives k times as many evictions unused
//              (GreedyDual: Young, "The k-server dual and loose competitiveness for paging", 1994)
//   pinned     the pin that ends first; so a pin is broken rather than a sequence stopped
// Prefixes that several prompts continued differently (system prompts, tool descriptions) count kSharedWorth times.
//
// Single-threaded, owned by the worker's loop. Time is passed in. Invariants, see CheckInvariants():
//   1. free + writing + held + cached = total, and each block is in exactly one of these.
//   2. A WRITING block has exactly one hold; a SEALED one at least one; FREE and CACHED ones none.
//   3. Every FREE -> WRITING bumps the block's epoch.
//   4. Each name (hash) belongs to at most one block, which is SEALED or CACHED.
//   5. The ordered set holds exactly the CACHED leaves, each under its key of now.
#pragma once

#include <compare>
#include <cstdint>
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
  // Why a block was evicted.
  enum class Reason : uint8_t { kFinal, kOrphan, kValue, kPinned, kInner };
  static constexpr int kNumReasons = 5;
  // Worth of a block of which nothing is known, and what being shared multiplies it with.
  static constexpr uint32_t kBaseWorth = 1024, kSharedWorth = 8;
  // A copy in host memory makes it cheap to lose: loading it back costs about this fraction of computing it.
  static constexpr uint32_t kCleanDivisor = 4;

  explicit BlockPool(const Options& options);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool();

  // Appends `count` WRITING blocks to `table`; evicts cached ones as needed. All or nothing.
  bool Allocate(uint32_t count, BlockTable* table);
  // Appends a hold on each block of the longest known beginning of `chain`. Returns how many. kCopy: somebody only
  // reads the bytes, which is no use of the block that would keep it longer.
  enum class Purpose : uint8_t { kUse, kCopy };
  uint32_t MatchPrefix(std::span<const base::Hash128> chain, BlockTable* table, Purpose purpose = Purpose::kUse);
  // How many blocks of `chain`, from the first on, are here.
  uint32_t PrefixLength(std::span<const base::Hash128> chain) const;
  // Of these, how many are CACHED (so taking them lowers `available`).
  uint32_t CachedPrefix(std::span<const base::Hash128> chain) const;
  // WRITING -> SEALED. `hash` zero: no name. A name that another block has already is not taken.
  // `tokens`: rows that hold data. `parent`: name of the block before it; zero: it is the first one.
  struct SealInfo {
    base::Hash128 hash;
    uint64_t digest = 0;
    uint32_t tokens = 0;
    base::Hash128 parent = {};
  };
  void Seal(BlockId block, const SealInfo& info);

  // Protects the longest known beginning of `chain` from eviction while any unpinned block can be evicted instead,
  // until `until`. At most half of the pool is pinned; the pins that end first give way. Returns the blocks pinned.
  uint32_t PinPrefix(std::span<const base::Hash128> chain, base::TimeNs until);
  // Ends pins that are over.
  void ExpirePins(base::TimeNs now);
  // Ends the pins of the end of `chain` that nothing else shares (see OwnTail).
  void UnpinTail(std::span<const base::Hash128> chain);
  // Sets what the blocks of the longest known beginning of `chain` are worth from now on; they are not final any more.
  void SetWorth(std::span<const base::Hash128> chain, uint32_t worth);
  // Nobody will ask for `chain` again: its blocks go first, from the last one back to one that somebody holds, that
  // is pinned, or that continues in another way too. Returns how many.
  uint32_t MakeFinal(std::span<const base::Hash128> chain);
  // Whether host memory has a copy of the block of that name; ignored if it is not here.
  void SetClean(const base::Hash128& hash, bool clean);
  // Its copy to host memory was tried (and made, or is not worth it); false again after its next use.
  bool offered(BlockId b) const { return Get(b).offered; }
  void SetOffered(BlockId b) { Get(b).offered = true; }
  // The block of that name.
  std::optional<BlockId> Find(const base::Hash128& hash) const;
  // The next `most` leaves that would be evicted although somebody may ask for them, in order.
  std::vector<BlockId> NextVictims(uint32_t most) const;

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
  uint32_t tokens(BlockId b) const { return Get(b).tokens; }
  uint32_t worth(BlockId b) const { return WorthOf(Get(b)); }
  bool clean(BlockId b) const { return Get(b).clean; }
  // Zero: no name.
  const base::Hash128& name(BlockId b) const { return Get(b).hash; }
  const base::Hash128& parent(BlockId b) const { return Get(b).parent; }
  // Blocks evicted so far, by reason.
  uint64_t evictions(Reason reason) const { return evictions_[static_cast<size_t>(reason)]; }

  // Changes since the last call. Between calls it grows by at most 3 per block touched.
  std::vector<BlockChange> TakeChanges() { return std::exchange(changes_, {}); }

  // Aborts if invariant 1 is broken; O(1).
  void CheckConservation() const;
  // Aborts if any invariant is broken; O(blocks).
  void CheckInvariants() const;

 private:
  friend class BlockTable;
  enum class Rank : uint8_t { kFinal, kOrphan, kValue, kPinned };
  // Order of eviction, first victim first.
  struct Key {
    Rank rank = Rank::kValue;
    uint64_t due = 0;   // kPinned: end of the pin
    uint64_t tick = 0;  // when it was last let go
    BlockId id;
    auto operator<=>(const Key&) const = default;
  };
  struct Block {
    State state = State::kFree;
    bool final = false;
    bool shared = false;  // several prompts continued it differently
    bool clean = false;   // host memory has a copy
    bool offered = false;
    bool unused = false;  // held for copies only since it was CACHED
    bool leaf = false;    // in leaves_, under `key`
    Epoch epoch;
    uint32_t holds = 0;
    uint32_t tokens = 0;
    uint32_t worth = kBaseWorth;
    base::Hash128 hash;    // zero = no name
    base::Hash128 parent;  // zero = none
    uint64_t digest = 0;
    base::TimeNs pinned_until = 0;  // 0 = not pinned
    uint64_t clock = 0, tick = 0;   // when it was last let go
    Key key;
  };

  Block& Get(BlockId b);
  const Block& Get(BlockId b) const;
  void Hold(BlockId b, Purpose purpose);
  void Drop(BlockId b);
  void Unpin(BlockId b);
  void EvictOne();
  // Where the end of `chain` begins that no other prompt continues; chain.size() if nothing of it is here.
  size_t OwnTail(std::span<const base::Hash128> chain) const;
  BlockId NextInner();
  // Takes the name from a block that is to be reused.
  void TakeName(BlockId b);
  uint32_t WorthOf(const Block& b) const;
  Key KeyOf(BlockId id) const;
  bool IsLeaf(const Block& b) const { return b.state == State::kCached && !children_.contains(b.hash); }
  // Puts a block into leaves_, out of it, or elsewhere in it, as its state asks for.
  void Refile(BlockId id);
  void RefileByName(const base::Hash128& hash);

  const Options options_;
  std::vector<Block> blocks_;
  std::vector<BlockId> free_;                                                  // used as a stack
  std::unordered_map<base::Hash128, BlockId, base::Hash128Hasher> names_;      // never iterated for decisions
  std::unordered_map<base::Hash128, uint32_t, base::Hash128Hasher> children_;  // named blocks by the name before them
  std::set<std::pair<base::TimeNs, BlockId>> pins_;                            // pinned blocks by the end of their pin
  std::set<Key> leaves_;
  uint32_t writing_ = 0, held_ = 0, cached_ = 0;
  uint32_t inner_cursor_ = 0;  // where NextInner looks next
  uint64_t clock_ = 0, tick_ = 0;
  uint64_t evictions_[kNumReasons] = {};
  std::vector<BlockChange> changes_;
};

}  // namespace agentserve::engine
