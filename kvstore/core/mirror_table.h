// What a follower of the change log knows: which worker holds which blocks of which chains. Pure, single-threaded.
//
// Applying changes is idempotent and ordered by epoch, so that a snapshot taken in parts followed by the log from
// before its first part ends with the truth.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kvstore/core/types.h"

namespace agentserve::kvstore {

// How much of a chain one worker holds.
struct PrefixMatch {
  PoolIdent pool;
  uint32_t blocks = 0;  // leading blocks of the chain, without a gap; at least 1
};

class MirrorTable {
 public:
  // More blocks than `max_blocks` are not stored (lookups then find less).
  explicit MirrorTable(uint64_t max_blocks = CoreLimits{}.max_blocks) : max_blocks_(max_blocks) {}

  void Clear();
  // Of a pool seen under another incarnation, that one is dropped first.
  void Seal(const PoolIdent& pool, const SealedBlock& block);
  void Drop(const PoolIdent& pool, const BlockRef& ref);
  // Ignored if the pool is known under another incarnation.
  void PoolGone(const PoolIdent& pool);

  // Workers that hold the first block of `chain`, longest match first, then by worker id. O(matched blocks).
  std::vector<PrefixMatch> Lookup(std::span<const Hash128> chain) const;

  uint64_t blocks() const { return blocks_; }
  size_t pools() const { return pools_.size(); }
  // All blocks, ordered by worker and index; for tests and audits.
  std::vector<std::pair<PoolIdent, SealedBlock>> All() const;

 private:
  struct Pool {
    PoolIdent ident;
    std::map<uint32_t, SealedBlock> blocks;
  };
  using PoolMap = std::map<std::string, Pool>;
  void Unlink(Pool* pool, const SealedBlock& block);
  void Erase(PoolMap::iterator it);

  const uint64_t max_blocks_;
  PoolMap pools_;  // node-based: Pool addresses are stable
  std::unordered_map<Hash128, std::vector<Pool*>, base::Hash128Hasher> directory_;  // lookups only
  uint64_t blocks_ = 0;
};

}  // namespace agentserve::kvstore
