#include "worker/session_table.h"

namespace agentserve::worker {

using engine::SeqId;

SeqId SessionTable::Add(const Wire& wire, std::optional<SeqId>* replaced) {
  const SeqId id(next_id_++);
  Live& live = by_wire_[{wire.session, wire.seq}];
  replaced->reset();
  if (live.id.value != 0) {
    *replaced = live.id;
    by_id_.erase(live.id);
  }
  live = {id, wire.attempt};
  by_id_[id] = wire;
  return id;
}

std::optional<SeqId> SessionTable::Find(const Wire& wire) const {
  const auto it = by_wire_.find({wire.session, wire.seq});
  if (it == by_wire_.end() || it->second.attempt != wire.attempt) return std::nullopt;
  return it->second.id;
}

std::optional<SeqId> SessionTable::FindOrRemembered(const Wire& wire) const {
  if (const auto live = Find(wire)) return live;
  const auto it = remembered_.find(FullKeyOf(wire));
  if (it == remembered_.end()) return std::nullopt;
  return it->second;
}

const SessionTable::Wire* SessionTable::WireOf(SeqId id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &it->second;
}

void SessionTable::Erase(SeqId id) {
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return;
  by_wire_.erase({it->second.session, it->second.seq});
  const FullKey key = FullKeyOf(it->second);
  if (remembered_.insert_or_assign(key, id).second) remembered_order_.push_back(key);
  if (remembered_order_.size() > kMaxRemembered) {
    remembered_.erase(remembered_order_.front());
    remembered_order_.pop_front();
  }
  by_id_.erase(it);
}

std::vector<SeqId> SessionTable::DropSession(SessionId session) {
  std::vector<SeqId> dropped;
  const auto first = by_wire_.lower_bound({session, 0});
  auto last = first;
  for (; last != by_wire_.end() && last->first.first == session; ++last) {
    dropped.push_back(last->second.id);
    by_id_.erase(last->second.id);
  }
  by_wire_.erase(first, last);
  return dropped;
}

}  // namespace agentserve::worker
