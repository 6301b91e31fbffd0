// Hands the pool's read-only descriptor, and that of its blocks if they are on a device, to peers over a unix socket
// (docs/kv_block_format.md section 6).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "base/unix_fd.h"
#include "kvstore/transport/kv_pool.h"

namespace agentserve::kvstore {

struct PoolExporterOptions {
  std::string socket_path;  // at most 107 bytes; a stale file is replaced, ours is removed at the end
  // Peers connected at once: one per decode worker of the host; each costs one descriptor here.
  int max_peers = 256;
};

// One background thread. Thread-safe. `pool` must outlive the exporter.
class PoolExporter {
 public:
  static absl::StatusOr<std::unique_ptr<PoolExporter>> Start(const KvPool* pool, const PoolExporterOptions& options);
  ~PoolExporter();

  const std::string& socket_path() const { return options_.socket_path; }
  int peers() const { return peers_.load(std::memory_order_relaxed); }
  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  PoolExporter(const KvPool* pool, const PoolExporterOptions& options) : pool_(pool), options_(options) {}
  void Run();
  base::UniqueFd AcceptOne();

  const KvPool* const pool_;
  const PoolExporterOptions options_;
  base::UniqueFd listener_, stop_event_, read_only_;
  base::UniqueFd blocks_;  // of device memory
  std::atomic<int> peers_{0};
  std::atomic<uint64_t> refused_{0};
  std::thread thread_;
};

}  // namespace agentserve::kvstore
