#include "kvstore/core/kv_store_core.h"

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::kvstore {
namespace {

constexpr size_t kMaxViolations = 20;
constexpr size_t kMaxIdBytes = 63;
constexpr size_t kMaxAddressBytes = 255;
constexpr uint32_t kMaxBlockTokens = 4096;

// Order of epochs of one block; wraps.
bool Newer(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

absl::Status CheckSpec(const PoolSpec& s, const CoreLimits& limits) {
  if (s.worker_id.empty() || s.worker_id.size() > kMaxIdBytes) {
    return absl::InvalidArgumentError(base::StrCat("pool: worker_id must have 1..", kMaxIdBytes, " bytes"));
  }
  if (s.incarnation == 0) return absl::InvalidArgumentError("pool: incarnation must not be 0");
  if (s.unix_socket.size() > kMaxAddressBytes || s.grpc_address.size() > kMaxAddressBytes || s.dtype.size() > 16) {
    return absl::InvalidArgumentError(
        base::StrCat("pool of ", s.worker_id, ": an address is longer than ", kMaxAddressBytes, " bytes"));
  }
  if (s.num_blocks == 0 || uint64_t{s.num_blocks} + s.host_blocks > limits.max_blocks) {
    return absl::InvalidArgumentError(base::StrCat("pool of ", s.worker_id, ": ", s.num_blocks, " blocks and ",
                                                   s.host_blocks, " in host memory; 1..", limits.max_blocks));
  }
  if (s.block_tokens == 0 || s.block_tokens > kMaxBlockTokens) {
    return absl::InvalidArgumentError(
        base::StrCat("pool of ", s.worker_id, ": ", s.block_tokens, " tokens per block; 1..", kMaxBlockTokens));
  }
  return absl::OkStatus();
}

absl::Status NotLive(const PoolIdent& pool) {
  return absl::NotFoundError(base::StrCat("pool of ", pool.worker_id, ", incarnation ", pool.incarnation,
                                          ", has no lease here; register again and republish"));
}

}  // namespace

KvStoreCore::KvStoreCore(const CoreLimits& limits) : limits_(limits), tickets_(limits), log_(limits.max_log) {}

void KvStoreCore::Tick(TimeNs now) {
  counters_.tickets_expired += tickets_.Expire(now);
  for (auto it = pools_.begin(); it != pools_.end();) {
    const auto next = std::next(it);
    Pool& pool = it->second;
    if (pool.expires <= now) {
      ++counters_.lease_expiries;
      RemovePool(it);
    }
    it = next;
  }
}

absl::Status KvStoreCore::RegisterPool(const PoolSpec& spec, TimeNs now) {
  AS_RETURN_IF_ERROR(CheckSpec(spec, limits_));
  if (retired_.contains({spec.worker_id, spec.incarnation})) {
    return absl::FailedPreconditionError(base::StrCat("pool of ", spec.worker_id, ": incarnation ", spec.incarnation,
                                                      " was replaced by a newer one; worker ids must be unique"));
  }
  auto it = pools_.find(spec.worker_id);
  if (it != pools_.end() && it->second.spec.incarnation == spec.incarnation) {
    if (it->second.spec != spec) {
      return absl::FailedPreconditionError(
          base::StrCat("pool of ", spec.worker_id, ": the same incarnation registered with another shape or address"));
    }
    it->second.expires = now + limits_.lease;
    return absl::OkStatus();
  }
  if (it != pools_.end()) {
    ++counters_.replaced_pools;
    retired_.emplace(it->first, it->second.spec.incarnation);
    retired_order_.emplace_back(it->first, it->second.spec.incarnation);
    if (retired_order_.size() > limits_.max_retired) {
      retired_.erase(retired_order_.front());
      retired_order_.pop_front();
    }
    RemovePool(it);
  }
  if (pools_.size() >= limits_.max_pools) {
    return absl::ResourceExhaustedError(
        base::StrCat("pool of ", spec.worker_id, ": ", pools_.size(), " pools are registered, the most there may be"));
  }
  Pool& pool = pools_[spec.worker_id];
  pool.spec = spec;
  pool.ident = std::make_shared<const PoolIdent>(PoolIdent{spec.worker_id, spec.incarnation});
  pool.expires = now + limits_.lease;
  return absl::OkStatus();
}

KvStoreCore::Pool* KvStoreCore::FindLive(const PoolIdent& pool) {
  const auto it = pools_.find(pool.worker_id);
  return it != pools_.end() && it->second.spec.incarnation == pool.incarnation ? &it->second : nullptr;
}

absl::Status KvStoreCore::Renew(const PoolIdent& ident, TimeNs now) {
  Pool* pool = FindLive(ident);
  if (pool == nullptr) return NotLive(ident);
  pool->expires = std::max(pool->expires, now + limits_.lease);
  return absl::OkStatus();
}

void KvStoreCore::Release(const PoolIdent& ident) {
  if (FindLive(ident) == nullptr) return;
  ++counters_.released_pools;
  RemovePool(pools_.find(ident.worker_id));
}

void KvStoreCore::RemovePool(PoolMap::iterator it) {
  Pool& pool = it->second;
  for (auto& [index, entry] : pool.entries) {
    if (entry.live) Unlink(&pool, index, &entry);
  }
  entries_ -= pool.entries.size();
  counters_.tickets_dropped += tickets_.DropOwner(*pool.ident);
  log_.Append(Change::Kind::kPoolGone, pool.ident, {});
  pools_.erase(it);
}

absl::Status KvStoreCore::CheckPublish(const Pool& pool, std::span<const SealedBlock> sealed,
                                       std::span<const BlockRef> dropped) const {
  if (sealed.size() + dropped.size() > limits_.max_publish) {
    return absl::InvalidArgumentError(base::StrCat("publish: ", sealed.size() + dropped.size(), " changes; at most ",
                                                   limits_.max_publish, " a message"));
  }
  for (const SealedBlock& b : sealed) {
    if (b.ref.index >= pool.spec.indices() || b.ref.tokens == 0 || b.ref.tokens > pool.spec.block_tokens ||
        b.ref.digest == 0 || b.hash.zero()) {
      return absl::InvalidArgumentError(
          base::StrCat("publish: sealed block ", b.ref.index, " of ", pool.spec.indices(), " with ", b.ref.tokens,
                       " of ", pool.spec.block_tokens, " tokens, digest ", b.ref.digest, ", hash ", b.hash.Hex(),
                       ": index below the pool's size, 1..block_tokens tokens, digest and hash not 0"));
    }
  }
  for (const BlockRef& b : dropped) {
    if (b.index >= pool.spec.indices()) {
      return absl::InvalidArgumentError(
          base::StrCat("publish: dropped block ", b.index, " of a pool of ", pool.spec.indices()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> KvStoreCore::Publish(const PoolIdent& ident, std::span<const SealedBlock> sealed,
                                              std::span<const BlockRef> dropped, TimeNs now) {
  Pool* pool = FindLive(ident);
  if (pool == nullptr) return NotLive(ident);
  AS_RETURN_IF_ERROR(CheckPublish(*pool, sealed, dropped));
  pool->expires = std::max(pool->expires, now + limits_.lease);  // it lives
  uint32_t applied = 0;
  for (const SealedBlock& b : sealed) {
    AS_ASSIGN_OR_RETURN(const bool changed, ApplySealed(pool, b));
    applied += changed;
    counters_.sealed += changed;
    counters_.stale_changes += !changed;
  }
  for (const BlockRef& b : dropped) {
    const bool changed = ApplyDropped(pool, b);
    applied += changed;
    counters_.dropped += changed;
    counters_.stale_changes += !changed;
  }
  return applied;
}

absl::StatusOr<bool> KvStoreCore::ApplySealed(Pool* pool, const SealedBlock& block) {
  auto it = pool->entries.find(block.ref.index);
  if (it != pool->entries.end() && !Newer(block.ref.epoch, it->second.block.ref.epoch)) return false;
  if (it == pool->entries.end()) {
    if (entries_ >= limits_.max_blocks) {
      return absl::ResourceExhaustedError(
          base::StrCat("publish: the directory holds ", entries_, " blocks, the most there may be"));
    }
    it = pool->entries.emplace(block.ref.index, Entry{}).first;
    ++entries_;
  } else if (it->second.live) {
    // The drop of the old epoch was lost or comes later: it is implied.
    log_.Append(Change::Kind::kDropped, pool->ident, it->second.block);
    Unlink(pool, it->first, &it->second);
  }
  it->second.block = block;
  it->second.live = true;
  directory_[block.hash].push_back({pool, block.ref.index});
  ++live_blocks_;
  log_.Append(Change::Kind::kSealed, pool->ident, block);
  return true;
}

bool KvStoreCore::ApplyDropped(Pool* pool, const BlockRef& ref) {
  const auto it = pool->entries.find(ref.index);
  // Unknown: nothing to drop. A seal of that epoch that is still under way would be a wrong entry until the next
  // change of the block; publishers send in order, and readers validate.
  if (it == pool->entries.end() || Newer(it->second.block.ref.epoch, ref.epoch)) return false;
  const bool was_live = it->second.live;
  if (was_live) {
    log_.Append(Change::Kind::kDropped, pool->ident, {{}, {ref.index, ref.epoch, 0, 0}});
    Unlink(pool, it->first, &it->second);
  }
  it->second.block.ref.epoch = ref.epoch;
  return was_live;
}

void KvStoreCore::Unlink(Pool* pool, uint32_t index, Entry* entry) {
  AS_CHECK(entry->live);
  const auto it = directory_.find(entry->block.hash);
  AS_CHECK(it != directory_.end());
  AS_CHECK_EQ(std::erase(it->second, Location{pool, index}), 1u);
  if (it->second.empty()) directory_.erase(it);
  entry->live = false;
  --live_blocks_;
}

absl::Status KvStoreCore::CheckChain(std::span<const Hash128> chain) const {
  if (!chain.empty() && chain.size() <= limits_.max_chain) return absl::OkStatus();
  return absl::InvalidArgumentError(base::StrCat("chain of ", chain.size(), " hashes; 1..", limits_.max_chain));
}

absl::StatusOr<std::vector<Place>> KvStoreCore::Locate(std::span<const Hash128> chain, uint32_t max_places) const {
  AS_RETURN_IF_ERROR(CheckChain(chain));
  // Pools that hold every block so far, with what they hold. Ordered by worker id.
  std::map<std::string, Place> found;
  size_t depth = 0;
  for (; depth < chain.size(); ++depth) {
    const auto it = directory_.find(chain[depth]);
    if (it == directory_.end()) break;
    bool any = false;
    for (const Location& l : it->second) {
      if (l.index >= l.pool->spec.num_blocks) continue;  // in host memory: peers cannot read it
      const std::string& id = l.pool->spec.worker_id;
      auto place = found.find(id);
      if (depth == 0 && place == found.end()) place = found.emplace(id, Place{l.pool->spec, {}}).first;
      if (place == found.end() || place->second.blocks.size() != depth) continue;
      place->second.blocks.push_back(l.pool->entries.at(l.index).block.ref);
      any = true;
    }
    if (!any) break;
  }
  std::vector<Place> places;
  for (auto& [id, place] : found) places.push_back(std::move(place));
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.blocks.size() > b.blocks.size(); });
  const uint32_t most = std::min(max_places == 0 ? 1 : max_places, limits_.max_places);
  if (places.size() > most) places.resize(most);
  return places;
}

absl::StatusOr<TicketGrant> KvStoreCore::OpenTicket(const TicketRequest& request, const Hash128& fresh, TimeNs now) {
  const Pool* pool = FindLive(request.owner);
  if (pool == nullptr) {
    return absl::FailedPreconditionError(base::StrCat("ticket: worker ", request.owner.worker_id, ", incarnation ",
                                                      request.owner.incarnation, ", has no live pool"));
  }
  for (const BlockRef& b : request.blocks) {
    if (b.index >= pool->spec.num_blocks) {
      return absl::InvalidArgumentError(
          base::StrCat("ticket: block ", b.index, " of a pool of ", pool->spec.num_blocks));
    }
    const auto it = pool->entries.find(b.index);
    if (it != pool->entries.end() && Newer(it->second.block.ref.epoch, b.epoch)) {
      return absl::FailedPreconditionError(base::StrCat("ticket: block ", b.index, " of ", request.owner.worker_id,
                                                        " has epoch ", it->second.block.ref.epoch, ", not ", b.epoch,
                                                        ": it was reused"));
    }
  }
  const uint32_t before = tickets_.tickets();
  AS_ASSIGN_OR_RETURN(const TicketGrant grant, tickets_.Open(request, fresh, now));
  counters_.tickets_opened += tickets_.tickets() - before;
  return grant;
}

SnapshotPart KvStoreCore::Snapshot(SnapshotCursor* cursor, size_t max) const {
  SnapshotPart part;
  auto pool = pools_.lower_bound(cursor->worker_id);
  if (pool != pools_.end() && pool->first != cursor->worker_id) cursor->next_index = 0;
  for (; pool != pools_.end(); ++pool, cursor->next_index = 0) {
    for (auto e = pool->second.entries.lower_bound(cursor->next_index); e != pool->second.entries.end(); ++e) {
      if (!e->second.live) continue;
      if (part.sealed.size() == max) {
        cursor->worker_id = pool->first;
        cursor->next_index = e->first;
        return part;
      }
      part.pool = pool->second.ident;
      part.sealed.push_back(e->second.block);
    }
    if (!part.sealed.empty()) {
      // One pool a part. The smallest id after this one:
      cursor->worker_id = pool->first + '\0';
      cursor->next_index = 0;
      return part;
    }
  }
  cursor->done = true;
  return part;
}

void KvStoreCore::AuditPool(const Pool& pool, AuditReport* report) const {
  const auto bad = [&](const std::string& what) {
    if (report->violations.size() < kMaxViolations) {
      report->violations.push_back("pool of " + pool.spec.worker_id + ": " + what);
    }
  };
  for (const auto& [index, e] : pool.entries) {
    if (index != e.block.ref.index || index >= pool.spec.indices()) bad(base::StrCat("entry ", index, " misplaced"));
    if (!e.live) continue;
    ++report->blocks;
    report->host_blocks += index >= pool.spec.num_blocks;
    const auto it = directory_.find(e.block.hash);
    const bool found = it != directory_.end() &&
                       std::count_if(it->second.begin(), it->second.end(), [&, i = index](const Location& l) {
                         return l.pool == &pool && l.index == i;
                       }) == 1;
    if (!found) bad(base::StrCat("block ", index, " is not in the directory"));
  }
}

AuditReport KvStoreCore::Audit(TimeNs) const {
  AuditReport report;
  report.pools = pools();
  report.tickets = tickets_.tickets();
  report.ticketed_blocks = tickets_.covered_blocks();
  report.sequence = log_.last_sequence();
  uint64_t entries = 0;
  for (const auto& [id, pool] : pools_) {
    AuditPool(pool, &report);
    entries += pool.entries.size();
  }
  const auto expect = [&](bool sound, const char* what) {
    if (!sound && report.violations.size() < kMaxViolations) report.violations.emplace_back(what);
  };
  expect(report.blocks == live_blocks_, "count of live blocks is wrong");
  expect(entries == entries_ && entries_ <= limits_.max_blocks, "count of entries is wrong or above its limit");
  expect(pools_.size() <= limits_.max_pools, "too many pools");
  expect(retired_.size() == retired_order_.size() && retired_.size() <= limits_.max_retired, "retired set is wrong");
  expect(directory_.size() <= live_blocks_, "directory has hashes without blocks");
  expect(log_.last_sequence() - log_.oldest_start() <= limits_.max_log, "change log is too long");
  tickets_.CheckInvariants(&report.violations);
  return report;
}

void KvStoreCore::CheckInvariants(TimeNs now) const {
  const AuditReport report = Audit(now);
  AS_CHECK(report.violations.empty()) << report.violations.front();
}

}  // namespace agentserve::kvstore
