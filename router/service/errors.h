// The one place where refusals and ends become gRPC statuses with google.rpc details.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "router/core/types.h"

namespace agentserve::router {

// A refusal in full.
struct Rejection {
  grpc::StatusCode code = grpc::StatusCode::INVALID_ARGUMENT;
  std::string reason;  // ErrorInfo.reason: UPPER_SNAKE, stable
  std::string message;
  std::map<std::string, std::string> metadata;                  // ErrorInfo.metadata
  std::vector<std::pair<std::string, std::string>> violations;  // BadRequest: field, description
  int64_t retry_after_ms = 0;                                   // > 0: RetryInfo
};

Rejection InvalidField(std::string field, std::string description);
Rejection ContextLengthExceeded(uint64_t context_length, uint64_t prompt_tokens);
// How the core ended or refused a request.
Rejection FromCore(EndReason reason, std::string message, TimeNs retry_after);
// Statuses of libraries; INVALID_ARGUMENT becomes INVALID_FIELD of `field`.
Rejection FromStatus(const absl::Status& status, const std::string& field);
// Messages are cut at 1,000 bytes, violations at 10.
grpc::Status ToGrpc(const Rejection& r);

}  // namespace agentserve::router
