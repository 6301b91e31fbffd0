#include "worker/directory_link.h"

#include "kvstore/convert.h"

namespace agentserve::worker {

void DirectoryLink::Start(const std::string& address, const agentserve::common::v1::KvEndpoint& endpoint) {
  if (address.empty()) return;
  kvstore::KvStoreClientOptions options;
  options.address = address;
  options.pool = kvstore::SpecFromProto(endpoint);
  pool_blocks_ = options.pool.num_blocks;
  client_ = kvstore::KvStoreClient::Start(options);
}

void DirectoryLink::OnBlockChanges(const std::vector<engine::BlockChange>& changes) {
  if (!client_) return;
  for (const engine::BlockChange& c : changes) {
    if (c.kind == engine::BlockChange::Kind::kSealed && !c.hash.zero()) {
      client_->Seal({c.hash, {c.block.value, c.epoch.value, c.tokens, c.digest}});
    }
    if (c.kind == engine::BlockChange::Kind::kDropped) client_->Drop(c.block.value, c.epoch.value);
  }
}

void DirectoryLink::OnHostChanges(const std::vector<engine::HostTier::Change>& changes) {
  if (!client_) return;
  for (const engine::HostTier::Change& c : changes) {
    const uint32_t index = pool_blocks_ + c.slot.value;
    if (c.stored) client_->Seal({c.block.hash, {index, c.epoch.value, c.block.tokens, c.block.digest}});
    if (!c.stored) client_->Drop(index, c.epoch.value);
  }
}

}  // namespace agentserve::worker
