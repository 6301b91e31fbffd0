#include "worker/directory_link.h"

#include "kvstore/convert.h"

namespace agentserve::worker {

void DirectoryLink::Start(const std::string& address, const agentserve::common::v1::KvEndpoint& endpoint) {
  if (address.empty()) return;
  kvstore::KvStoreClientOptions options;
  options.address = address;
  options.pool = kvstore::SpecFromProto(endpoint);
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

}  // namespace agentserve::worker
