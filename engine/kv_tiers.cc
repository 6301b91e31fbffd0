#include "engine/kv_tiers.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::engine {
namespace {

// Weight of the newest copy in the measured rate.
constexpr double kRateWeight = 0.2;
// Copies smaller than this are mostly fixed cost and say nothing of the rate.
constexpr uint32_t kLeastMeasured = 4;
// Stores at once: one runs, the next one waits at the copier's door.
constexpr uint32_t kMaxStores = 2;
constexpr uint32_t kMaxPrefetches = 2;
// Victims of the pool looked at after each event.
constexpr uint32_t kVictims = 8;

}  // namespace

KvTiers::KvTiers(const Options& options, BlockPool* pool, Planner* planner)
    : options_(options),
      pool_(pool),
      planner_(planner),
      host_(options.host_slots),
      host_bytes_per_s_(options.host_bytes_per_s) {
  AS_CHECK_GT(options_.copy_blocks, 0u);
}

void KvTiers::Retain(std::span<const base::Hash128> chain, const Keep& keep, base::TimeNs now) {
  ++stats_.retained[static_cast<size_t>(keep.where)];
  if (keep.where == KeepWhere::kDrop) {
    std::erase_if(pending_, [&](const auto& c) { return !chain.empty() && c.back() == chain.back(); });
    pool_->UnpinTail(chain);
    pool_->MakeFinal(chain);
    host_.Drop(chain);
    return TakeChanges();
  }
  pool_->SetWorth(chain, keep.worth);
  host_.SetWorth(chain, keep.worth);
  const base::TimeNs ttl = std::clamp<base::TimeNs>(keep.ttl, 0, options_.max_ttl);
  if (keep.where == KeepWhere::kDevice) {
    if (ttl > 0) {
      pool_->PinPrefix(chain, now + ttl);
    } else {
      pool_->UnpinTail(chain);
    }
    return;
  }
  pool_->UnpinTail(chain);
  if (!enabled() || chain.empty()) return;
  pending_.emplace_back(chain.begin(), chain.end());
  if (pending_.size() > options_.max_pending) pending_.pop_front();
}

KvTiers::Job& KvTiers::NewJob(Kind kind, HostCopy* copy) {
  const uint64_t id = next_job_++;
  Job& job = jobs_[id];
  job.kind = kind;
  job.table = BlockTable(pool_);
  copy->job = id;
  copy->to_host = kind == Kind::kStore;
  return job;
}

bool KvTiers::StoreSome(std::span<const base::Hash128> chain, uint32_t least_worth) {
  size_t i = 0;
  while (i < chain.size() && host_.Has(chain[i])) ++i;
  HostCopy copy;
  BlockTable table(pool_);
  // Held blocks are not available to sequences, so a copy takes only a small part of the pool.
  const uint32_t most = std::clamp(pool_->total() / 8, 1u, options_.copy_blocks);
  for (; i < chain.size() && copy.blocks.size() < most; ++i) {
    const std::optional<BlockId> id = pool_->Find(chain[i]);
    if (!id) break;
    HostTier::Block block;
    block.hash = chain[i];
    if (i > 0) block.parent = chain[i - 1];
    block.digest = pool_->digest(*id);
    block.tokens = pool_->tokens(*id);
    block.worth = std::max(pool_->worth(*id), least_worth);
    const std::optional<SlotId> slot = host_.BeginStore(block);
    if (!slot) break;
    AS_CHECK_EQ(pool_->MatchPrefix(chain.subspan(i, 1), &table, BlockPool::Purpose::kCopy), 1u);
    copy.blocks.push_back(*id);
    copy.slots.push_back(*slot);
    copy.digests.push_back(block.digest);
    copy.tokens.push_back(block.tokens);
  }
  TakeChanges();
  if (copy.blocks.empty()) return false;
  Job& job = NewJob(Kind::kStore, &copy);
  job.table = std::move(table);
  job.slots = copy.slots;
  ++stores_;
  copies_.push_back(std::move(copy));
  return true;
}

std::vector<base::Hash128> KvTiers::ChainOf(BlockId leaf) const {
  std::vector<base::Hash128> chain = {pool_->name(leaf)};
  base::Hash128 before = pool_->parent(leaf);
  while (!before.zero() && chain.size() <= pool_->total()) {
    const std::optional<BlockId> id = pool_->Find(before);
    if (!id) return {};
    chain.push_back(before);
    before = pool_->parent(*id);
  }
  std::reverse(chain.begin(), chain.end());
  return chain;
}

