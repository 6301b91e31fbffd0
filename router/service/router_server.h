// A whole router in one object: loads the model's text side, serves, drains. Used by main and by tests.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "router/service/config.h"
#include "router/service/services.h"

namespace agentserve::router {

class RouterServer {
 public:
  // Errors: what EdgeModel::Load says (model), or UNAVAILABLE (a port is in use).
  static absl::StatusOr<std::unique_ptr<RouterServer>> Start(ServiceConfig config);
  ~RouterServer();

  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }
  const EdgeModel& model() const { return *model_; }
  Shell& shell() { return *shell_; }
  RouterMetrics& metrics() { return *metrics_; }
  // Health NOT_SERVING, no new requests, wait for the running ones, stop. Once.
  void Shutdown(int64_t drain_ms);

 private:
  explicit RouterServer(ServiceConfig config) : config_(std::move(config)) {}
  absl::Status Listen();
  void SetHealth(bool ready);

  const ServiceConfig config_;
  std::unique_ptr<EdgeModel> model_;
  std::unique_ptr<RouterMetrics> metrics_;
  std::unique_ptr<EdgePool> pool_;
  std::unique_ptr<Shell> shell_;
  std::unique_ptr<RouterServiceImpl> router_service_;
  std::unique_ptr<ClusterServiceImpl> cluster_service_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> draining_{false};
  int port_ = 0, metrics_port_ = -1;
};

}  // namespace agentserve::router
