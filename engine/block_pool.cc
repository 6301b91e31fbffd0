#include "engine/block_pool.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::engine {

BlockTable& BlockTable::operator=(BlockTable&& o) noexcept {
  if (this != &o) {
    Clear();
    pool_ = o.pool_;
    ids_ = std::exchange(o.ids_, {});
  }
  return *this;
}

void BlockTable::Clear() {
  while (!ids_.empty()) {
    const BlockId last = ids_.back();
    ids_.pop_back();
    pool_->Drop(last);
  }
}

BlockPool::BlockPool(const Options& options) : options_(options), blocks_(options.num_blocks) {
  AS_CHECK_GT(options.num_blocks, 0u);
  free_.reserve(options.num_blocks);
  for (uint32_t i = options.num_blocks; i-- > 0;) free_.push_back(BlockId(i));
}

BlockPool::~BlockPool() { AS_CHECK_EQ(writing_ + held_, 0u) << "a block table outlives its pool"; }

BlockPool::Block& BlockPool::Get(BlockId b) {
  AS_CHECK_LT(b.value, blocks_.size());
  return blocks_[b.value];
}

const BlockPool::Block& BlockPool::Get(BlockId b) const {
  AS_CHECK_LT(b.value, blocks_.size());
  return blocks_[b.value];
}

std::optional<BlockId> BlockPool::Find(const base::Hash128& hash) const {
  const auto it = names_.find(hash);
  if (it == names_.end()) return std::nullopt;
  return it->second;
}

bool BlockPool::Allocate(uint32_t count, BlockTable* table) {
  if (count > available()) return false;
  AS_CHECK(table->pool_ == this);
  while (free_.size() < count) EvictOne();
  for (uint32_t i = 0; i < count; ++i) {
    const BlockId id = free_.back();
    free_.pop_back();
    Block& block = Get(id);
    AS_CHECK(block.state == State::kFree && block.holds == 0);
    block.state = State::kWriting;
    block.epoch = Epoch(block.epoch.value + 1);
    block.holds = 1;
    block.digest = 0;
    block.tokens = 0;
    ++writing_;
    table->ids_.push_back(id);
    changes_.push_back({BlockChange::Kind::kOpened, id, block.epoch, {}, 0, 0});
  }
  return true;
}

uint32_t BlockPool::MatchPrefix(std::span<const base::Hash128> chain, BlockTable* table, Purpose purpose) {
  AS_CHECK(table->pool_ == this);
  uint32_t matched = 0;
  for (const base::Hash128& hash : chain) {
    const std::optional<BlockId> id = Find(hash);
    if (!id) break;
    Hold(*id, purpose);
    table->ids_.push_back(*id);
    ++matched;
  }
  return matched;
}

uint32_t BlockPool::PrefixLength(std::span<const base::Hash128> chain) const {
  uint32_t n = 0;
  while (n < chain.size() && Find(chain[n])) ++n;
  return n;
}

uint32_t BlockPool::CachedPrefix(std::span<const base::Hash128> chain) const {
  uint32_t cached = 0;
  for (const base::Hash128& hash : chain) {
    const std::optional<BlockId> id = Find(hash);
    if (!id) break;
    if (Get(*id).state == State::kCached) ++cached;
  }
  return cached;
}

void BlockPool::Seal(BlockId id, const SealInfo& info) {
  Block& block = Get(id);
  AS_CHECK(block.state == State::kWriting) << "sealing block " << id.value << " that nobody writes";
  block.state = State::kSealed;
  block.digest = info.digest;
  block.tokens = info.tokens;
  --writing_;
  ++held_;
  if (options_.prefix_cache && !info.hash.zero() && names_.try_emplace(info.hash, id).second) {
    block.hash = info.hash;
    block.parent = info.parent;
    block.worth = kBaseWorth;
    block.final = block.shared = block.clean = block.offered = block.unused = false;
    if (!info.parent.zero() && ++children_[info.parent] > 1) {
      if (const auto before = Find(info.parent)) Get(*before).shared = true;
    }
    RefileByName(info.parent);
  }
  changes_.push_back({BlockChange::Kind::kSealed, id, block.epoch, block.hash, block.digest, block.tokens});
}

void BlockPool::Hold(BlockId id, Purpose purpose) {
  Block& block = Get(id);
  if (block.state == State::kCached) {
    block.unused = true;
    block.state = State::kSealed;
    --cached_;
    ++held_;
    Refile(id);
  }
  AS_CHECK(block.state == State::kSealed) << "sharing block " << id.value << " that is not sealed";
  if (purpose == Purpose::kUse) block.final = block.unused = false;
  ++block.holds;
}

