// Calls to the router. Callback API throughout: nothing blocks, callbacks run on gRPC threads.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agentserve/router/v1/router.grpc.pb.h"
#include "gateway/generate_call.h"
#include "gateway/router_session.h"

namespace agentserve::gateway {

// A unary call that can be cancelled.
class UnaryHandle {
 public:
  virtual ~UnaryHandle() = default;
  virtual void Cancel() = 0;
};

// Thread-safe.
class RouterClient {
 public:
  RouterClient(const std::string& target, int channels);
  ~RouterClient();

  // `deadline_ms` from now. Through a session if the router has them, which knows the request's own budget only.
  std::shared_ptr<GenerateCall> Generate(const pb::GenerateRequest& request, const Metadata& metadata,
                                         int64_t deadline_ms, std::function<void()> notify);

  template <typename Response>
  using Callback = std::function<void(const grpc::Status&, const Response&)>;
  // Callbacks run once, on a gRPC thread.
  std::shared_ptr<UnaryHandle> Tokenize(const pb::TokenizeRequest& request, const Metadata& metadata,
                                        int64_t deadline_ms, Callback<pb::TokenizeResponse> done);
  std::shared_ptr<UnaryHandle> Detokenize(const pb::DetokenizeRequest& request, const Metadata& metadata,
                                          int64_t deadline_ms, Callback<pb::DetokenizeResponse> done);
  std::shared_ptr<UnaryHandle> ReportTool(const pb::ReportToolRequest& request, const Metadata& metadata,
                                          int64_t deadline_ms, Callback<pb::ReportToolResponse> done);
  std::shared_ptr<UnaryHandle> EndProgram(const pb::EndProgramRequest& request, const Metadata& metadata,
                                          int64_t deadline_ms, Callback<pb::EndProgramResponse> done);
  std::shared_ptr<UnaryHandle> DeclareProgram(const pb::DeclareProgramRequest& request, const Metadata& metadata,
                                              int64_t deadline_ms, Callback<pb::DeclareProgramResponse> done);
  std::shared_ptr<UnaryHandle> Explain(const pb::ExplainRequest& request, const Metadata& metadata, int64_t deadline_ms,
                                       Callback<pb::ExplainResponse> done);
  std::shared_ptr<UnaryHandle> ListDecisions(const pb::ListDecisionsRequest& request, const Metadata& metadata,
                                             int64_t deadline_ms, Callback<pb::ListDecisionsResponse> done);
  std::shared_ptr<UnaryHandle> GetModel(int64_t deadline_ms, Callback<pb::GetModelResponse> done);

  // Starts to connect if idle; true if a connection is up.
  bool Connected();
  // Waits for all calls to end.
  bool WaitIdle(int64_t ms) { return counter_->WaitIdle(ms); }

 private:
  template <typename Request, typename Response, typename Begin>
  std::shared_ptr<UnaryHandle> Unary(const Request& request, const Metadata& metadata, int64_t deadline_ms,
                                     Callback<Response> done, const Begin& begin);
  size_t NextChannel();
  pb::RouterService::Stub* NextStub() { return stubs_[NextChannel()].get(); }

  std::shared_ptr<CallCounter> counter_ = std::make_shared<CallCounter>();
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
  std::vector<std::unique_ptr<pb::RouterService::Stub>> stubs_;
  std::atomic<size_t> next_{0};
  std::shared_ptr<std::atomic<bool>> router_has_sessions_ = std::make_shared<std::atomic<bool>>(false);
  std::shared_ptr<CallCounter> session_counter_ = std::make_shared<CallCounter>();
  std::mutex sessions_mutex_;
  std::vector<std::shared_ptr<RouterSession>> sessions_;  // one a channel, or null; guarded by sessions_mutex_
};

}  // namespace agentserve::gateway
