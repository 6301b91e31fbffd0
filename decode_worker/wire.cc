#include "decode_worker/wire.h"

#include <algorithm>
#include <cmath>

#include "worker/convert.h"

namespace agentserve::decode_worker {

RemoteKv FromWire(const agentserve::common::v1::KvHandle& handle) {
  RemoteKv kv;
  kv.worker_id = handle.worker_id();
  kv.incarnation = handle.incarnation();
  kv.progress_slot = handle.progress_slot();
  kv.progress_tag = handle.progress_tag();
  kv.blocks.reserve(static_cast<size_t>(handle.blocks_size()));
  for (const auto& b : handle.blocks()) kv.blocks.push_back({b.index(), b.epoch(), b.tokens(), b.digest()});
  return kv;
}

engine::KvTiers::Keep FromWire(const agentserve::decode::v1::Retain& retain) {
  engine::KvTiers::Keep keep;
  if (retain.where() == agentserve::decode::v1::KEEP_WHERE_HOST) keep.where = engine::KeepWhere::kHost;
  if (retain.where() == agentserve::decode::v1::KEEP_WHERE_DROP) keep.where = engine::KeepWhere::kDrop;
  keep.ttl = worker::BudgetNs(retain.ttl_ms());
  const float worth = retain.has_worth() && !std::isnan(retain.worth()) ? retain.worth() : 1;
  keep.worth = static_cast<uint32_t>(std::clamp(worth, 1.f / 64, 64.f) * engine::BlockPool::kBaseWorth);
  return keep;
}

}  // namespace agentserve::decode_worker
