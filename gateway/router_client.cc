#include "gateway/router_client.h"

namespace agentserve::gateway {
namespace {

// A prompt of a whole body travels in one message; replies are small.
constexpr int kMaxSendBytes = 64 << 20;
constexpr int kMaxReceiveBytes = 8 << 20;

// Larger prompts get a call of their own: in a session they would hold up the others.
constexpr size_t kMaxSessionRequestBytes = 1 << 20;

template <typename Request, typename Response>
class UnaryCall final : public UnaryHandle {
 public:
  void Cancel() override { context.TryCancel(); }

  grpc::ClientContext context;
  Request request;
  Response response;
};

}  // namespace

RouterClient::RouterClient(const std::string& target, int channels) : sessions_(static_cast<size_t>(channels)) {
  for (int i = 0; i < channels; ++i) {
    grpc::ChannelArguments args;
    args.SetInt("agentserve.channel", i);  // distinct arguments give distinct connections
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
    args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    // A restarted router is found again quickly.
    args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
    args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
    args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // retries are decided by the gateway, which knows what was emitted
    args.SetMaxSendMessageSize(kMaxSendBytes);
    args.SetMaxReceiveMessageSize(kMaxReceiveBytes);
    channels_.push_back(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args));
    stubs_.push_back(pb::RouterService::NewStub(channels_.back()));
  }
}

RouterClient::~RouterClient() {
  {
    std::lock_guard lock(sessions_mutex_);
    for (auto& s : sessions_) {
      if (s != nullptr) s->Close();
    }
  }
  session_counter_->WaitIdle(5'000);  // cancelled streams end at once
}

size_t RouterClient::NextChannel() {
  const size_t first = next_.fetch_add(1, std::memory_order_relaxed);
  for (size_t i = 0; i < stubs_.size(); ++i) {
    const size_t at = (first + i) % stubs_.size();
    if (channels_[at]->GetState(true) == GRPC_CHANNEL_READY) return at;
  }
  return first % stubs_.size();
}

bool RouterClient::Connected() {
  bool ready = false;
  for (const auto& channel : channels_) ready |= channel->GetState(true) == GRPC_CHANNEL_READY;
  return ready;
}

std::shared_ptr<GenerateCall> RouterClient::Generate(const pb::GenerateRequest& request, const Metadata& metadata,
                                                     int64_t deadline_ms, std::function<void()> notify) {
  const size_t at = NextChannel();
  if (router_has_sessions_->load() && request.ByteSizeLong() <= kMaxSessionRequestBytes) {
    std::lock_guard lock(sessions_mutex_);
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (sessions_[at] != nullptr) {
        if (auto call = sessions_[at]->Generate(request, notify)) return call;
      }
      sessions_[at] = std::make_shared<RouterSession>(counter_, session_counter_);
      sessions_[at]->Start(stubs_[at].get());
    }
  }
  auto call = std::make_shared<StreamedCall>(counter_, std::move(notify));
  call->Start(stubs_[at].get(), request, metadata, deadline_ms);
  return call;
}

template <typename Request, typename Response, typename Begin>
std::shared_ptr<UnaryHandle> RouterClient::Unary(const Request& request, const Metadata& metadata, int64_t deadline_ms,
                                                 Callback<Response> done, const Begin& begin) {
  auto call = std::make_shared<UnaryCall<Request, Response>>();
  call->request = request;
  PrepareContext(call->context, metadata, deadline_ms);
  counter_->Begin();
  begin(NextStub()->async(), &call->context, &call->request, &call->response,
        [call, counter = counter_, done = std::move(done)](grpc::Status status) {
          done(status, call->response);
          counter->End();
        });
  return call;
}

std::shared_ptr<UnaryHandle> RouterClient::Tokenize(const pb::TokenizeRequest& request, const Metadata& metadata,
                                                    int64_t deadline_ms, Callback<pb::TokenizeResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->Tokenize(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::Detokenize(const pb::DetokenizeRequest& request, const Metadata& metadata,
                                                      int64_t deadline_ms, Callback<pb::DetokenizeResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->Detokenize(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::ReportTool(const pb::ReportToolRequest& request, const Metadata& metadata,
                                                      int64_t deadline_ms, Callback<pb::ReportToolResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->ReportTool(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::EndProgram(const pb::EndProgramRequest& request, const Metadata& metadata,
                                                      int64_t deadline_ms, Callback<pb::EndProgramResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->EndProgram(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::DeclareProgram(const pb::DeclareProgramRequest& request,
                                                          const Metadata& metadata, int64_t deadline_ms,
                                                          Callback<pb::DeclareProgramResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->DeclareProgram(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::Explain(const pb::ExplainRequest& request, const Metadata& metadata,
                                                   int64_t deadline_ms, Callback<pb::ExplainResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->Explain(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::ListDecisions(const pb::ListDecisionsRequest& request,
                                                         const Metadata& metadata, int64_t deadline_ms,
                                                         Callback<pb::ListDecisionsResponse> done) {
  return Unary(request, metadata, deadline_ms, std::move(done),
               [](auto* stub, auto... args) { stub->ListDecisions(args...); });
}

std::shared_ptr<UnaryHandle> RouterClient::GetModel(int64_t deadline_ms, Callback<pb::GetModelResponse> done) {
  auto call = std::make_shared<UnaryCall<pb::GetModelRequest, pb::GetModelResponse>>();
  PrepareContext(call->context, {}, deadline_ms);
  counter_->Begin();
  NextStub()->async()->GetModel(
      &call->context, &call->request, &call->response,
      [call, counter = counter_, sessions = router_has_sessions_, done = std::move(done)](grpc::Status status) {
        if (status.ok()) sessions->store(call->response.sessions());
        done(status, call->response);
        counter->End();
      });
  return call;
}

}  // namespace agentserve::gateway
