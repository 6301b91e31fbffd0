// A worker's link to the kvstore: registers its pool, keeps the lease and publishes sealed and dropped blocks, all in a
// background thread. Nothing here ever blocks or fails the caller: without a kvstore the worker just is not found by
// others.
//
//   auto client = KvStoreClient::Start({.address = "127.0.0.1:7070", .pool = spec});
//   client->Seal({hash, ref});      // on every seal of a named block
//   client->Drop(index, epoch);     // before the block is overwritten
//
// The client keeps what is sealed at present (at most one entry per block of the pool), so after a restart of the
// kvstore it re-registers and republishes everything by itself.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "kvstore/core/types.h"

namespace agentserve::kvstore {

struct KvStoreClientOptions {
  std::string address;  // host:port of the kvstore
  PoolSpec pool;
  // Changes are gathered for so long before they are sent: others learn of a block that much later, and a step does
  // not cost a call.
  int flush_ms = 10;
  // Limit of one call.
  int rpc_timeout_ms = 2000;
  // Wait after a failed attempt: doubles from least to most, with jitter.
  int backoff_least_ms = 50;
  int backoff_most_ms = 2000;
  // Called from the background thread when the link goes up or down. Optional.
  std::function<void(bool connected)> on_state;
};

struct KvStoreClientStats {
  bool connected = false;
  uint64_t registrations = 0;  // 1 = never lost
  uint64_t published = 0;      // changes acknowledged
  uint64_t failures = 0;       // calls that failed
  uint64_t pending = 0;        // changes not yet acknowledged
  uint64_t sealed = 0;         // blocks sealed at present
};

// Thread-safe.
class KvStoreClient {
 public:
  static std::unique_ptr<KvStoreClient> Start(const KvStoreClientOptions& options);
  // Releases the pool at the kvstore if it is reachable at once.
  ~KvStoreClient();

  // A block became readable under its hash. Replaces what is known of that block unless that is newer.
  void Seal(const SealedBlock& block);
  // The block of that epoch will be overwritten or is not found any more.
  void Drop(uint32_t index, uint32_t epoch);
  KvStoreClientStats stats() const;
  // Waits until everything so far is acknowledged; false after `timeout_ms`. For tests and drains.
  bool Flush(int timeout_ms);

 private:
  // What is not acknowledged of a block: its newest seal, or the newest dropped epoch.
  struct Pending {
    std::optional<SealedBlock> sealed;
    uint32_t dropped_epoch = 0;
    uint32_t epoch() const { return sealed ? sealed->ref.epoch : dropped_epoch; }
  };
  using PendingMap = std::map<uint32_t, Pending>;  // by block index: never more than the pool has blocks
  class Link;                                      // gRPC side, used by the thread only

  explicit KvStoreClient(const KvStoreClientOptions& options);
  void Run();
  // One connected period: register, republish, then flush and renew until something fails.
  void RunConnected(Link* link);
  absl::Status FlushPending(Link* link);
  // Waits `ms` or until the client is stopped; false = stopped.
  bool Sleep(int64_t ms);
  void SetConnected(bool connected);
  void AddPending(uint32_t index, Pending pending);  // requires mu_

  const KvStoreClientOptions options_;
  mutable std::mutex mu_;
  std::condition_variable wake_;     // with mu_: the thread has something to do
  std::condition_variable flushed_;  // with mu_: something was acknowledged
  // Guarded by mu_:
  std::map<uint32_t, SealedBlock> live_;
  PendingMap pending_;
  PendingMap in_flight_;
  bool stopping_ = false;
  KvStoreClientStats stats_;

  std::unique_ptr<Link> link_;
  std::thread thread_;
};

}  // namespace agentserve::kvstore
