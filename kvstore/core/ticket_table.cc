#include "kvstore/core/ticket_table.h"

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::kvstore {
namespace {

constexpr size_t kMaxKeyBytes = 64;

absl::Status CheckRequest(const TicketRequest& r, const CoreLimits& limits) {
  if (r.reader.worker_id.empty() || r.reader.worker_id.size() > 63) {
    return absl::InvalidArgumentError("ticket: reader_id must have 1..63 bytes");
  }
  if (r.idempotency_key.size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(
        base::StrCat("ticket: idempotency_key has ", r.idempotency_key.size(), " bytes; at most ", kMaxKeyBytes));
  }
  if (r.blocks.empty() || r.blocks.size() > limits.max_blocks_per_ticket) {
    return absl::InvalidArgumentError(
        base::StrCat("ticket: ", r.blocks.size(), " blocks; 1..", limits.max_blocks_per_ticket));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TicketGrant> TicketTable::Open(const TicketRequest& request, const Hash128& fresh, TimeNs now) {
  AS_RETURN_IF_ERROR(CheckRequest(request, limits_));
  if (!request.idempotency_key.empty()) {
    if (const auto it = by_key_.find(KeyOf(request)); it != by_key_.end()) {
      const Ticket& known = tickets_.at(it->second);
      if (known.request.owner != request.owner || known.request.blocks != request.blocks) {
        return absl::AlreadyExistsError(base::StrCat("ticket: idempotency_key '", request.idempotency_key,
                                                     "' was used for other blocks; draw a new key"));
      }
      return TicketGrant{it->second, known.expires - now};
    }
  }
  const auto reader = per_reader_.find(request.reader.worker_id);
  const uint32_t of_reader = reader == per_reader_.end() ? 0 : reader->second;
  if (tickets_.size() >= limits_.max_tickets || of_reader >= limits_.max_tickets_per_reader ||
      references_ + request.blocks.size() > limits_.max_ticket_blocks) {
    return absl::ResourceExhaustedError(
        base::StrCat("ticket: ", tickets_.size(), " tickets (", of_reader, " of ", request.reader.worker_id, ", ",
                     references_, " blocks) are open; close some (limits ", limits_.max_tickets, ", ",
                     limits_.max_tickets_per_reader, ", ", limits_.max_ticket_blocks, ")"));
  }
  if (fresh.zero() || tickets_.contains(fresh)) return absl::UnavailableError("ticket: id collision; try again");
  const TimeNs ttl = request.ttl <= 0 ? limits_.default_ticket_ttl : std::min(request.ttl, limits_.max_ticket_ttl);
  tickets_.emplace(fresh, Ticket{request, ttl, now + ttl});
  expiry_.emplace(now + ttl, fresh);
  if (!request.idempotency_key.empty()) by_key_.emplace(KeyOf(request), fresh);
  ++per_reader_[request.reader.worker_id];
  references_ += request.blocks.size();
  for (const BlockRef& b : request.blocks) ++covered_[{request.owner.worker_id, request.owner.incarnation, b.index}];
  return TicketGrant{fresh, ttl};
}

void TicketTable::Erase(std::map<Hash128, Ticket>::iterator it) {
  const TicketRequest& r = it->second.request;
  AS_CHECK_EQ(expiry_.erase({it->second.expires, it->first}), 1u);
  if (!r.idempotency_key.empty()) by_key_.erase(KeyOf(r));
  if (const auto reader = per_reader_.find(r.reader.worker_id); --reader->second == 0) per_reader_.erase(reader);
  references_ -= r.blocks.size();
  for (const BlockRef& b : r.blocks) {
    const auto c = covered_.find({r.owner.worker_id, r.owner.incarnation, b.index});
    if (--c->second == 0) covered_.erase(c);
  }
  tickets_.erase(it);
}

void TicketTable::Close(const Hash128& ticket) {
  if (const auto it = tickets_.find(ticket); it != tickets_.end()) Erase(it);
}

size_t TicketTable::Expire(TimeNs now) {
  size_t n = 0;
  for (; !expiry_.empty() && expiry_.begin()->first <= now; ++n) Erase(tickets_.find(expiry_.begin()->second));
  return n;
}

size_t TicketTable::DropOwner(const PoolIdent& owner) {
  size_t n = 0;
  for (auto it = tickets_.begin(); it != tickets_.end();) {
    const auto next = std::next(it);
    if (it->second.request.owner == owner) {
      Erase(it);
      ++n;
    }
    it = next;
  }
  return n;
}

bool TicketTable::Covers(const PoolIdent& owner, uint32_t index) const {
  return covered_.contains({owner.worker_id, owner.incarnation, index});
}

void TicketTable::CheckInvariants(std::vector<std::string>* violations) const {
  std::map<std::string, uint32_t> readers;
  std::map<Covered, uint32_t> covered;
  uint64_t references = 0;
  size_t keyed = 0;
  for (const auto& [id, t] : tickets_) {
    const TicketRequest& r = t.request;
    ++readers[r.reader.worker_id];
    references += r.blocks.size();
    for (const BlockRef& b : r.blocks) ++covered[{r.owner.worker_id, r.owner.incarnation, b.index}];
    if (!expiry_.contains({t.expires, id})) violations->push_back("ticket " + id.Hex() + " is not in the expiry order");
    if (r.idempotency_key.empty()) continue;
    ++keyed;
    const auto key = by_key_.find(KeyOf(r));
    if (key == by_key_.end() || key->second != id) violations->push_back("ticket " + id.Hex() + " lost its key");
  }
  if (expiry_.size() != tickets_.size()) violations->push_back("ticket expiry order has other entries than tickets");
  if (keyed != by_key_.size()) violations->push_back("idempotency keys without tickets");
  if (readers != per_reader_) violations->push_back("ticket counts per reader are wrong");
  if (covered != covered_ || references != references_) violations->push_back("ticketed block counts are wrong");
}

}  // namespace agentserve::kvstore
