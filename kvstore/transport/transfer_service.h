// Owner side of the stream path: agentserve.kvstore.v1.KvTransferService over a KvPool. Register it on the worker's
// server.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "agentserve/kvstore/v1/kvstore.grpc.pb.h"
#include "kvstore/transport/kv_pool.h"

namespace agentserve::kvstore {

// Most bytes in one ReadResponse: well under the 4 MiB default receive limit of gRPC, large enough to amortise a
// message.
inline constexpr size_t kMaxChunkBytes = 1 << 20;
// Most blocks in one ReadRequest (8 GiB of 1B-shaped blocks); a longer list is split by the reader.
inline constexpr int kMaxReadBlocks = 16384;
// Most WatchProgress streams: one per prompt in flight to this worker's streaming peers.
inline constexpr size_t kMaxProgressWatches = 1024;

// Callback service; never blocks gRPC's threads. Thread-safe. `pool` must outlive the service. Call Stop() before the
// server is shut down, so that progress streams end.
class TransferService final : public v1::KvTransferService::CallbackService {
 public:
  explicit TransferService(KvPool* pool);
  ~TransferService() override;
  // Ends all progress streams with UNAVAILABLE and refuses new ones. Idempotent.
  void Stop();

  grpc::ServerWriteReactor<v1::ReadResponse>* Read(grpc::CallbackServerContext* context,
                                                   const v1::ReadRequest* request) override;
  grpc::ServerWriteReactor<v1::WatchProgressResponse>* WatchProgress(grpc::CallbackServerContext* context,
                                                                     const v1::WatchProgressRequest* request) override;

  uint64_t bytes_sent() const { return bytes_sent_.load(std::memory_order_relaxed); }

 private:
  class ReadReactor;
  class WatchReactor;
  friend class ReadReactor;
  friend class WatchReactor;
  void Pump();

  KvPool* const pool_;
  std::atomic<uint64_t> bytes_sent_{0};
  std::mutex mu_;  // guards below
  bool stopped_ = false;
  std::vector<std::shared_ptr<WatchReactor>> watches_;
  std::condition_variable idle_;  // signalled when a watch ends
  std::thread pump_;
};

}  // namespace agentserve::kvstore