// Keeps the next victims of the pool copied, if they have been of use: retained by the router, or shared.
void KvTiers::StoreVictims() {
  for (const BlockId id : pool_->NextVictims(kVictims)) {
    const uint32_t worth = pool_->worth(id);
    if (!(options_.store_ordinary || worth > BlockPool::kBaseWorth) || pool_->clean(id) || pool_->offered(id)) continue;
    const std::vector<base::Hash128> chain = ChainOf(id);
    const bool began = !chain.empty() && StoreSome(chain, worth);
    // Once for each use, or two blocks that do not fit both would replace each other for ever.
    if (!began || host_.Has(chain.back())) pool_->SetOffered(id);
    if (began) return;
  }
}

void KvTiers::Pump() {
  if (!enabled()) return;
  while (stores_ < kMaxStores && !pending_.empty()) {
    if (!StoreSome(pending_.front(), 0)) pending_.pop_front();
  }
  // Only when the pool is nearly full: before that nothing is evicted.
  if (stores_ == 0 && pool_->free() < pool_->total() / 8) StoreVictims();
}

bool KvTiers::LoadIsCheaper(uint32_t blocks) const {
  if (prefill_tokens_per_s_ <= 0) return true;
  const double load_s = static_cast<double>(options_.load_fixed_ns) / 1e9 +
                        static_cast<double>(blocks) * static_cast<double>(options_.block_bytes) / host_bytes_per_s_;
  return load_s < static_cast<double>(blocks) * options_.block_tokens / prefill_tokens_per_s_;
}

bool KvTiers::BeginLoad(SeqId id) {
  if (!enabled()) return false;
  Sequence& seq = *planner_->Find(id);
  AS_CHECK(seq.phase == Sequence::Phase::kActive && !seq.busy()) << "sequence " << id;
  const size_t reusable = std::min<size_t>((seq.known() - 1) / options_.block_tokens, seq.chain.size());
  const std::span<const base::Hash128> chain = std::span(seq.chain).first(reusable);
  const uint32_t here = host_.PrefixLength(chain);
  if (here <= seq.sealed) return false;
  if (!LoadIsCheaper(here - seq.sealed)) {
    ++stats_.recompute_was_cheaper;
    return false;
  }
  HostCopy copy;
  Job& job = NewJob(Kind::kLoad, &copy);
  job.seq = id;
  job.first = seq.sealed;
  for (uint32_t i = seq.sealed; i < here; ++i) {
    const std::optional<SlotId> slot = host_.BeginLoad(chain[i]);
    AS_CHECK(slot.has_value());
    const HostTier::Block& block = host_.block(*slot);
    job.slots.push_back(*slot);
    job.names.push_back(block);
    copy.blocks.push_back(seq.blocks[i]);
    copy.digests.push_back(block.digest);
    copy.tokens.push_back(block.tokens);
  }
  copy.slots = job.slots;
  seq.io = true;
  copies_.push_back(std::move(copy));
  return true;
}

void KvTiers::Prefetch(std::span<const base::Hash128> chain, base::TimeNs ttl, base::TimeNs now) {
  const base::TimeNs until = now + std::clamp<base::TimeNs>(ttl, 1, options_.max_ttl);
  const uint32_t first = pool_->PrefixLength(chain);
  pool_->PinPrefix(chain.first(first), until);
  if (!enabled() || prefetches_ >= kMaxPrefetches) return;
  const uint32_t end = std::min(host_.PrefixLength(chain), first + options_.copy_blocks * 16);
  // Waiting sequences come first, and those that run need room to grow.
  const uint32_t reserve = pool_->total() / 16 + planner_->active() + pool_->pinned();
  const uint32_t room = pool_->available() > reserve ? pool_->available() - reserve : 0;
  const uint32_t count = std::min(end > first ? end - first : 0, planner_->waiting() > 0 ? 0 : room);
  if (count == 0 || !LoadIsCheaper(count)) return;
  HostCopy copy;
  Job& job = NewJob(Kind::kPrefetch, &copy);
  job.pin_until = until;
  // The beginning must not be what makes room for the rest.
  AS_CHECK_EQ(pool_->MatchPrefix(chain.first(first), &job.table), first);
  if (!pool_->Allocate(std::min(count, pool_->available()), &job.table)) {
    jobs_.erase(copy.job);
    return;
  }
  for (uint32_t i = first; i < job.table.size(); ++i) {
    const std::optional<SlotId> slot = host_.BeginLoad(chain[i]);
    AS_CHECK(slot.has_value());
    job.slots.push_back(*slot);
    job.names.push_back(host_.block(*slot));
    copy.blocks.push_back(job.table[i]);
    copy.digests.push_back(job.names.back().digest);
    copy.tokens.push_back(job.names.back().tokens);
  }
  job.first = first;
  copy.slots = job.slots;
  if (copy.blocks.empty()) {
    jobs_.erase(copy.job);
    return;
  }
  ++prefetches_;
  copies_.push_back(std::move(copy));
}

