#include "worker/registrar.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"

namespace agentserve::worker {

using base::Field;

namespace {

constexpr int kRpcTimeoutMs = 2000;
constexpr int64_t kFirstRetryMs = 50, kLastRetryMs = 1000;
// A router that answers nonsense must not make us spin or fall silent.
constexpr uint32_t kLeastBeatMs = 50, kMostBeatMs = 10'000;

}  // namespace

std::shared_ptr<grpc::Channel> ConnectChannel(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetMaxReceiveMessageSize(8 << 20);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

Registrar::Registrar(Options options) : options_(std::move(options)) {
  stub_ = agentserve::router::v1::ClusterService::NewStub(ConnectChannel(options_.router));
  thread_ = std::thread([this] { Run(); });
}

Registrar::~Registrar() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
    if (in_flight_) in_flight_->TryCancel();
  }
  cv_.notify_all();
  thread_.join();
}

void Registrar::SetDraining() {
  {
    const std::lock_guard lock(mu_);
    draining_ = true;
    hurry_ = true;
  }
  cv_.notify_all();
}

void Registrar::Run() {
  for (;;) {
    const int64_t wait_ms = Beat();
    std::unique_lock lock(mu_);
    cv_.wait_for(lock, std::chrono::milliseconds(wait_ms), [&] { return stop_ || hurry_; });
    if (stop_) return;
    hurry_ = false;
  }
}

int64_t Registrar::Beat() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(kRpcTimeoutMs));
  agentserve::router::v1::RegisterRequest request = options_.request;
  {
    const std::lock_guard lock(mu_);
    if (stop_) return 0;
    request.set_draining(draining_);
    in_flight_ = &context;
  }
  if (options_.prefill_tokens_per_s) request.set_prefill_tokens_per_s(options_.prefill_tokens_per_s());
  agentserve::router::v1::RegisterResponse response;
  const grpc::Status status = stub_->Register(&context, request, &response);
  {
    const std::lock_guard lock(mu_);
    in_flight_ = nullptr;
    if (stop_) return 0;
  }
  if (status.ok()) {
    if (!registered_ || router_incarnation_ != response.router_incarnation()) {
      AS_LOG(kInfo, "worker.registered") << Field("router", options_.router)
                                         << Field("router_incarnation", response.router_incarnation())
                                         << Field("heartbeat_ms", response.heartbeat_ms());
    }
    registered_ = true;
    router_incarnation_ = response.router_incarnation();
    failures_ = 0;
    if (request.draining()) draining_known_ = true;
    return std::clamp(response.heartbeat_ms(), kLeastBeatMs, kMostBeatMs);
  }
  if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION && !refused_) {
    refused_ = true;
    AS_LOG(kError, "worker.refused") << Field("router", options_.router) << Field("reason", status.error_message());
    if (options_.on_refused) options_.on_refused(status.error_message());
  }
  // Once when it is lost, then about once a minute.
  if (registered_ || failures_ == 2 || failures_ % 60 == 59) {
    AS_LOG(kWarn, "worker.router_unreachable")
        << Field("router", options_.router) << Field("error", status.error_message())
        << Field("failures", failures_ + 1);
  }
  registered_ = false;
  return std::min(kLastRetryMs, kFirstRetryMs << std::min(failures_++, 6));
}

}  // namespace agentserve::worker
