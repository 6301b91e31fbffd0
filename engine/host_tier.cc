#include "engine/host_tier.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::engine {

HostTier::HostTier(uint32_t num_slots) : slots_(num_slots) {
  free_.reserve(num_slots);
  for (uint32_t i = num_slots; i-- > 0;) free_.push_back(SlotId(i));
}

HostTier::Slot& HostTier::Get(SlotId id) {
  AS_CHECK_LT(id.value, slots_.size());
  return slots_[id.value];
}

const HostTier::Slot& HostTier::Get(SlotId id) const {
  AS_CHECK_LT(id.value, slots_.size());
  return slots_[id.value];
}

std::optional<SlotId> HostTier::Find(const base::Hash128& hash) const {
  const auto it = names_.find(hash);
  if (it == names_.end()) return std::nullopt;
  return it->second;
}

void HostTier::Refile(SlotId id) {
  Slot& s = Get(id);
  if (s.leaf) leaves_.erase(s.key);
  s.leaf = s.state == State::kStored && s.loads == 0 && s.children.empty();
  if (!s.leaf) return;
  s.key = {s.clock + s.block.worth, s.tick, id};
  leaves_.insert(s.key);
}

bool HostTier::Accepts(uint32_t worth) const {
  return !free_.empty() || (!leaves_.empty() && leaves_.begin()->due <= clock_ + worth);
}

std::optional<SlotId> HostTier::BeginStore(const Block& block) {
  if (block.hash.zero() || Has(block.hash)) return std::nullopt;
  std::optional<SlotId> parent;
  if (!block.parent.zero()) {
    parent = Find(block.parent);
    if (!parent) return std::nullopt;
    Get(*parent).children.push_back(SlotId(UINT32_MAX));  // so that it is not the victim
    Refile(*parent);
  }
  const bool room = Accepts(block.worth);
  if (room && free_.empty()) {
    const Key victim = *leaves_.begin();
    clock_ = std::max(clock_, victim.due);
    ForgetOne(victim.id, Reason::kValue);
  }
  if (parent) Get(*parent).children.pop_back();
  if (!room) {
    if (parent) Refile(*parent);
    return std::nullopt;
  }
  const SlotId id = free_.back();
  free_.pop_back();
  Slot& s = Get(id);
  AS_CHECK(s.state == State::kFree);
  s.state = State::kStoring;
  s.epoch = Epoch(s.epoch.value + 1);
  s.block = block;
  s.clock = clock_;
  s.tick = ++tick_;
  ++storing_;
  names_.emplace(block.hash, id);
  if (parent) Get(*parent).children.push_back(id);
  if (parent) Refile(*parent);
  return id;
}

void HostTier::EndStore(SlotId id, bool ok) {
  Slot& s = Get(id);
  if (s.state == State::kDoomed) {
    --doomed_;
    return Free(id);
  }
  AS_CHECK(s.state == State::kStoring) << "slot " << id << " is not being stored";
  if (!ok) {
    Forget(id, Reason::kCorrupt);
    --doomed_;
    return Free(id);
  }
  s.state = State::kStored;
  --storing_;
  ++stored_;
  changes_.push_back({true, id, s.epoch, s.block});
  Refile(id);
}

std::optional<SlotId> HostTier::BeginLoad(const base::Hash128& hash) {
  const std::optional<SlotId> id = Find(hash);
  if (!id || Get(*id).state != State::kStored) return std::nullopt;
  Slot& s = Get(*id);
  ++s.loads;
  s.clock = clock_;
  s.tick = ++tick_;
  Refile(*id);
  return id;
}

void HostTier::EndLoad(SlotId id, bool corrupt) {
  Slot& s = Get(id);
  AS_CHECK_GT(s.loads, 0u) << "slot " << id << " is not being loaded";
  --s.loads;
  if (s.state == State::kDoomed) {
    if (s.loads > 0) return;
    --doomed_;
    return Free(id);
  }
  if (corrupt) return Forget(id, Reason::kCorrupt);
  Refile(id);
}

uint32_t HostTier::PrefixLength(std::span<const base::Hash128> chain) const {
  uint32_t n = 0;
  for (; n < chain.size(); ++n) {
    const std::optional<SlotId> id = Find(chain[n]);
    if (!id || Get(*id).state != State::kStored) break;
  }
  return n;
}