void KvTiers::NoteLoaded(std::span<const base::Hash128> names) {
  for (const base::Hash128& name : names) pool_->SetClean(name, host_.Has(name));
}

std::optional<SequenceLoaded> KvTiers::OnCopyEnded(const CopyEnded& ended, base::TimeNs now) {
  const auto it = jobs_.find(ended.job);
  if (it == jobs_.end()) return std::nullopt;
  Job job = std::move(it->second);
  jobs_.erase(it);
  const auto blocks = static_cast<uint32_t>(job.slots.size());
  AS_CHECK_LE(ended.good, blocks);
  if (ended.good >= kLeastMeasured && ended.copy_ns > 0) {
    const double rate = static_cast<double>(ended.good) * static_cast<double>(options_.block_bytes) /
                        (static_cast<double>(ended.copy_ns) / 1e9);
    host_bytes_per_s_ += kRateWeight * (rate - host_bytes_per_s_);
  }
  stats_.corrupt_blocks += ended.corrupt;
  if (job.kind == Kind::kStore) {
    EndStore(&job, ended);
    return std::nullopt;
  }
  stats_.load_ns += ended.copy_ns;
  stats_.failed_loads += ended.good < blocks;
  EndSlots(job, ended);
  if (job.kind == Kind::kPrefetch) {
    EndPrefetch(&job, ended, now);
    return std::nullopt;
  }
  stats_.loaded_blocks += ended.good;
  SequenceLoaded loaded;
  loaded.seq = job.seq;
  loaded.first = job.first;
  loaded.corrupt = ended.corrupt;
  for (uint32_t i = 0; i < ended.good; ++i) loaded.digests.push_back(job.names[i].digest);
  return loaded;
}

void KvTiers::EndSlots(const Job& job, const CopyEnded& ended) {
  for (uint32_t i = 0; i < job.slots.size(); ++i) host_.EndLoad(job.slots[i], ended.corrupt && i == ended.good);
  TakeChanges();
}

void KvTiers::EndStore(Job* job, const CopyEnded& ended) {
  --stores_;
  stats_.store_ns += ended.copy_ns;
  stats_.stored_blocks += ended.good;
  stats_.failed_stores += ended.good < job->slots.size();
  for (uint32_t i = 0; i < job->slots.size(); ++i) host_.EndStore(job->slots[i], i < ended.good);
  TakeChanges();
}

void KvTiers::EndPrefetch(Job* job, const CopyEnded& ended, base::TimeNs now) {
  --prefetches_;
  stats_.prefetched_blocks += ended.good;
  for (uint32_t i = 0; i < ended.good; ++i) {
    const HostTier::Block& b = job->names[i];
    pool_->Seal(job->table[job->first + i], {b.hash, b.digest, b.tokens, b.parent});
    pool_->SetClean(b.hash, host_.Has(b.hash));
    if (job->pin_until > now) pool_->PinPrefix({&b.hash, 1}, job->pin_until);
  }
}

void KvTiers::FillLoad(Load* load) const {
  load->parked_blocks = pool_->pinned();
  load->host_blocks = host_.stored();
  load->host_total_blocks = host_.total();
}

void KvTiers::TakeChanges() {
  for (const HostTier::Change& c : host_.TakeChanges()) {
    pool_->SetClean(c.block.hash, c.stored);
    changes_.push_back(c);
  }
}

void KvTiers::CheckInvariants() const {
  host_.CheckInvariants();
  uint32_t stores = 0, prefetches = 0, storing = 0;
  for (const auto& [id, job] : jobs_) {
    stores += job.kind == Kind::kStore;
    prefetches += job.kind == Kind::kPrefetch;
    if (job.kind == Kind::kStore) storing += static_cast<uint32_t>(job.slots.size());
    if (job.kind != Kind::kLoad) continue;
    const Sequence* seq = planner_->Find(job.seq);
    AS_CHECK(seq != nullptr && seq->io) << "sequence " << job.seq << " lost its blocks during a load";
  }
  AS_CHECK_EQ(stores, stores_);
  AS_CHECK_EQ(prefetches, prefetches_);
  AS_CHECK_GE(storing, host_.storing());
  AS_CHECK_LE(pending_.size(), options_.max_pending);
}

}  // namespace agentserve::engine
