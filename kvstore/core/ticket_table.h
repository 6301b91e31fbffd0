// Read tickets: who may read which blocks of whom until when. Single-threaded; time is passed in.
//
// Invariants (CheckInvariants):
//   1. Every ticket is in the expiry order exactly once, and under its idempotency key if it has one.
//   2. Per-reader and total counts equal the tickets; per-block counts equal the tickets' blocks.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/core/types.h"

namespace agentserve::kvstore {

struct TicketRequest {
  PoolIdent reader;
  PoolIdent owner;
  std::vector<BlockRef> blocks;
  TimeNs ttl = 0;               // 0 = the default; clamped to the maximum
  std::string idempotency_key;  // at most 64 bytes; empty = every request is a new ticket
};

struct TicketGrant {
  Hash128 ticket;
  TimeNs ttl = 0;
};

class TicketTable {
 public:
  explicit TicketTable(const CoreLimits& limits) : limits_(limits) {}

  // `fresh` is the id for a new ticket: unguessable, from the shell. The same key of the same reader returns the ticket
  // again; ALREADY_EXISTS if it asked for something else then. RESOURCE_EXHAUSTED: a cap is reached.
  absl::StatusOr<TicketGrant> Open(const TicketRequest& request, const Hash128& fresh, TimeNs now);
  // Unknown tickets are ignored.
  void Close(const Hash128& ticket);
  // Ends what has expired; returns how many.
  size_t Expire(TimeNs now);
  // Ends all tickets on a pool; returns how many.
  size_t DropOwner(const PoolIdent& owner);
  // True if a live ticket covers the block.
  bool Covers(const PoolIdent& owner, uint32_t index) const;

  uint32_t tickets() const { return static_cast<uint32_t>(tickets_.size()); }
  // Distinct blocks under a ticket.
  uint64_t covered_blocks() const { return covered_.size(); }
  // Time of the next expiry, or 0 if there is none.
  TimeNs next_expiry() const { return expiry_.empty() ? 0 : expiry_.begin()->first; }
  // Appends a line per broken invariant.
  void CheckInvariants(std::vector<std::string>* violations) const;

 private:
  struct Ticket {
    TicketRequest request;
    TimeNs ttl = 0;
    TimeNs expires = 0;
  };
  using Key = std::tuple<std::string, uint64_t, std::string>;   // reader, incarnation, key
  using Covered = std::tuple<std::string, uint64_t, uint32_t>;  // owner, incarnation, block
  static Key KeyOf(const TicketRequest& r) { return {r.reader.worker_id, r.reader.incarnation, r.idempotency_key}; }
  void Erase(std::map<Hash128, Ticket>::iterator it);

  const CoreLimits limits_;
  std::map<Hash128, Ticket> tickets_;
  std::set<std::pair<TimeNs, Hash128>> expiry_;
  std::map<Key, Hash128> by_key_;
  std::map<std::string, uint32_t> per_reader_;
  std::map<Covered, uint32_t> covered_;
  uint64_t references_ = 0;
};

}  // namespace agentserve::kvstore
