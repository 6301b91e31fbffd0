#include "gateway/router_client.h"

#include <chrono>

namespace agentserve::gateway {
namespace {

// A prompt of a whole body travels in one message; replies are small.
constexpr int kMaxSendBytes = 64 << 20;
constexpr int kMaxReceiveBytes = 8 << 20;

void Prepare(grpc::ClientContext& context, const Metadata& metadata, int64_t deadline_ms) {
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
}

template <typename Request, typename Response>
class UnaryCall final : public UnaryHandle {
 public:
  void Cancel() override { context.TryCancel(); }

  grpc::ClientContext context;
  Request request;
  Response response;
};

}  // namespace

void CallCounter::Begin() {
  std::lock_guard lock(mutex_);
  ++open_;
}

void CallCounter::End() {
  std::lock_guard lock(mutex_);
  if (--open_ == 0) idle_.notify_all();
}

bool CallCounter::WaitIdle(int64_t ms) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return open_ == 0; });
}

void GenerateCall::Start(pb::RouterService::Stub* stub, const pb::GenerateRequest& request, const Metadata& metadata,
                         int64_t deadline_ms, std::function<void()> notify) {
  self_ = shared_from_this();
  counter_->Begin();
  notify_ = std::move(notify);
  request_ = request;
  Prepare(context_, metadata, deadline_ms);
  stub->async()->Generate(&context_, &request_, this);
  AddHold();  // while reading is paused nothing else keeps the call open
  StartRead(&incoming_);
  StartCall();
}

void GenerateCall::OnReadDone(bool ok) {
  std::function<void()> notify;
  if (!ok) {
    {
      std::lock_guard lock(mutex_);
      inbox_.read_ended = true;
      if (!std::exchange(notified_, true)) notify = notify_;
    }
    if (notify) notify();
    return RemoveHold();
  }
  bool read_on = true;
  {
    std::lock_guard lock(mutex_);
    if (!cancelled_) {
      inbox_.events.push_back(std::move(incoming_));
      if (!notified_) {
        notified_ = true;
        notify = notify_;
      }
      paused_ = inbox_.events.size() >= kMaxInbox;
      read_on = !paused_;
    }
    incoming_.Clear();
  }
  if (notify) notify();
  if (read_on) StartRead(&incoming_);
}

void GenerateCall::OnDone(const grpc::Status& status) {
  std::function<void()> notify;
  {
    std::lock_guard lock(mutex_);
    inbox_.status = status;
    if (!notified_ && !cancelled_) notify = notify_;
    notified_ = true;
    notify_ = nullptr;
  }
  if (notify) notify();
  counter_->End();
  self_.reset();  // may delete this
}

void GenerateCall::Cancel() {
  bool resume = false;
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return;
    cancelled_ = true;
    notify_ = nullptr;
    inbox_.events.clear();
    resume = std::exchange(paused_, false);
  }
  context_.TryCancel();
  if (resume) StartRead(&incoming_);  // runs into the end of the call
}

GenerateCall::Batch GenerateCall::Take() {
  Batch out;
  bool resume = false;
  {
    std::lock_guard lock(mutex_);
    std::swap(out, inbox_);
    notified_ = false;
    resume = std::exchange(paused_, false);
  }
  if (resume) StartRead(&incoming_);
  return out;
}

RouterClient::RouterClient(const std::string& target, int channels) {
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

RouterClient::~RouterClient() = default;

pb::RouterService::Stub* RouterClient::NextStub() {
  const size_t first = next_.fetch_add(1, std::memory_order_relaxed);
  for (size_t i = 0; i < stubs_.size(); ++i) {
    const size_t at = (first + i) % stubs_.size();
    if (channels_[at]->GetState(true) == GRPC_CHANNEL_READY) return stubs_[at].get();
  }
  return stubs_[first % stubs_.size()].get();
}

bool RouterClient::Connected() {
  bool ready = false;
  for (const auto& channel : channels_) ready |= channel->GetState(true) == GRPC_CHANNEL_READY;
  return ready;
}

std::shared_ptr<GenerateCall> RouterClient::Generate(const pb::GenerateRequest& request, const Metadata& metadata,
                                                     int64_t deadline_ms, std::function<void()> notify) {
  auto call = std::make_shared<GenerateCall>(counter_);
  call->Start(NextStub(), request, metadata, deadline_ms, std::move(notify));
  return call;
}

std::shared_ptr<UnaryHandle> RouterClient::Tokenize(const pb::TokenizeRequest& request, const Metadata& metadata,
                                                    int64_t deadline_ms, Callback<pb::TokenizeResponse> done) {
  auto call = std::make_shared<UnaryCall<pb::TokenizeRequest, pb::TokenizeResponse>>();
  call->request = request;
  Prepare(call->context, metadata, deadline_ms);
  counter_->Begin();
  NextStub()->async()->Tokenize(&call->context, &call->request, &call->response,
                                [call, counter = counter_, done = std::move(done)](grpc::Status status) {
                                  done(status, call->response);
                                  counter->End();
                                });
  return call;
}

std::shared_ptr<UnaryHandle> RouterClient::Detokenize(const pb::DetokenizeRequest& request, const Metadata& metadata,
                                                      int64_t deadline_ms, Callback<pb::DetokenizeResponse> done) {
  auto call = std::make_shared<UnaryCall<pb::DetokenizeRequest, pb::DetokenizeResponse>>();
  call->request = request;
  Prepare(call->context, metadata, deadline_ms);
  counter_->Begin();
  NextStub()->async()->Detokenize(&call->context, &call->request, &call->response,
                                  [call, counter = counter_, done = std::move(done)](grpc::Status status) {
                                    done(status, call->response);
                                    counter->End();
                                  });
  return call;
}

std::shared_ptr<UnaryHandle> RouterClient::GetModel(int64_t deadline_ms, Callback<pb::GetModelResponse> done) {
  auto call = std::make_shared<UnaryCall<pb::GetModelRequest, pb::GetModelResponse>>();
  Prepare(call->context, {}, deadline_ms);
  counter_->Begin();
  NextStub()->async()->GetModel(&call->context, &call->request, &call->response,
                                [call, counter = counter_, done = std::move(done)](grpc::Status status) {
                                  done(status, call->response);
                                  counter->End();
                                });
  return call;
}

}  // namespace agentserve::gateway
