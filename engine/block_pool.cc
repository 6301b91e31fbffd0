#include "engine/block_pool.h"

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

uint32_t BlockPool::MatchPrefix(std::span<const base::Hash128> chain, BlockTable* table) {
  AS_CHECK(table->pool_ == this);
  uint32_t matched = 0;
  for (const base::Hash128& hash : chain) {
    const std::optional<BlockId> id = Find(hash);
    if (!id) break;
    Hold(*id);
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
  if (options_.prefix_cache && !info.hash.zero() && names_.try_emplace(info.hash, id).second) block.hash = info.hash;
  changes_.push_back({BlockChange::Kind::kSealed, id, block.epoch, block.hash, block.digest, block.tokens});
}

void BlockPool::Hold(BlockId id) {
  Block& block = Get(id);
  if (block.state == State::kCached) {
    lru_.erase(block.lru_pos);
    block.state = State::kSealed;
    --cached_;
    ++held_;
  }
  AS_CHECK(block.state == State::kSealed) << "sharing block " << id.value << " that is not sealed";
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
      block.lru_pos = lru_.insert(lru_.end(), id);
      ++cached_;
      return;
    }
  }
  block.state = State::kFree;
  free_.push_back(id);
}

void BlockPool::EvictOne() {
  AS_CHECK(!lru_.empty());
  auto victim = lru_.begin();
  if (!pins_.empty()) {
    while (victim != lru_.end() && Get(*victim).pinned_until != 0) ++victim;
    if (victim == lru_.end()) {  // everything is pinned: the pin that ends first gives way
      victim = lru_.begin();
      for (const auto& [until, id] : pins_) {
        if (Get(id).state != State::kCached) continue;
        victim = Get(id).lru_pos;
        break;
      }
    }
  }
  const BlockId id = *victim;
  Block& block = Get(id);
  lru_.erase(victim);
  Unpin(id);
  names_.erase(block.hash);
  changes_.push_back({BlockChange::Kind::kDropped, id, block.epoch, block.hash, 0, 0});
  block.hash = {};
  block.state = State::kFree;
  --cached_;
  free_.push_back(id);
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
      pins_.insert({until, *id});
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
}

void BlockPool::ExpirePins(base::TimeNs now) {
  while (!pins_.empty() && pins_.begin()->first <= now) Unpin(pins_.begin()->second);
}

void BlockPool::CheckConservation() const {
  AS_CHECK_EQ(free_.size() + writing_ + held_ + cached_, blocks_.size())
      << "free " << free_.size() << " writing " << writing_ << " held " << held_ << " cached " << cached_;
  AS_CHECK_EQ(lru_.size(), cached_);
}

void BlockPool::CheckInvariants() const {
  CheckConservation();
  uint32_t counts[4] = {0, 0, 0, 0};
  uint32_t named = 0, pinned = 0;
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
    } else {
      AS_CHECK(b.state != State::kCached) << "cached block " << i << " has no name";
    }
    if (b.pinned_until != 0) {
      ++pinned;
      AS_CHECK(pins_.contains({b.pinned_until, BlockId(i)})) << "block " << i;
    }
  }
  AS_CHECK_EQ(counts[0], free_.size());
  AS_CHECK_EQ(counts[1], writing_);
  AS_CHECK_EQ(counts[2], held_);
  AS_CHECK_EQ(counts[3], cached_);
  AS_CHECK_EQ(named, names_.size());
  AS_CHECK_EQ(pinned, pins_.size());
}

}  // namespace agentserve::engine
