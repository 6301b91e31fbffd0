#include "router/service/router_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <mutex>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::router {

absl::StatusOr<std::unique_ptr<RouterServer>> RouterServer::Start(ServiceConfig config) {
  std::unique_ptr<RouterServer> r(new RouterServer(std::move(config)));
  AS_ASSIGN_OR_RETURN(r->model_, EdgeModel::Load(r->config_.model_dir, r->config_.model_id, r->config_.chat_date));
  const_cast<ServiceConfig&>(r->config_).core.end_tokens = r->model_->card.eos_token_ids;
  AS_RETURN_IF_ERROR(FindPolicy(r->config_.core.policy).status());
  r->metrics_ = std::make_unique<RouterMetrics>(r->model_->model_id);
  r->pool_ = std::make_unique<EdgePool>(r->config_.edge_threads, r->config_.edge_queue, r->config_.edge_queue_bytes);
  RouterServer* self = r.get();
  r->shell_ =
      std::make_unique<Shell>(r->config_, *r->model_, *r->metrics_, [self](bool ready) { self->SetHealth(ready); });
  const ServiceParts parts{r->config_, *r->model_, *r->metrics_, *r->shell_, *r->pool_};
  r->router_service_ = std::make_unique<RouterServiceImpl>(parts);
  r->cluster_service_ = std::make_unique<ClusterServiceImpl>(*r->shell_);
  AS_RETURN_IF_ERROR(r->Listen());
  r->SetHealth(false);
  r->shell_->Start();
  return r;
}

absl::Status RouterServer::Listen() {
  if (config_.metrics_port >= 0) {
    AS_ASSIGN_OR_RETURN(metrics_port_, metrics_->registry().Listen(config_.host, config_.metrics_port));
  }
  grpc::EnableDefaultHealthCheckService(true);
  static std::once_flag reflection;
  std::call_once(reflection, [] { grpc::reflection::InitProtoReflectionServerBuilderPlugin(); });
  grpc::ServerBuilder builder;
  builder.AddListeningPort(base::StrCat(config_.host, ":", config_.port), grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(router_service_.get());
  builder.RegisterService(cluster_service_.get());
  builder.SetMaxReceiveMessageSize(config_.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Dead clients are noticed, so that their requests free their blocks.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Two routers on one port would split the workers' heartbeats.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(base::StrCat("cannot listen on ", config_.host, ":", config_.port,
                                               "; is the port in use? choose another --port"));
  }
  return absl::OkStatus();
}

void RouterServer::SetHealth(bool ready) {
  if (server_ == nullptr) return;
  auto* health = server_->GetHealthCheckService();
  if (health == nullptr) return;
  const bool serving = ready && !draining_;
  for (const char* name : {"", "agentserve.router.v1.RouterService"}) health->SetServingStatus(name, serving);
  // Workers may join whenever the process runs.
  health->SetServingStatus("agentserve.router.v1.ClusterService", !draining_);
}

void RouterServer::Shutdown(int64_t drain_ms) {
  draining_ = true;
  SetHealth(false);
  shell_->Shutdown(drain_ms);
  // All requests have ended; their statuses need a moment to leave, idle connections need none.
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  server_->Wait();
  pool_->Stop();
}

RouterServer::~RouterServer() {
  if (!draining_ && server_ != nullptr) Shutdown(0);
  if (pool_ != nullptr) pool_->Stop();
  shell_.reset();
}

}  // namespace agentserve::router
