// The one place where failures become OpenAI-style HTTP errors.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "gateway/http/message.h"

namespace agentserve::gateway {

// An error that a client sees: `{"error":{"message","type","param","code"}}` plus status and headers.
struct ApiError {
  int status = 500;
  std::string type = "internal_error";
  std::string code;  // empty = null
  std::string message;
  std::string param;  // empty = null
  // Wait before trying again; set on 429, 408 and 503.
  std::optional<int64_t> retry_after_ms;
  // False: the same request fails the same way again.
  std::optional<bool> should_retry;
  // Value of the Allow header (405).
  std::string allow;

  // The JSON object `{"error":{...}}`, bounded to about 2 KiB.
  std::string Json() const;
  // www-authenticate, retry-after, retry-after-ms, x-should-retry, allow: what applies.
  HeaderList Headers() const;
  // Label of metrics: code, or type.
  std::string_view reason() const { return code.empty() ? std::string_view(type) : std::string_view(code); }
};

ApiError InvalidRequest(std::string message, std::string param = "", std::string code = "");
ApiError InvalidApiKey(bool missing);
ApiError ModelNotFound(std::string_view model, std::string_view served);
ApiError RouteNotFound(std::string_view method, std::string_view path);
ApiError MethodNotAllowed(std::string_view method, std::string_view path, std::string allow);
ApiError BodyTooLarge(size_t limit);
ApiError HeadersTooLarge(size_t limit);
ApiError RequestTimeout(std::string message);
ApiError Unavailable(std::string message, int64_t retry_after_ms = 1000);
ApiError InternalError(std::string message);

// Maps a failed call to the router: code, plus ErrorInfo.reason and RetryInfo of the status details when present.
ApiError FromGrpc(const grpc::Status& status);
// ErrorInfo.reason of the details, or "".
std::string GrpcReason(const grpc::Status& status);

}  // namespace agentserve::gateway
