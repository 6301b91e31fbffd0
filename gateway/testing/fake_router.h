// A RouterService that plays scripts, for tests of the gateway without a model.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agentserve/router/v1/router.grpc.pb.h"

namespace agentserve::gateway::testing {

namespace pb = ::agentserve::router::v1;

// One step of a generation.
struct Step {
  int delay_ms = 0;  // before the event; ended early if the call is cancelled
  pb::GenerateResponse event;
  bool hang = false;  // instead of an event: wait until the call is cancelled
};
struct Script {
  std::vector<Step> steps;
  grpc::Status status;  // at the end
};

// ---- Building scripts ----
pb::GenerateResponse Accepted(uint32_t prompt_tokens, uint64_t seed = 1);
pb::GenerateResponse Delta(const std::string& text, uint32_t index = 0);
// With one logprob per token: texts are token, then `top`.
pb::GenerateResponse DeltaWithLogprobs(const std::string& text, float logprob, const std::vector<std::string>& top,
                                       uint32_t index = 0);
pb::GenerateResponse End(common::v1::FinishReason reason, uint32_t tokens, uint32_t index = 0);
pb::GenerateResponse Done(uint32_t prompt_tokens, uint32_t completion_tokens, uint32_t cached_tokens = 0);
// Accepted, one delta per piece, end, done.
Script Say(const std::vector<std::string>& pieces, int delay_ms = 0);
// A status with ErrorInfo and, if retry_ms >= 0, RetryInfo.
grpc::Status DetailedStatus(grpc::StatusCode code, const std::string& message, const std::string& reason,
                            int retry_ms = -1);

// Text of the last user message, or the text prompt.
std::string PromptOf(const pb::GenerateRequest& request);

// Thread-safe.
class FakeRouter final : public pb::RouterService::Service {
 public:
  using Scripter = std::function<Script(const pb::GenerateRequest&)>;
  FakeRouter();
  ~FakeRouter() override;

  // 0 = any free port. Returns the port, 0 if it could not listen.
  int Start(int port = 0);
  void Stop();
  void set_script(Scripter scripter);
  void set_model(const pb::GetModelResponse& model);
  pb::GetModelResponse model() const;

  std::atomic<int> generate_calls{0};
  std::atomic<int> cancelled_calls{0};
  std::atomic<int> running{0};
  pb::GenerateRequest last_request() const;
  std::map<std::string, std::string> last_metadata() const;
  // Calls of /v1/agentserve, as text: "tool TENANT PROGRAM|REQUEST TOOL PHASE", "end TENANT PROGRAM",
  // "declare TENANT PROGRAM CALLS", "explain TENANT REQUEST", "list TENANT PROGRAM LIMIT".
  std::vector<std::string> agent_calls() const;

  grpc::Status Generate(grpc::ServerContext* context, const pb::GenerateRequest* request,
                        grpc::ServerWriter<pb::GenerateResponse>* writer) override;
  grpc::Status GetModel(grpc::ServerContext* context, const pb::GetModelRequest* request,
                        pb::GetModelResponse* response) override;
  // One id per byte of the text; a chat is the texts of its messages.
  grpc::Status Tokenize(grpc::ServerContext* context, const pb::TokenizeRequest* request,
                        pb::TokenizeResponse* response) override;
  // Programs and requests whose name begins with "known" are known.
  grpc::Status ReportTool(grpc::ServerContext* context, const pb::ReportToolRequest* request,
                          pb::ReportToolResponse* response) override;
  grpc::Status EndProgram(grpc::ServerContext* context, const pb::EndProgramRequest* request,
                          pb::EndProgramResponse* response) override;
  grpc::Status DeclareProgram(grpc::ServerContext* context, const pb::DeclareProgramRequest* request,
                              pb::DeclareProgramResponse* response) override;
  grpc::Status Explain(grpc::ServerContext* context, const pb::ExplainRequest* request,
                       pb::ExplainResponse* response) override;
  grpc::Status ListDecisions(grpc::ServerContext* context, const pb::ListDecisionsRequest* request,
                             pb::ListDecisionsResponse* response) override;
  grpc::Status Detokenize(grpc::ServerContext* context, const pb::DetokenizeRequest* request,
                          pb::DetokenizeResponse* response) override;

 private:
  void Note(std::string call);
  bool Sleep(grpc::ServerContext* context, int ms);

  mutable std::mutex mutex_;  // guards all below
  Scripter scripter_;
  pb::GetModelResponse model_;
  pb::GenerateRequest last_request_;
  std::map<std::string, std::string> last_metadata_;
  std::vector<std::string> agent_calls_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> stopping_{false};
};

// Behaviour named in the prompt, for the conformance client: see fake_router.cc.
Script ScriptByPrompt(const pb::GenerateRequest& request, int attempt);

}  // namespace agentserve::gateway::testing
