// agentserve.kvstore.v1.KvStoreService: wire to core and back. The core runs under one mutex; every call is short.
#pragma once

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "agentserve/kvstore/v1/kvstore.grpc.pb.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "kvstore/core/kv_store_core.h"

namespace agentserve::kvstore {

struct ServiceOptions {
  CoreLimits limits;
  uint64_t incarnation = 0;  // random per process start
  // Routers and dashboards of a cell; each costs one stream and at most one message in flight.
  size_t max_watchers = 64;
  // Blocks in one Watch message: 60 bytes each.
  size_t watch_batch = 1024;
};

// Callback service. Thread-safe. `clock` and `metrics` must outlive it. Call Stop() before the server shuts down.
class KvStoreServiceImpl final : public v1::KvStoreService::CallbackService {
 public:
  KvStoreServiceImpl(const ServiceOptions& options, const base::Clock* clock, base::Metrics* metrics);
  ~KvStoreServiceImpl() override;
  // Ends all watches with UNAVAILABLE and refuses new ones. Idempotent.
  void Stop();

  grpc::ServerUnaryReactor* RegisterPool(grpc::CallbackServerContext* context, const v1::RegisterPoolRequest* request,
                                         v1::RegisterPoolResponse* response) override;
  grpc::ServerUnaryReactor* Renew(grpc::CallbackServerContext* context, const v1::RenewRequest* request,
                                  v1::RenewResponse* response) override;
  grpc::ServerUnaryReactor* Release(grpc::CallbackServerContext* context, const v1::ReleaseRequest* request,
                                    v1::ReleaseResponse* response) override;
  grpc::ServerReadReactor<v1::PublishRequest>* Publish(grpc::CallbackServerContext* context,
                                                       v1::PublishResponse* response) override;
  grpc::ServerUnaryReactor* Locate(grpc::CallbackServerContext* context, const v1::LocateRequest* request,
                                   v1::LocateResponse* response) override;
  grpc::ServerUnaryReactor* OpenTicket(grpc::CallbackServerContext* context, const v1::OpenTicketRequest* request,
                                       v1::OpenTicketResponse* response) override;
  grpc::ServerUnaryReactor* CloseTicket(grpc::CallbackServerContext* context, const v1::CloseTicketRequest* request,
                                        v1::CloseTicketResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(grpc::CallbackServerContext* context,
                                                     const v1::WatchRequest* request) override;
  grpc::ServerUnaryReactor* Audit(grpc::CallbackServerContext* context, const v1::AuditRequest* request,
                                  v1::AuditResponse* response) override;

 private:
  class PublishReactor;
  class WatchReactor;
  friend class PublishReactor;
  friend class WatchReactor;

  // Runs `body(core, now) -> absl::Status` under the lock and answers the call.
  template <typename Body>
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context, const char* method, const Body& body);
  void Count(const char* method, const absl::Status& status);
  // Tells the loop that the log may have grown. Requires core_mu_.
  void LogMayHaveGrown();
  void Loop();
  void ExportMetrics();

  const ServiceOptions options_;
  const base::Clock* const clock_;
  base::Metrics* const metrics_;

  std::mutex core_mu_;
  KvStoreCore core_;                 // guarded by core_mu_
  std::condition_variable changed_;  // with core_mu_: the log grew, or the service stops
  uint64_t announced_ = 0;           // guarded by core_mu_: last sequence that watchers were poked for
  bool stopped_ = false;             // guarded by core_mu_
  CoreCounters exported_;            // loop thread only

  // Taken after core_mu_ is released, never while it is held, and the other way round.
  std::mutex watch_mu_;
  std::vector<std::shared_ptr<WatchReactor>> watches_;  // guarded by watch_mu_
  bool refuse_watches_ = false;                         // guarded by watch_mu_
  std::condition_variable watch_ended_;                 // with watch_mu_

  std::thread loop_;
};

}  // namespace agentserve::kvstore
