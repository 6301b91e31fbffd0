#include "router/core/program_finder.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::router {
namespace {

std::string Name(std::string_view tenant, std::string_view program) {
  std::string name(tenant);
  name.push_back('\0');
  name.append(program);
  return name;
}

}  // namespace

const ProgramFinder::Mark* ProgramFinder::MarkAt(const base::Hash128& hash) const {
  const auto it = marks_.find(hash);
  if (it == marks_.end() || owners_.count(it->second->owner) == 0) return nullptr;
  return &*it->second;
}

// Prompts have all marks at multiples of the stride up to their end, so the end of the longest shared one lies less
// than a stride behind the deepest such hit.
uint32_t ProgramFinder::Deepest(std::span<const base::Hash128> chain, const Mark** mark) const {
  const auto size = static_cast<uint32_t>(chain.size());
  uint32_t base = size / kStride * kStride;
  for (; base > 0; base -= kStride) {
    if (MarkAt(chain[base - 1]) != nullptr) break;
  }
  for (uint32_t depth = std::min(base + kStride - 1, size); depth >= std::max(base, kMinBlocks); --depth) {
    *mark = MarkAt(chain[depth - 1]);
    if (*mark != nullptr) return depth;
  }
  return 0;
}

uint64_t ProgramFinder::TipKey(const base::Hash128& last, std::span<const TokenId> tail) {
  return base::Xxh3(std::as_bytes(tail), last.lo);
}

const ProgramFinder::Owner* ProgramFinder::Continued(const PromptView& prompt, uint32_t depth) const {
  const base::Hash128& last = prompt.chain[depth - 1];
  const std::span<const TokenId> rest = prompt.tokens.subspan(static_cast<size_t>(depth) * prompt.block_tokens);
  for (size_t n = std::min<size_t>(rest.size(), prompt.block_tokens - 1) + 1; n-- > 0;) {
    const auto it = tips_.find(TipKey(last, rest.first(n)));
    if (it == tips_.end()) continue;
    const Owner& owner = owners_.at(it->second);
    // The key is a hash; the prompt is compared.
    const bool equal = std::any_of(owner.tips.begin(), owner.tips.end(), [&](const Tip& t) {
      return t.last == last && std::equal(t.tail.begin(), t.tail.end(), rest.begin(), rest.begin() + ptrdiff_t(n));
    });
    if (equal && owner.tenant == prompt.tenant) return &owner;
  }
  return nullptr;
}

std::optional<ProgramFinder::Found> ProgramFinder::Find(const PromptView& prompt) const {
  if (prompt.block_tokens == 0 || prompt.chain.size() < kMinBlocks || prompt.turn == Turn::kFirst) return std::nullopt;
  const Mark* mark = nullptr;
  const uint32_t depth = Deepest(prompt.chain, &mark);
  if (depth == 0) return std::nullopt;
  const auto tokens = [&](const Tip& t) { return static_cast<size_t>(t.blocks) * prompt.block_tokens + t.tail.size(); };
  // Text and token ids do not show whether they hold answers; an equal prompt once more is then no next turn.
  const auto grows = [&](const Owner& o) {
    return prompt.turn == Turn::kLater || prompt.tokens.size() > tokens(o.tips.front());
  };
  if (const Owner* owner = Continued(prompt, depth); owner != nullptr && grows(*owner)) {
    return Found{owner->program, depth, true};
  }
  const Owner& owner = owners_.at(mark->owner);
  if (mark->shared || owner.tenant != prompt.tenant || !grows(owner)) return std::nullopt;
  if (static_cast<size_t>(depth) * prompt.block_tokens * 2 < tokens(owner.tips.front())) return std::nullopt;
  return Found{owner.program, depth, false};
}

void ProgramFinder::DropTip(uint64_t owner, const Tip& tip) {
  const auto it = tips_.find(tip.key);
  if (it != tips_.end() && it->second == owner) tips_.erase(it);
}

