// What the block manager's core must do, written the obvious way; for its property test and its fuzzer.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/strings.h"
#include "kvstore/core/ticket_table.h"
#include "kvstore/core/types.h"

namespace agentserve::kvstore {

// The obvious implementation: flat maps, searched from end to end.
class Model {
 public:
  explicit Model(const CoreLimits& limits) : limits_(limits) {}

  absl::StatusCode Register(const PoolSpec& spec, TimeNs now) {
    if (retired_.contains({spec.worker_id, spec.incarnation})) return absl::StatusCode::kFailedPrecondition;
    auto it = pools_.find(spec.worker_id);
    if (it != pools_.end() && it->second.incarnation != spec.incarnation) {
      retired_.insert({spec.worker_id, it->second.incarnation});
      Drop(spec.worker_id);
      it = pools_.end();
    }
    if (it == pools_.end() && pools_.size() >= limits_.max_pools) return absl::StatusCode::kResourceExhausted;
    pools_[spec.worker_id].incarnation = spec.incarnation;
    pools_[spec.worker_id].expires = now + limits_.lease;
    return absl::StatusCode::kOk;
  }
  bool Live(const PoolIdent& p) const {
    const auto it = pools_.find(p.worker_id);
    return it != pools_.end() && it->second.incarnation == p.incarnation;
  }
  void Extend(const PoolIdent& p, TimeNs now) { pools_[p.worker_id].expires = now + limits_.lease; }
  void Release(const PoolIdent& p) {
    if (Live(p)) Drop(p.worker_id);
  }
  void Seal(const PoolIdent& p, const SealedBlock& b) {
    auto& blocks = pools_[p.worker_id].blocks;
    const auto it = blocks.find(b.ref.index);
    if (it == blocks.end() || it->second.first.ref.epoch < b.ref.epoch) blocks[b.ref.index] = {b, true};
  }
  void DropBlock(const PoolIdent& p, const BlockRef& b) {
    auto& blocks = pools_[p.worker_id].blocks;
    const auto it = blocks.find(b.index);
    if (it == blocks.end() || it->second.first.ref.epoch > b.epoch) return;
    it->second.second = false;
    it->second.first.ref.epoch = b.epoch;
  }
  void Tick(TimeNs now) {
    for (auto it = tickets_.begin(); it != tickets_.end();) {
      it = it->second.second <= now ? tickets_.erase(it) : std::next(it);
    }
    std::vector<std::string> over;
    for (const auto& [id, p] : pools_) {
      if (p.expires <= now) over.push_back(id);
    }
    for (const auto& id : over) Drop(id);
  }
  // Longest prefix per worker.
  std::map<std::string, std::vector<BlockRef>> Locate(const std::vector<Hash128>& chain) const {
    std::map<std::string, std::vector<BlockRef>> found;
    for (const auto& [id, pool] : pools_) {
      for (const Hash128& hash : chain) {
        const BlockRef* hit = nullptr;
        for (const auto& [index, entry] : pool.blocks) {
          if (entry.second && entry.first.hash == hash) hit = &entry.first.ref;
        }
        if (hit == nullptr) break;
        found[id].push_back(*hit);
      }
    }
    return found;
  }
  void Open(const TicketRequest& r, const Hash128& id, TimeNs expires) { tickets_[id] = {r, expires}; }
  void Close(const Hash128& id) { tickets_.erase(id); }
  size_t tickets() const { return tickets_.size(); }
  // Everything live, as "worker/incarnation/index/epoch/hash".
  std::set<std::string> Truth() const {
    std::set<std::string> all;
    for (const auto& [id, pool] : pools_) {
      for (const auto& [index, e] : pool.blocks) {
        if (e.second) all.insert(Line(id, pool.incarnation, e.first));
      }
    }
    return all;
  }
  static std::string Line(const std::string& id, uint64_t incarnation, const SealedBlock& b) {
    return base::StrCat(id, "/", incarnation, "/", b.ref.index, "/", b.ref.epoch, "/", b.hash.Hex());
  }

 private:
  struct Pool {
    uint64_t incarnation = 0;
    TimeNs expires = 0;
    std::map<uint32_t, std::pair<SealedBlock, bool>> blocks;
  };
  void Drop(const std::string& id) {
    for (auto it = tickets_.begin(); it != tickets_.end();) {
      it = it->second.first.owner.worker_id == id ? tickets_.erase(it) : std::next(it);
    }
    pools_.erase(id);
  }
  const CoreLimits limits_;
  std::map<std::string, Pool> pools_;
  std::set<std::pair<std::string, uint64_t>> retired_;
  std::map<Hash128, std::pair<TicketRequest, TimeNs>> tickets_;
};

}  // namespace agentserve::kvstore
