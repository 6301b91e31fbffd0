#include "router/service/errors.h"

#include <algorithm>

#include "agentserve/common/v1/rpc_error.pb.h"
#include "base/strings.h"

namespace agentserve::router {
namespace {

namespace pb = agentserve::common::v1;

constexpr size_t kMaxMessage = 1000;
constexpr size_t kMaxViolations = 10;

// Cuts at a UTF-8 boundary: proto strings must stay valid.
std::string Cut(const std::string& s) {
  if (s.size() <= kMaxMessage) return s;
  size_t end = kMaxMessage;
  while (end > 0 && (static_cast<unsigned char>(s[end]) & 0xC0) == 0x80) --end;
  return s.substr(0, end) + "...";
}

// The Any's type is google.rpc.X although our message lives in another package: same fields, same numbers.
void AddDetail(pb::RpcStatus* status, const char* name, const google::protobuf::Message& detail) {
  auto* any = status->add_details();
  any->set_type_url(base::StrCat("type.googleapis.com/google.rpc.", name));
  any->set_value(detail.SerializeAsString());
}

}  // namespace

Rejection InvalidField(std::string field, std::string description) {
  Rejection r;
  r.reason = "INVALID_FIELD";
  r.message = base::StrCat(field, ": ", description);
  r.metadata["field"] = field;
  r.violations.emplace_back(std::move(field), std::move(description));
  return r;
}

Rejection ContextLengthExceeded(uint64_t context_length, uint64_t prompt_tokens) {
  Rejection r;
  r.reason = "CONTEXT_LENGTH_EXCEEDED";
  r.message = base::StrCat("this model's context length is ", context_length, " tokens, but the prompt has ",
                           prompt_tokens, " tokens and needs room for at least one more; shorten the prompt");
  r.metadata["limit"] = std::to_string(context_length);
  r.metadata["got"] = std::to_string(prompt_tokens);
  r.violations.emplace_back("prompt", r.message);
  return r;
}

Rejection FromCore(EndReason reason, std::string message, TimeNs retry_after) {
  Rejection r;
  r.message = std::move(message);
  r.retry_after_ms = retry_after / base::kNsPerMs;
  auto is = [&r](grpc::StatusCode code, const char* slug) {
    r.code = code;
    r.reason = slug;
  };
  switch (reason) {
    case EndReason::kDone:
      is(grpc::StatusCode::OK, "");
      break;
    case EndReason::kCancelled:
      is(grpc::StatusCode::CANCELLED, "CANCELLED");
      break;
    case EndReason::kQueueFull:
      is(grpc::StatusCode::RESOURCE_EXHAUSTED, "QUEUE_FULL");
      break;
    case EndReason::kQueueTimeout:
      is(grpc::StatusCode::DEADLINE_EXCEEDED, "QUEUE_TIMEOUT");
      break;
    case EndReason::kDeadline:
      is(grpc::StatusCode::DEADLINE_EXCEEDED, "DEADLINE");
      break;
    case EndReason::kNoWorkers:
      is(grpc::StatusCode::UNAVAILABLE, "NO_WORKERS");
      break;
    case EndReason::kPoison:
      is(grpc::StatusCode::ABORTED, "POISON");
      break;
    case EndReason::kDraining:
      is(grpc::StatusCode::UNAVAILABLE, "DRAINING");
      break;
    case EndReason::kTooLong:
      is(grpc::StatusCode::INVALID_ARGUMENT, "PROMPT_EXCEEDS_KV_POOL");
      break;
    case EndReason::kWorkerFailed:
      is(grpc::StatusCode::UNAVAILABLE, "WORKER_FAILED");
      break;
    case EndReason::kSlowClient:
      is(grpc::StatusCode::RESOURCE_EXHAUSTED, "SLOW_CLIENT");
      break;
    case EndReason::kBadDependency:
      is(grpc::StatusCode::INVALID_ARGUMENT, "BAD_DEPENDENCY");
      break;
  }
  return r;
}

Rejection FromStatus(const absl::Status& status, const std::string& field) {
  if (absl::IsInvalidArgument(status)) return InvalidField(field, base::MessageOf(status));
  Rejection r;
  r.code = static_cast<grpc::StatusCode>(status.code());
  r.reason = absl::StatusCodeToString(status.code());
  r.message = base::MessageOf(status);
  return r;
}

grpc::Status ToGrpc(const Rejection& r) {
  pb::RpcStatus status;
  const std::string message = Cut(r.message);
  status.set_code(r.code);
  status.set_message(message);
  pb::ErrorInfo info;
  info.set_reason(r.reason);
  info.set_domain("agentserve");
  for (const auto& [key, value] : r.metadata) (*info.mutable_metadata())[key] = Cut(value);
  AddDetail(&status, "ErrorInfo", info);
  if (r.retry_after_ms > 0) {
    pb::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(r.retry_after_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(r.retry_after_ms % 1000 * 1'000'000));
    AddDetail(&status, "RetryInfo", retry);
  }
  if (!r.violations.empty()) {
    pb::BadRequest bad;
    for (size_t i = 0; i < std::min(r.violations.size(), kMaxViolations); ++i) {
      auto* v = bad.add_field_violations();
      v->set_field(Cut(r.violations[i].first));
      v->set_description(Cut(r.violations[i].second));
    }
    AddDetail(&status, "BadRequest", bad);
  }
  return grpc::Status(r.code, message, status.SerializeAsString());
}

}  // namespace agentserve::router