void ProgramFinder::DropOwner(uint64_t id) {
  const auto it = owners_.find(id);
  for (const Tip& tip : it->second.tips) DropTip(id, tip);
  by_name_.erase(Name(it->second.tenant, it->second.program));
  owner_lru_.erase(it->second.place);
  owners_.erase(it);
}

uint64_t ProgramFinder::OwnerOf(std::string_view tenant, std::string_view program) {
  std::string name = Name(tenant, program);
  if (const auto it = by_name_.find(name); it != by_name_.end()) {
    owner_lru_.splice(owner_lru_.begin(), owner_lru_, owners_.at(it->second).place);
    return it->second;
  }
  if (owners_.size() >= limits_.programs) DropOwner(owner_lru_.back());
  const uint64_t id = next_owner_++;
  owner_lru_.push_front(id);
  owners_[id] = {std::string(tenant), std::string(program), {}, owner_lru_.begin()};
  by_name_.emplace(std::move(name), id);
  return id;
}

void ProgramFinder::PutMark(const base::Hash128& hash, uint64_t owner) {
  if (const auto it = marks_.find(hash); it != marks_.end()) {
    Mark& mark = *it->second;
    if (mark.owner != owner) {
      mark.shared = owners_.count(mark.owner) > 0;
      mark.owner = owner;
    }
    mark_lru_.splice(mark_lru_.begin(), mark_lru_, it->second);
    return;
  }
  if (marks_.size() >= limits_.marks) {
    marks_.erase(mark_lru_.back().hash);
    mark_lru_.pop_back();
  }
  mark_lru_.push_front({hash, owner, false});
  marks_.emplace(hash, mark_lru_.begin());
}

void ProgramFinder::Record(const PromptView& prompt, std::string_view program) {
  if (prompt.block_tokens == 0 || prompt.chain.size() < kMinBlocks) return;
  const uint64_t id = OwnerOf(prompt.tenant, program);
  Owner& owner = owners_.at(id);
  const auto blocks = static_cast<uint32_t>(prompt.chain.size());
  const size_t full = static_cast<size_t>(blocks) * prompt.block_tokens;
  Tip tip{prompt.chain.back(), blocks, {}, 0};
  if (prompt.tokens.size() > full) {
    tip.tail.assign(prompt.tokens.begin() + static_cast<std::ptrdiff_t>(full), prompt.tokens.end());
  }
  tip.key = TipKey(tip.last, tip.tail);
  std::erase_if(owner.tips, [&](const Tip& t) { return t.key == tip.key; });
  tips_[tip.key] = id;
  owner.tips.push_front(std::move(tip));
  if (owner.tips.size() > kTips) {
    DropTip(id, owner.tips.back());
    owner.tips.pop_back();
  }
  const uint32_t last_stride = blocks / kStride * kStride;
  // From the end, so that the beginning, which most later prompts share, is the most recent and stays longest.
  for (uint32_t depth = blocks; depth > std::max(last_stride, kMinBlocks - 1); --depth) {
    PutMark(prompt.chain[depth - 1], id);
  }
  for (uint32_t depth = last_stride; depth > 0; depth -= kStride) PutMark(prompt.chain[depth - 1], id);
}

void ProgramFinder::Forget(std::string_view tenant, std::string_view program) {
  const auto it = by_name_.find(Name(tenant, program));
  if (it != by_name_.end()) DropOwner(it->second);
}

void ProgramFinder::CheckInvariants() const {
  AS_CHECK_EQ(marks_.size(), mark_lru_.size());
  AS_CHECK_EQ(owners_.size(), owner_lru_.size());
  AS_CHECK_EQ(owners_.size(), by_name_.size());
  AS_CHECK_LE(marks_.size(), limits_.marks);
  AS_CHECK_LE(owners_.size(), limits_.programs);
  AS_CHECK_LE(tips_.size(), owners_.size() * kTips);
  for (const auto& [key, id] : tips_) AS_CHECK_EQ(owners_.count(id), 1u);
  for (const auto& [id, owner] : owners_) {
    AS_CHECK(!owner.tips.empty());
    AS_CHECK_LE(owner.tips.size(), kTips);
  }
}

}  // namespace agentserve::router
