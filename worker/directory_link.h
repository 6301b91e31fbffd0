// Tells the kvstore, in the background, which named blocks this worker holds. Never blocks a step; without a kvstore,
// or when it dies, the worker just is not found by others.
#pragma once

#include <memory>
#include <string>

#include "agentserve/common/v1/common.pb.h"
#include "kvstore/client/kv_store_client.h"
#include "worker/run_loop.h"

namespace agentserve::worker {

// Start before the loop runs; OnBlockChanges comes on the loop thread.
class DirectoryLink final : public BlockListener {
 public:
  // `address`: host:port of the kvstore; empty = publish nothing.
  void Start(const std::string& address, const agentserve::common::v1::KvEndpoint& endpoint);
  void OnBlockChanges(const std::vector<engine::BlockChange>& changes) override;
  void OnHostChanges(const std::vector<engine::HostTier::Change>& changes) override;
  // Null if not started. For tests.
  kvstore::KvStoreClient* client() { return client_.get(); }

 private:
  uint32_t pool_blocks_ = 0;  // slots of host memory follow them in the directory
  std::unique_ptr<kvstore::KvStoreClient> client_;
};

}  // namespace agentserve::worker
