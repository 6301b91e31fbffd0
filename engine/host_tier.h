// Book-keeping of KV blocks kept in host memory, below a device's pool. Hands out slots; never touches memory.
//
//   FREE --BeginStore--> STORING --EndStore(ok)--> STORED --evicted, dropped--> FREE
//                            \--EndStore(failed)------------------------------> FREE
//
// A block is found by its name (engine/block_hash.h) and is worth keeping only while everything before it is here too,
// so the tier is closed under "the block before": a block is stored only after its parent, only blocks without children
// here (leaves) are evicted, and a block that is dropped takes what follows it along. Among leaves the one with the
// least due = clock + worth goes first (as engine/block_pool.h).
//
// Slots under I/O are never given away: one that is dropped meanwhile loses its name at once and its slot at the end of
// the I/O. Single-threaded, owned by the worker's loop. Invariants, see CheckInvariants():
//   1. free + storing + stored + doomed = slots; each slot is in exactly one of these.
//   2. Each name belongs to at most one slot. The parent of a named slot is a named slot, or there is none before it.
//   3. Every FREE -> STORING bumps the slot's epoch.
//   4. The ordered set holds exactly the STORED slots without children and without loads, each under its key.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "engine/ids.h"

namespace agentserve::engine {

// Index of a slot in the host tier, [0, num_slots).
using SlotId = StrongId<struct SlotIdTag, uint32_t>;

class HostTier {
 public:
  // `num_slots` 0: no tier; nothing is ever stored.
  explicit HostTier(uint32_t num_slots);
  HostTier(const HostTier&) = delete;
  HostTier& operator=(const HostTier&) = delete;

  enum class State : uint8_t { kFree, kStoring, kStored, kDoomed };
  // Why a block left.
  enum class Reason : uint8_t { kFinal, kValue, kOrphan, kCorrupt };
  static constexpr int kNumReasons = 4;

  struct Block {
    base::Hash128 hash;
    base::Hash128 parent;  // zero: the first one of a prompt
    uint64_t digest = 0;
    uint32_t tokens = 0;
    uint32_t worth = 0;
  };

  // Takes a slot for a block that is about to be copied here; evicts what is worth less. Nothing: it is here already,
  // its parent is not, or all that could go is worth more.
  std::optional<SlotId> BeginStore(const Block& block);
  // The copy is complete, or failed (then what follows it goes as well).
  void EndStore(SlotId slot, bool ok);
  // The slot of a STORED block, which stays until EndLoad.
  std::optional<SlotId> BeginLoad(const base::Hash128& hash);
  // `corrupt`: its bytes were not what had been stored, so it is dropped with all that follows.
  void EndLoad(SlotId slot, bool corrupt);

  // How many blocks of `chain`, from the first on, can be loaded.
  uint32_t PrefixLength(std::span<const base::Hash128> chain) const;
  // Stored, or about to be.
  bool Has(const base::Hash128& hash) const { return names_.contains(hash); }
  // Whether a block of that worth would find a slot now.
  bool Accepts(uint32_t worth) const;
  // Sets the worth of the longest known beginning of `chain` and counts as a use of it.
  void SetWorth(std::span<const base::Hash128> chain, uint32_t worth);
  // Nobody will ask for `chain` again: frees its blocks from the last one back to the first that continues in another
  // way too. Returns how many went.
  uint32_t Drop(std::span<const base::Hash128> chain);

  uint32_t total() const { return static_cast<uint32_t>(slots_.size()); }
  uint32_t free() const { return static_cast<uint32_t>(free_.size()); }
  uint32_t storing() const { return storing_; }
  uint32_t stored() const { return stored_; }
  uint32_t doomed() const { return doomed_; }
  uint64_t evictions(Reason reason) const { return evictions_[static_cast<size_t>(reason)]; }
  State state(SlotId slot) const { return Get(slot).state; }
  const Block& block(SlotId slot) const { return Get(slot).block; }
  // Bumped whenever the slot is taken for another block.
  Epoch epoch(SlotId slot) const { return Get(slot).epoch; }

  // Names that came (stored completely) and went since the last call, in order. At most two per slot and call of the
  // above.
  struct Change {
    bool stored = false;
    SlotId slot;
    Epoch epoch;
    Block block;
  };
  std::vector<Change> TakeChanges() { return std::exchange(changes_, {}); }

  // Aborts if any invariant is broken; O(slots).
  void CheckInvariants() const;

 private:
  struct Key {
    uint64_t due = 0, tick = 0;
    SlotId id;
    auto operator<=>(const Key&) const = default;
  };
  struct Slot {
    State state = State::kFree;
    bool leaf = false;  // in leaves_, under `key`
    Epoch epoch;
    uint32_t loads = 0;
    Block block;
    uint64_t clock = 0, tick = 0;  // of the last use
    Key key;
    std::vector<SlotId> children;  // named slots that follow it
  };

  Slot& Get(SlotId id);
  const Slot& Get(SlotId id) const;
  std::optional<SlotId> Find(const base::Hash128& hash) const;
  void Refile(SlotId id);
  // Frees the slot of a block and of all that follow it; those under I/O when it ends.
  void Forget(SlotId id, Reason reason);
  void ForgetOne(SlotId id, Reason reason);
  void Free(SlotId id);

  std::vector<Slot> slots_;
  std::vector<SlotId> free_;                                              // used as a stack
  std::unordered_map<base::Hash128, SlotId, base::Hash128Hasher> names_;  // never iterated for decisions
  std::set<Key> leaves_;
  uint32_t storing_ = 0, stored_ = 0, doomed_ = 0;
  uint64_t clock_ = 0, tick_ = 0;
  uint64_t evictions_[kNumReasons] = {};
  std::vector<Change> changes_;
};

}  // namespace agentserve::engine
