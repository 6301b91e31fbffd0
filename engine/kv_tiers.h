// What a worker keeps of KV that no sequence needs now, and where: the device's pool, host memory below it, or nowhere.
//
// Three kinds of copies, each carried out by the shell beside the steps and answered exactly once (CopyEnded):
//   store     device -> host: of a chain that was retained on the host, or of the next victims of the pool that have
//             been of use (so that evicting them costs nothing; a block that must go before it is copied just goes)
//   load      host -> blocks of a sequence, which is marked `io` meanwhile: what of its prompt is here but not on the
//             device, if that is cheaper than computing it
//   prefetch  host -> cached blocks, ahead of the sequence that will ask for them
// Blocks and slots under a copy are held: nobody else gets them. A load whose bytes are not what was stored counts up
// to the first bad block; that block and all that follow it are forgotten.
//
// Single-threaded, owned by the worker's loop; no clock (times are passed in), no memory.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "engine/block_pool.h"
#include "engine/host_tier.h"
#include "engine/planner.h"
#include "engine/worker_limits.h"

namespace agentserve::engine {

enum class KeepWhere : uint8_t { kDevice, kHost, kDrop };

// Blocks [i] and slots [i] belong together.
struct HostCopy {
  uint64_t job = 0;
  bool to_host = false;
  std::vector<BlockId> blocks;
  std::vector<SlotId> slots;
  // What the sealed blocks' digests are, and of how many rows. A load is to be checked against them.
  std::vector<uint64_t> digests;
  std::vector<uint32_t> tokens;
};

// The answer. `good`: leading blocks of the job that are complete and valid. `corrupt`: the one after them was read,
// but is not what was stored.
struct CopyEnded {
  uint64_t job = 0;
  uint32_t good = 0;
  bool corrupt = false;
  base::TimeNs copy_ns = 0;
};

// A load of a sequence is over: its blocks [first, first + digests.size()) are here with these digests.
struct SequenceLoaded {
  SeqId seq;
  uint32_t first = 0;
  std::vector<uint64_t> digests;
  bool corrupt = false;
};

struct TierStats {
  uint64_t stored_blocks = 0, loaded_blocks = 0, prefetched_blocks = 0;
  base::TimeNs store_ns = 0, load_ns = 0;
  uint64_t failed_stores = 0, failed_loads = 0, corrupt_blocks = 0;
  uint64_t recompute_was_cheaper = 0;  // loads not begun
  uint64_t retained[3] = {};           // by KeepWhere
};

class KvTiers {
 public:
  struct Options {
    uint32_t host_slots = 0;  // 0: no host tier
    uint32_t block_tokens = 16;
    uint64_t block_bytes = 0;
    // Until it is measured. PCIe 5 x16 from pinned memory reaches about 50 GB/s, one CPU thread's memcpy 5 to 10.
    double host_bytes_per_s = 8e9;
    // Fixed cost of a load: two hops between threads.
    base::TimeNs load_fixed_ns = 50'000;
    // Blocks of one copy. Large enough that fixed costs vanish, small enough that its blocks come back soon.
    uint32_t copy_blocks = 64;
    // Chains waiting to be stored: one per sequence that ends while a copy runs. Beyond that the oldest is left out.
    uint32_t max_pending = 256;
    // Victims of the pool are stored whatever they are worth, not only those that have been of use.
    bool store_ordinary = false;
    // Longest pin. A tool that runs longer than 10 minutes is no reason to keep others' blocks away.
    base::TimeNs max_ttl = 600 * base::kNsPerSecond;
  };

  KvTiers(const Options& options, BlockPool* pool, Planner* planner);

  struct Keep {
    KeepWhere where = KeepWhere::kDevice;
    base::TimeNs ttl = 0;  // kDevice: no eviction by others for so long, if possible
    uint32_t worth = BlockPool::kBaseWorth;
  };
  void Retain(std::span<const base::Hash128> chain, const Keep& keep, base::TimeNs now);
  // Brings what the host has of `chain` to the device, as far as there are blocks that nobody needs, and pins it.
  void Prefetch(std::span<const base::Hash128> chain, base::TimeNs ttl, base::TimeNs now);
  // For a sequence that just got its blocks. True: a load was begun and SequenceLoaded will come; it is `io` until
  // then.
  bool BeginLoad(SeqId id);
  // Begins what else is due. Call after each event.
  void Pump();
  // Nothing for a job that is not known (a repeat), or that is no load of a sequence.
  std::optional<SequenceLoaded> OnCopyEnded(const CopyEnded& ended, base::TimeNs now);
  // The blocks of these names were sealed from what was loaded.
  void NoteLoaded(std::span<const base::Hash128> names);
  std::vector<HostCopy> TakeCopies() { return std::exchange(copies_, {}); }

  // Prompt tokens per second that this worker computes; 0 = not known, then loading always counts as cheaper.
  void set_prefill_rate(double tokens_per_s) { prefill_tokens_per_s_ = tokens_per_s; }

  bool enabled() const { return options_.host_slots > 0; }
  size_t jobs() const { return jobs_.size(); }
  const HostTier& host() const { return host_; }
  // What a worker says of its tiers in its load.
  void FillLoad(Load* load) const;
  const TierStats& stats() const { return stats_; }
  std::vector<HostTier::Change> TakeHostChanges() { return std::exchange(changes_, {}); }
  void CheckInvariants() const;

 private:
  enum class Kind : uint8_t { kStore, kLoad, kPrefetch };
  struct Job {
    Kind kind = Kind::kStore;
    std::vector<SlotId> slots;
    BlockTable table;                    // kStore: holds on the sources; kPrefetch: the blocks being written
    std::vector<HostTier::Block> names;  // kPrefetch, kLoad
    SeqId seq;                           // kLoad
    uint32_t first = 0;                  // kLoad
    base::TimeNs pin_until = 0;          // kPrefetch
  };

  bool LoadIsCheaper(uint32_t blocks) const;
  // Begins to store the blocks of `chain` that are on the device only, at most one copy of them. False: nothing left.
  bool StoreSome(std::span<const base::Hash128> chain, uint32_t least_worth);
  void StoreVictims();
  Job& NewJob(Kind kind, HostCopy* copy);
  std::vector<base::Hash128> ChainOf(BlockId leaf) const;
  void EndStore(Job* job, const CopyEnded& ended);
  void EndPrefetch(Job* job, const CopyEnded& ended, base::TimeNs now);
  void EndSlots(const Job& job, const CopyEnded& ended);
  void TakeChanges();

  const Options options_;
  BlockPool* const pool_;
  Planner* const planner_;
  HostTier host_;
  std::map<uint64_t, Job> jobs_;
  uint32_t stores_ = 0, prefetches_ = 0;  // of jobs_
  uint64_t next_job_ = 1;
  std::deque<std::vector<base::Hash128>> pending_;  // chains to be stored
  double host_bytes_per_s_, prefill_tokens_per_s_ = 0;
  std::vector<HostCopy> copies_;
  std::vector<HostTier::Change> changes_;
  TierStats stats_;
};

}  // namespace agentserve::engine
