// The block manager as a stepped state machine: pools with leases, directory of sealed blocks (on devices and in host
// memory below them), tickets, change log, audit. Pure: no clock, thread, lock, proto or random device.
// Single-threaded. What is kept where is not decided here: the router tells the workers (router/core/retention.h).
//
// Everything here is soft state rebuilt by the workers; a reader validates what it copies, so a wrong entry costs a
// recomputation, never a wrong token.
//
// Every call may be repeated, delayed or reordered across reconnects without changing the outcome:
//   - a pool is keyed by (worker, incarnation); messages of another incarnation change nothing;
//   - a block's entries are ordered by epoch: what is older than what is known is ignored, equal is a repetition;
//   - tickets have idempotency keys, closing is idempotent.
//
// Invariants (Audit):
//   1. Directory places and live blocks of live pools correspond one to one.
//   2. Counts equal what they count, and stay within CoreLimits.
//   3. The log has no gaps; replaying it over any earlier snapshot gives the present directory.
//   4. No block or ticket of a pool outlives its lease by more than one Tick.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/core/change_log.h"
#include "kvstore/core/ticket_table.h"
#include "kvstore/core/types.h"

namespace agentserve::kvstore {

struct AuditReport {
  uint32_t pools = 0;
  uint64_t blocks = 0;
  uint64_t host_blocks = 0;  // of `blocks`
  uint32_t tickets = 0;
  uint64_t ticketed_blocks = 0;
  uint64_t sequence = 0;
  std::vector<std::string> violations;  // at most 20
};

// Counts since start, for metrics.
struct CoreCounters {
  uint64_t sealed = 0, dropped = 0, stale_changes = 0;
  uint64_t lease_expiries = 0, replaced_pools = 0, released_pools = 0;
  uint64_t tickets_opened = 0, tickets_expired = 0, tickets_dropped = 0;
};

// Where a snapshot is; starts empty.
struct SnapshotCursor {
  std::string worker_id;
  uint32_t next_index = 0;
  bool done = false;
};
struct SnapshotPart {
  PoolIdentPtr pool;  // null: nothing in this part
  std::vector<SealedBlock> sealed;
};

class KvStoreCore {
 public:
  explicit KvStoreCore(const CoreLimits& limits);

  // Ends leases and tickets that are over. Call at least every tenth of a lease.
  void Tick(TimeNs now);

  // Starts or extends a lease. A new incarnation of the worker drops all of the old one. FAILED_PRECONDITION: the
  // incarnation was replaced before, or it re-registers with another shape.
  absl::Status RegisterPool(const PoolSpec& spec, TimeNs now);
  // NOT_FOUND: no live lease of that incarnation; register again and republish.
  absl::Status Renew(const PoolIdent& pool, TimeNs now);
  // Idempotent.
  void Release(const PoolIdent& pool);

  // Applies sealed blocks, then dropped ones. Returns how many changed anything. NOT_FOUND as Renew. All or nothing for
  // INVALID_ARGUMENT (a bad entry is named); RESOURCE_EXHAUSTED: the directory is full, entries before were applied.
  absl::StatusOr<uint32_t> Publish(const PoolIdent& pool, std::span<const SealedBlock> sealed,
                                   std::span<const BlockRef> dropped, TimeNs now);
  // Pools that hold the first block of `chain` where peers can read it, longest prefix first (then by worker id).
  absl::StatusOr<std::vector<Place>> Locate(std::span<const Hash128> chain, uint32_t max_places) const;

  // FAILED_PRECONDITION: the owner is not live, or a block is known under a newer epoch.
  absl::StatusOr<TicketGrant> OpenTicket(const TicketRequest& request, const Hash128& fresh, TimeNs now);
  void CloseTicket(const Hash128& ticket) { tickets_.Close(ticket); }

  const ChangeLog& log() const { return log_; }
  // Next part of a snapshot, at most `max` blocks. The snapshot may be taken in parts while changes go on: a reader
  // that noted log().last_sequence() before the first part and then replays the log from there ends with the truth.
  SnapshotPart Snapshot(SnapshotCursor* cursor, size_t max) const;

  AuditReport Audit(TimeNs now) const;
  // Aborts if Audit finds a violation.
  void CheckInvariants(TimeNs now) const;
  const CoreCounters& counters() const { return counters_; }
  const CoreLimits& limits() const { return limits_; }
  uint32_t pools() const { return static_cast<uint32_t>(pools_.size()); }
  uint64_t blocks() const { return live_blocks_; }
  const TicketTable& tickets() const { return tickets_; }

 private:
  struct Entry {
    SealedBlock block;  // ref.epoch is valid also when dead: it fences older messages
    bool live = false;
  };
  struct Pool {
    PoolSpec spec;
    PoolIdentPtr ident;
    TimeNs expires = 0;
    std::map<uint32_t, Entry> entries;  // by index; never more than spec.indices()
  };
  struct Location {
    Pool* pool;
    uint32_t index;
    bool operator==(const Location&) const = default;
  };
  using PoolMap = std::map<std::string, Pool>;

  Pool* FindLive(const PoolIdent& pool);
  absl::Status CheckPublish(const Pool& pool, std::span<const SealedBlock> sealed,
                            std::span<const BlockRef> dropped) const;
  // True if anything changed.
  absl::StatusOr<bool> ApplySealed(Pool* pool, const SealedBlock& block);
  bool ApplyDropped(Pool* pool, const BlockRef& ref);
  // Takes a live entry out of the directory; the fence stays.
  void Unlink(Pool* pool, uint32_t index, Entry* entry);
  void RemovePool(PoolMap::iterator it);
  absl::Status CheckChain(std::span<const Hash128> chain) const;
  void AuditPool(const Pool& pool, AuditReport* report) const;

  const CoreLimits limits_;
  PoolMap pools_;  // node-based: Pool addresses are stable
  // Lookups only; never iterated.
  std::unordered_map<Hash128, std::vector<Location>, base::Hash128Hasher> directory_;
  uint64_t live_blocks_ = 0;
  uint64_t entries_ = 0;  // live and fences
  TicketTable tickets_;
  ChangeLog log_;
  std::set<std::pair<std::string, uint64_t>> retired_;
  std::deque<std::pair<std::string, uint64_t>> retired_order_;
  CoreCounters counters_;
};

}  // namespace agentserve::kvstore
