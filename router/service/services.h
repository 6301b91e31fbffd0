// The gRPC services: validate, convert, hand to the loop. Callback API; nothing here blocks.
#pragma once

#include <grpcpp/grpcpp.h>

#include "agentserve/router/v1/cluster.grpc.pb.h"
#include "agentserve/router/v1/router.grpc.pb.h"
#include "router/service/config.h"
#include "router/service/edge_model.h"
#include "router/service/edge_pool.h"
#include "router/service/shell.h"

namespace agentserve::router {

// What the services work with; all outlive the server.
struct ServiceParts {
  const ServiceConfig& config;
  const EdgeModel& model;
  RouterMetrics& metrics;
  Shell& shell;
  EdgePool& pool;
};

class RouterServiceImpl final : public v1::RouterService::CallbackService {
 public:
  explicit RouterServiceImpl(ServiceParts parts) : p_(parts) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override;
  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* Session(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context, const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override;
  grpc::ServerUnaryReactor* ReportTool(grpc::CallbackServerContext* context, const v1::ReportToolRequest* request,
                                       v1::ReportToolResponse* response) override;
  grpc::ServerUnaryReactor* EndProgram(grpc::CallbackServerContext* context, const v1::EndProgramRequest* request,
                                       v1::EndProgramResponse* response) override;
  grpc::ServerUnaryReactor* DeclareProgram(grpc::CallbackServerContext* context,
                                           const v1::DeclareProgramRequest* request,
                                           v1::DeclareProgramResponse* response) override;
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context, const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override;
  grpc::ServerUnaryReactor* ListDecisions(grpc::CallbackServerContext* context, const v1::ListDecisionsRequest* request,
                                          v1::ListDecisionsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchClusterResponse>* WatchCluster(grpc::CallbackServerContext* context,
                                                                   const v1::WatchClusterRequest* request) override;

 private:
  ServiceParts p_;
  std::atomic<uint32_t> watchers_{0};
};

class ClusterServiceImpl final : public v1::ClusterService::CallbackService {
 public:
  explicit ClusterServiceImpl(Shell& shell) : shell_(shell) {}
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest* request,
                                     v1::RegisterResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  Shell& shell_;
};

}  // namespace agentserve::router
