// The kvstore's directory as a PrefixSource. Lookups are local; without a kvstore it knows nothing, and the core's own
// memory of prefixes serves alone.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kvstore/client/directory_mirror.h"
#include "router/core/prefix_memory.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

class KvStorePrefixes final : public PrefixSource {
 public:
  // `workers` is read on the core's thread only, while Match runs; it must outlive this.
  KvStorePrefixes(const std::string& address, const WorkerTable& workers);
  void Match(std::span<const base::Hash128> chain, std::vector<PrefixMatch>* out) const override;
  // The mirror holds the whole directory and follows it. Thread-safe.
  bool connected() const { return mirror_->complete(); }

 private:
  const WorkerTable& workers_;
  const std::unique_ptr<kvstore::DirectoryMirror> mirror_;
};

}  // namespace agentserve::router
