#include "decode_worker/wire.h"

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

}  // namespace agentserve::decode_worker