void BlockPool::Drop(BlockId id) {
  Block& block = Get(id);
  AS_CHECK_GT(block.holds, 0u) << "block " << id.value << " dropped twice";
  if (--block.holds > 0) return;
  if (block.state == State::kWriting) {
    --writing_;
  } else {
    AS_CHECK(block.state == State::kSealed);
    --held_;
    if (!block.hash.zero()) {
      block.state = State::kCached;
      if (!std::exchange(block.unused, false)) {
        block.clock = clock_;
        block.tick = ++tick_;
        block.offered = false;
      }
      ++cached_;
      Refile(id);
      return;
    }
  }
  block.state = State::kFree;
  free_.push_back(id);
}

uint32_t BlockPool::WorthOf(const Block& b) const {
  const uint32_t worth = b.shared ? kSharedWorth * b.worth : b.worth;
  return b.clean ? worth / kCleanDivisor : worth;
}

BlockPool::Key BlockPool::KeyOf(BlockId id) const {
  const Block& b = Get(id);
  if (b.pinned_until != 0) return {Rank::kPinned, static_cast<uint64_t>(b.pinned_until), b.tick, id};
  if (b.final) return {Rank::kFinal, 0, b.tick, id};
  if (!b.parent.zero() && !names_.contains(b.parent)) return {Rank::kOrphan, 0, b.tick, id};
  return {Rank::kValue, b.clock + WorthOf(b), b.tick, id};
}

void BlockPool::Refile(BlockId id) {
  Block& b = Get(id);
  if (b.leaf) leaves_.erase(b.key);
  b.leaf = IsLeaf(b);
  if (!b.leaf) return;
  b.key = KeyOf(id);
  leaves_.insert(b.key);
}

void BlockPool::RefileByName(const base::Hash128& hash) {
  if (hash.zero()) return;
  if (const auto id = Find(hash)) Refile(*id);
}

// Only when everything cached has children that sequences hold under other blocks' names; any one will do.
BlockId BlockPool::NextInner() {
  for (uint32_t i = 0; i < total(); ++i) {
    inner_cursor_ = (inner_cursor_ + 1) % total();
    if (blocks_[inner_cursor_].state == State::kCached) return BlockId(inner_cursor_);
  }
  AS_CHECK(false) << "nothing to evict";
  return BlockId(0);
}

void BlockPool::TakeName(BlockId id) {
  Block& block = Get(id);
  names_.erase(block.hash);
  changes_.push_back({BlockChange::Kind::kDropped, id, block.epoch, block.hash, 0, 0});
  const base::Hash128 parent = block.parent;
  const bool shared = block.shared;
  block.hash = block.parent = {};
  if (parent.zero()) return;
  const auto siblings = children_.find(parent);
  AS_CHECK(siblings != children_.end() && siblings->second > 0);
  if (--siblings->second == 0) children_.erase(siblings);
  const auto before = Find(parent);
  if (!before) return;
  Get(*before).shared |= shared;  // what leads to a shared block is shared
  Refile(*before);
}

void BlockPool::EvictOne() {
  const bool inner = leaves_.empty();
  const BlockId id = inner ? NextInner() : leaves_.begin()->id;
  Block& block = Get(id);
  AS_CHECK(block.state == State::kCached);
  if (!inner) {
    AS_CHECK(block.leaf);
    if (block.key.rank == Rank::kValue) clock_ = std::max(clock_, block.key.due);
    ++evictions_[static_cast<size_t>(block.key.rank)];
  } else {
    ++evictions_[static_cast<size_t>(Reason::kInner)];
  }
  block.state = State::kFree;
  --cached_;
  Unpin(id);
  Refile(id);
  TakeName(id);
  free_.push_back(id);
}

std::vector<BlockId> BlockPool::NextVictims(uint32_t most) const {
  std::vector<BlockId> victims;
  for (const Key& key : leaves_) {
    if (victims.size() >= most) break;
    if (key.rank == Rank::kValue || key.rank == Rank::kPinned) victims.push_back(key.id);
  }
  return victims;
}

void BlockPool::SetWorth(std::span<const base::Hash128> chain, uint32_t worth) {
  for (const base::Hash128& hash : chain) {
    const std::optional<BlockId> id = Find(hash);
    if (!id) break;
    Get(*id).worth = worth;
    Get(*id).final = false;
    Get(*id).clock = clock_;
    Refile(*id);
  }
}

size_t BlockPool::OwnTail(std::span<const base::Hash128> chain) const {
  size_t begin = chain.size();
  for (size_t i = chain.size(); i-- > 0;) {
    const std::optional<BlockId> id = Find(chain[i]);
    if (!id) {
      if (begin == chain.size()) continue;  // its end is gone already
      break;
    }
    const auto children = children_.find(chain[i]);
    const uint32_t own = begin < chain.size() ? 1 : 0;
    if (Get(*id).shared || (children != children_.end() && children->second > own)) break;
    begin = i;
  }
  return begin;
}

