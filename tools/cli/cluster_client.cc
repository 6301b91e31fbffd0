#include "tools/cli/cluster_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <future>

#include "agentserve/router/v1/router.grpc.pb.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::tools {

using base::StrCat;
namespace rpc = agentserve::router::v1;

namespace {

// A cluster state holds at most a few hundred workers of about 200 bytes.
constexpr int kMaxMessageBytes = 1 << 20;

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

void SetDeadline(base::TimeNs timeout, grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(timeout));
}

absl::Status ToAbsl(const std::string& address, const grpc::Status& s) {
  if (s.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(s.error_code()),
                      base::ToAbsl(StrCat(address, ": ", s.error_message())));
}

ClusterSummary FromProto(const rpc::WatchClusterResponse& m) {
  ClusterSummary out;
  out.model_id = m.model_id();
  out.policy = m.policy();
  out.queued = m.queued();
  out.running = m.running();
  out.accepted_total = m.accepted_total();
  out.finished_total = m.finished_total();
  out.tokens_per_s = m.tokens_per_s();
  out.kvstore_connected = m.kvstore_connected();
  for (const rpc::WorkerState& w : m.workers()) {
    ClusterSummary::Worker worker;
    worker.id = w.worker_id();
    worker.role = w.role();
    worker.state = w.state();
    worker.address = w.address();
    worker.running = w.load().running();
    worker.waiting = w.load().waiting();
    worker.waiting_tokens = w.load().waiting_tokens();
    worker.total_blocks = w.load().total_blocks();
    worker.available_blocks = w.load().available_blocks();
    worker.cached_blocks = w.load().cached_blocks();
    worker.preemptions = w.load().preemptions();
    worker.steps = w.load().steps();
    worker.silent_ms = w.silent_ms();
    worker.tokens_per_s = w.tokens_per_s();
    out.workers.push_back(std::move(worker));
  }
  return out;
}

absl::Status Watch(rpc::RouterService::Stub* stub, const std::string& router, uint32_t interval_ms,
                   grpc::ClientContext* context, const std::function<bool(const ClusterSummary&)>& on_state) {
  rpc::WatchClusterRequest request;
  request.set_interval_ms(interval_ms);
  auto reader = stub->WatchCluster(context, request);
  rpc::WatchClusterResponse state;
  while (reader->Read(&state)) {
    if (on_state(FromProto(state))) continue;
    context->TryCancel();
    reader->Finish();
    return absl::OkStatus();
  }
  const grpc::Status end = reader->Finish();
  if (end.ok()) return absl::UnavailableError(StrCat(router, ": the router ended the stream"));
  return ToAbsl(router, end);
}

}  // namespace

absl::StatusOr<ClusterSummary> FetchClusterSummary(const std::string& router, base::TimeNs timeout) {
  auto stub = rpc::RouterService::NewStub(Connect(router));
  ClusterSummary out;
  grpc::ClientContext watch_context;
  SetDeadline(timeout, &watch_context);
  AS_RETURN_IF_ERROR(Watch(stub.get(), router, 0, &watch_context, [&out](const ClusterSummary& s) {
    out = s;
    return false;
  }));
  grpc::ClientContext model_context;
  SetDeadline(timeout, &model_context);
  rpc::GetModelResponse model;
  AS_RETURN_IF_ERROR(ToAbsl(router, stub->GetModel(&model_context, rpc::GetModelRequest(), &model)));
  out.context_length = model.context_length();
  out.block_tokens = model.layout().block_tokens();
  return out;
}

absl::Status WatchCluster(const std::string& router, uint32_t interval_ms,
                          const std::function<bool(const ClusterSummary&)>& on_state) {
  auto stub = rpc::RouterService::NewStub(Connect(router));
  grpc::ClientContext context;
  return Watch(stub.get(), router, interval_ms, &context, on_state);
}

absl::Status CheckGrpcHealth(const std::string& address, const std::string& service, base::TimeNs timeout) {
  // grpc.health.v1 by hand: HealthCheckRequest{service = 1: string}, HealthCheckResponse{status = 1: enum, 1 =
  // SERVING}. Debian ships no compiled stubs of it, and the two messages are one field each.
  constexpr char kServing[] = {0x08, 0x01};
  std::string body;
  if (!service.empty()) {
    if (service.size() > 127) return absl::InvalidArgumentError("--service is longer than 127 bytes");
    body = StrCat(std::string("\x0a"), std::string(1, static_cast<char>(service.size())), service);
  }
  grpc::Slice slice(body);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  SetDeadline(timeout, &context);
  grpc::GenericStub stub(Connect(address));
  std::promise<grpc::Status> answered;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&answered](grpc::Status s) { answered.set_value(std::move(s)); });
  AS_RETURN_IF_ERROR(ToAbsl(address, answered.get_future().get()));
  std::vector<grpc::Slice> parts;
  response.Dump(&parts);
  std::string bytes;
  for (const grpc::Slice& p : parts) bytes.append(reinterpret_cast<const char*>(p.begin()), p.size());
  if (bytes == std::string(kServing, sizeof(kServing))) return absl::OkStatus();
  return absl::UnavailableError(StrCat(address, ": the service says that it does not serve"));
}

}  // namespace agentserve::tools