void HostTier::SetWorth(std::span<const base::Hash128> chain, uint32_t worth) {
  for (const base::Hash128& hash : chain) {
    const std::optional<SlotId> id = Find(hash);
    if (!id) break;
    Slot& s = Get(*id);
    s.block.worth = worth;
    s.clock = clock_;
    Refile(*id);
  }
}

uint32_t HostTier::Drop(std::span<const base::Hash128> chain) {
  uint32_t dropped = 0;
  for (size_t i = chain.size(); i-- > 0;) {
    const std::optional<SlotId> id = Find(chain[i]);
    if (!id) continue;
    if (!Get(*id).children.empty()) break;
    ForgetOne(*id, Reason::kFinal);
    ++dropped;
  }
  return dropped;
}

void HostTier::Forget(SlotId id, Reason reason) {
  while (!Get(id).children.empty()) {
    SlotId last = Get(id).children.back();
    while (!Get(last).children.empty()) last = Get(last).children.back();
    ForgetOne(last, Reason::kOrphan);
  }
  ForgetOne(id, reason);
}

void HostTier::ForgetOne(SlotId id, Reason reason) {
  Slot& s = Get(id);
  AS_CHECK(s.children.empty() && !s.block.hash.zero()) << "slot " << id;
  names_.erase(s.block.hash);
  if (const auto parent = s.block.parent.zero() ? std::nullopt : Find(s.block.parent)) {
    auto& siblings = Get(*parent).children;
    siblings.erase(std::find(siblings.begin(), siblings.end(), id));
    Refile(*parent);
  }
  if (s.state == State::kStored) {
    changes_.push_back({false, id, s.epoch, s.block});
    --stored_;
  } else {
    --storing_;
  }
  ++evictions_[static_cast<size_t>(reason)];
  const bool busy = s.state == State::kStoring || s.loads > 0;
  s.state = State::kDoomed;
  Refile(id);
  if (busy) {
    ++doomed_;
  } else {
    Free(id);
  }
}

void HostTier::Free(SlotId id) {
  Slot& s = Get(id);
  AS_CHECK(s.loads == 0 && s.children.empty() && !s.leaf);
  s.state = State::kFree;
  s.block = {};
  free_.push_back(id);
}

void HostTier::CheckInvariants() const {
  AS_CHECK_EQ(free_.size() + storing_ + stored_ + doomed_, slots_.size());
  uint32_t counts[4] = {0, 0, 0, 0};
  size_t leaves = 0, named = 0;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& s = slots_[i];
    ++counts[static_cast<int>(s.state)];
    const bool has_name = s.state == State::kStoring || s.state == State::kStored;
    AS_CHECK(s.loads == 0 || s.state == State::kStored || s.state == State::kDoomed) << "slot " << i;
    AS_CHECK_EQ(s.leaf, s.state == State::kStored && s.loads == 0 && s.children.empty()) << "slot " << i;
    AS_CHECK(!s.leaf || leaves_.contains(s.key)) << "slot " << i;
    leaves += s.leaf;
    if (!has_name) {
      AS_CHECK(s.children.empty()) << "slot " << i;
      continue;
    }
    ++named;
    AS_CHECK(Find(s.block.hash) == SlotId(i)) << "slot " << i;
    for (const SlotId child : s.children) AS_CHECK(Get(child).block.parent == s.block.hash) << "slot " << i;
    if (s.block.parent.zero()) continue;
    const auto parent = Find(s.block.parent);
    AS_CHECK(parent.has_value()) << "slot " << i << " is an orphan";
    const auto& siblings = Get(*parent).children;
    AS_CHECK_EQ(std::count(siblings.begin(), siblings.end(), SlotId(i)), 1) << "slot " << i;
  }
  AS_CHECK_EQ(counts[0], free_.size());
  AS_CHECK_EQ(counts[1], storing_);
  AS_CHECK_EQ(counts[2], stored_);
  AS_CHECK_EQ(counts[3], doomed_);
  AS_CHECK_EQ(leaves, leaves_.size());
  AS_CHECK_EQ(named, names_.size());
}

}  // namespace agentserve::engine
