#include "kvstore/core/mirror_table.h"

#include <algorithm>

#include "base/check.h"

namespace agentserve::kvstore {
namespace {

bool Newer(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

}  // namespace

void MirrorTable::Clear() {
  pools_.clear();
  directory_.clear();
  blocks_ = 0;
}

void MirrorTable::Seal(const PoolIdent& ident, const SealedBlock& block) {
  auto it = pools_.find(ident.worker_id);
  if (it != pools_.end() && it->second.ident.incarnation != ident.incarnation) {
    Erase(it);
    it = pools_.end();
  }
  if (it == pools_.end()) it = pools_.emplace(ident.worker_id, Pool{ident, {}}).first;
  Pool& pool = it->second;
  const auto known = pool.blocks.find(block.ref.index);
  if (known != pool.blocks.end()) {
    if (!Newer(block.ref.epoch, known->second.ref.epoch)) return;
    Unlink(&pool, known->second);
    pool.blocks.erase(known);
  }
  if (blocks_ >= max_blocks_) return;
  pool.blocks.emplace(block.ref.index, block);
  directory_[block.hash].push_back(&pool);
  ++blocks_;
}

void MirrorTable::Drop(const PoolIdent& ident, const BlockRef& ref) {
  const auto it = pools_.find(ident.worker_id);
  if (it == pools_.end() || it->second.ident.incarnation != ident.incarnation) return;
  const auto known = it->second.blocks.find(ref.index);
  if (known == it->second.blocks.end() || Newer(known->second.ref.epoch, ref.epoch)) return;
  Unlink(&it->second, known->second);
  it->second.blocks.erase(known);
}

void MirrorTable::PoolGone(const PoolIdent& ident) {
  const auto it = pools_.find(ident.worker_id);
  if (it != pools_.end() && it->second.ident.incarnation == ident.incarnation) Erase(it);
}

void MirrorTable::Unlink(Pool* pool, const SealedBlock& block) {
  const auto it = directory_.find(block.hash);
  AS_CHECK(it != directory_.end());
  const auto place = std::find(it->second.begin(), it->second.end(), pool);
  AS_CHECK(place != it->second.end());
  it->second.erase(place);
  if (it->second.empty()) directory_.erase(it);
  --blocks_;
}

void MirrorTable::Erase(PoolMap::iterator it) {
  for (const auto& [index, block] : it->second.blocks) Unlink(&it->second, block);
  pools_.erase(it);
}

std::vector<PrefixMatch> MirrorTable::Lookup(std::span<const Hash128> chain) const {
  std::vector<std::pair<const Pool*, uint32_t>> found;
  for (size_t depth = 0; depth < chain.size(); ++depth) {
    const auto it = directory_.find(chain[depth]);
    if (it == directory_.end()) break;
    bool any = false;
    for (const Pool* pool : it->second) {
      auto match = std::find_if(found.begin(), found.end(), [&](const auto& f) { return f.first == pool; });
      if (depth == 0 && match == found.end()) match = found.emplace(found.end(), pool, 0);
      if (match == found.end() || match->second != depth) continue;
      ++match->second;
      any = true;
    }
    if (!any) break;
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first->ident.worker_id < b.first->ident.worker_id;
  });
  std::vector<PrefixMatch> matches;
  for (const auto& [pool, n] : found) matches.push_back({pool->ident, n});
  return matches;
}

std::vector<std::pair<PoolIdent, SealedBlock>> MirrorTable::All() const {
  std::vector<std::pair<PoolIdent, SealedBlock>> all;
  for (const auto& [id, pool] : pools_) {
    for (const auto& [index, block] : pool.blocks) all.emplace_back(pool.ident, block);
  }
  return all;
}

}  // namespace agentserve::kvstore
