// A router's copy of the kvstore's directory, kept current by its Watch stream in a background thread.
//
// Lookups are local and never wait for the network. While the kvstore is away the mirror is empty: placement gets
// worse, nothing else.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "agentserve/kvstore/v1/kvstore.grpc.pb.h"
#include "kvstore/core/mirror_table.h"

namespace grpc {
class ClientContext;
}

namespace agentserve::kvstore {

struct DirectoryMirrorOptions {
  std::string address;  // host:port of the kvstore
  int backoff_least_ms = 50;
  int backoff_most_ms = 2000;
  // Called from the background thread when the mirror becomes complete or empty. Optional.
  std::function<void(bool complete)> on_state;
};

struct DirectoryMirrorStats {
  bool complete = false;  // the snapshot is in and the stream runs
  uint64_t sequence = 0;
  uint64_t blocks = 0;
  uint64_t pools = 0;
  uint64_t snapshots = 0;  // times it started over
};

// Thread-safe.
class DirectoryMirror {
 public:
  static std::unique_ptr<DirectoryMirror> Start(const DirectoryMirrorOptions& options);
  ~DirectoryMirror();

  // Workers that hold the first block of `chain`, longest match first, then by worker id.
  std::vector<PrefixMatch> Lookup(std::span<const Hash128> chain) const;
  bool complete() const { return stats().complete; }
  DirectoryMirrorStats stats() const;
  // Waits until the mirror is complete and has `sequence`; false after `timeout_ms`. For tests.
  bool WaitFor(uint64_t sequence, int timeout_ms);

 private:
  explicit DirectoryMirror(const DirectoryMirrorOptions& options) : options_(options) {}
  void Run();
  // Follows one stream until it ends.
  absl::Status Follow(v1::KvStoreService::Stub* stub);
  void Apply(const v1::WatchResponse& message);
  void Empty();

  const DirectoryMirrorOptions options_;

  mutable std::shared_mutex table_mu_;
  MirrorTable table_;                    // guarded by table_mu_
  DirectoryMirrorStats stats_;           // guarded by table_mu_
  std::condition_variable_any applied_;  // with table_mu_

  std::mutex run_mu_;  // guards below; never held together with table_mu_
  std::condition_variable wake_;
  bool stopping_ = false;
  grpc::ClientContext* context_ = nullptr;

  std::thread thread_;
};

}  // namespace agentserve::kvstore