uint32_t BlockPool::MakeFinal(std::span<const base::Hash128> chain) {
  uint32_t marked = 0;
  const size_t begin = OwnTail(chain);
  for (size_t i = chain.size(); i-- > begin;) {
    const std::optional<BlockId> id = Find(chain[i]);
    if (!id) continue;
    Block& block = Get(*id);
    if (block.state != State::kCached || block.pinned_until != 0) break;
    block.final = true;
    ++marked;
    Refile(*id);
  }
  return marked;
}

void BlockPool::SetClean(const base::Hash128& hash, bool clean) {
  const std::optional<BlockId> id = Find(hash);
  if (!id) return;
  Get(*id).clean = clean;
  Refile(*id);
}

void BlockPool::UnpinTail(std::span<const base::Hash128> chain) {
  for (size_t i = OwnTail(chain); i < chain.size(); ++i) {
    if (const std::optional<BlockId> id = Find(chain[i])) Unpin(*id);
  }
}

uint32_t BlockPool::PinPrefix(std::span<const base::Hash128> chain, base::TimeNs until) {
  AS_CHECK_GT(until, 0);
  const uint32_t most = total() / 2;
  uint32_t pinned = 0;
  for (const base::Hash128& hash : chain) {
    const std::optional<BlockId> id = Find(hash);
    if (!id) break;
    Block& block = Get(*id);
    if (block.pinned_until < until) {
      Unpin(*id);
      if (pins_.size() >= most) {
        if (pins_.empty() || pins_.begin()->first >= until) break;
        Unpin(pins_.begin()->second);
      }
      block.pinned_until = until;
      block.final = false;
      pins_.insert({until, *id});
      Refile(*id);
    }
    ++pinned;
  }
  return pinned;
}

void BlockPool::Unpin(BlockId id) {
  Block& block = Get(id);
  if (block.pinned_until == 0) return;
  pins_.erase({block.pinned_until, id});
  block.pinned_until = 0;
  Refile(id);
}

void BlockPool::ExpirePins(base::TimeNs now) {
  while (!pins_.empty() && pins_.begin()->first <= now) Unpin(pins_.begin()->second);
}

void BlockPool::CheckConservation() const {
  AS_CHECK_EQ(free_.size() + writing_ + held_ + cached_, blocks_.size())
      << "free " << free_.size() << " writing " << writing_ << " held " << held_ << " cached " << cached_;
  AS_CHECK_LE(leaves_.size(), cached_);
}

void BlockPool::CheckInvariants() const {
  CheckConservation();
  uint32_t counts[4] = {0, 0, 0, 0};
  uint32_t named = 0, pinned = 0, leaves = 0;
  std::unordered_map<base::Hash128, uint32_t, base::Hash128Hasher> children;
  for (uint32_t i = 0; i < blocks_.size(); ++i) {
    const Block& b = blocks_[i];
    ++counts[static_cast<int>(b.state)];
    switch (b.state) {
      case State::kFree:
      case State::kCached:
        AS_CHECK_EQ(b.holds, 0u) << "block " << i;
        break;
      case State::kWriting:
        AS_CHECK_EQ(b.holds, 1u) << "block " << i;
        break;
      case State::kSealed:
        AS_CHECK_GT(b.holds, 0u) << "block " << i;
        break;
    }
    if (!b.hash.zero()) {
      ++named;
      AS_CHECK(b.state == State::kSealed || b.state == State::kCached) << "named block " << i << " in a wrong state";
      const auto owner = names_.find(b.hash);
      AS_CHECK(owner != names_.end() && owner->second == BlockId(i)) << "block " << i;
      if (!b.parent.zero()) ++children[b.parent];
    } else {
      AS_CHECK(b.state != State::kCached) << "cached block " << i << " has no name";
    }
    if (b.pinned_until != 0) {
      ++pinned;
      AS_CHECK(pins_.contains({b.pinned_until, BlockId(i)})) << "block " << i;
    }
    AS_CHECK_EQ(b.leaf, IsLeaf(b)) << "block " << i;
    AS_CHECK(!b.leaf || (leaves_.contains(b.key) && b.key.id == BlockId(i))) << "block " << i;
    // Its parent may have gone or come back since it was filed.
    const bool by_parent = b.leaf && (b.key.rank == Rank::kOrphan || KeyOf(BlockId(i)).rank == Rank::kOrphan);
    AS_CHECK(!b.leaf || by_parent || b.key == KeyOf(BlockId(i))) << "block " << i;
    leaves += b.leaf;
  }
  AS_CHECK_EQ(counts[0], free_.size());
  AS_CHECK_EQ(counts[1], writing_);
  AS_CHECK_EQ(counts[2], held_);
  AS_CHECK_EQ(counts[3], cached_);
  AS_CHECK_EQ(named, names_.size());
  AS_CHECK_EQ(pinned, pins_.size());
  AS_CHECK_EQ(leaves, leaves_.size());
  AS_CHECK(children == children_);
}

}  // namespace agentserve::engine
