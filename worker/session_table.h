// Who asked for what: maps the router's (stream, sequence, attempt) to sequence ids of the core and back.
//
// Core ids are minted here and never repeat, so an answer to an old attempt cannot meet a new one. Single-threaded,
// owned by the worker's loop.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/ids.h"

namespace agentserve::worker {

using SessionId = uint64_t;

class SessionTable {
 public:
  // Ended sequences that can still be named (Retain and Prefetch come after the end), as many as the core remembers:
  // 160 KiB.
  static constexpr size_t kMaxRemembered = 4096;

  struct Wire {
    SessionId session = 0;
    uint64_t seq = 0;
    uint32_t attempt = 0;
  };

  // A new core id for a sequence of the router. An earlier attempt of it, if alive, is returned in `replaced` and is to
  // be cancelled; events of it no longer reach the router.
  engine::SeqId Add(const Wire& wire, std::optional<engine::SeqId>* replaced);
  // The live sequence; nothing if unknown or if `attempt` is not the current one.
  std::optional<engine::SeqId> Find(const Wire& wire) const;
  // As Find, also among the last ended ones.
  std::optional<engine::SeqId> FindOrRemembered(const Wire& wire) const;
  // Where events of a sequence go; null: nowhere (stream gone, attempt replaced).
  const Wire* WireOf(engine::SeqId id) const;
  // The sequence ended.
  void Erase(engine::SeqId id);
  // All live sequences of a stream, which is gone; they are to be cancelled, their events go nowhere.
  std::vector<engine::SeqId> DropSession(SessionId session);
  size_t size() const { return by_id_.size(); }

 private:
  using Key = std::pair<SessionId, uint64_t>;
  struct Live {
    engine::SeqId id;
    uint32_t attempt = 0;
  };
  std::map<Key, Live> by_wire_;
  std::map<engine::SeqId, Wire> by_id_;
  using FullKey = std::tuple<SessionId, uint64_t, uint32_t>;
  static FullKey FullKeyOf(const Wire& w) { return {w.session, w.seq, w.attempt}; }
  std::map<FullKey, engine::SeqId> remembered_;
  std::deque<FullKey> remembered_order_;  // oldest first
  uint64_t next_id_ = 1;
};

}  // namespace agentserve::worker
