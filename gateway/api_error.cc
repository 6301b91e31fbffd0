#include "gateway/api_error.h"

#include "agentserve/common/v1/rpc_error.pb.h"
#include "base/strings.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;

constexpr size_t kMaxMessageBytes = 1000;
constexpr size_t kMaxParamBytes = 200;
constexpr int64_t kDefaultRetryMs = 1000;

struct Details {
  std::string reason;
  std::optional<int64_t> retry_ms;
  std::string field;
};

Details ParseDetails(const grpc::Status& status) {
  Details out;
  common::v1::RpcStatus rpc;
  if (status.error_details().empty() || !rpc.ParseFromString(status.error_details())) return out;
  for (const auto& any : rpc.details()) {
    const std::string_view url = any.type_url();
    const auto name = url.substr(url.rfind('/') == url.npos ? 0 : url.rfind('/') + 1);
    if (name.ends_with("rpc.ErrorInfo") || name.ends_with("v1.ErrorInfo")) {
      common::v1::ErrorInfo info;
      if (info.ParseFromString(any.value())) out.reason = info.reason();
    } else if (name.ends_with("RetryInfo")) {
      common::v1::RetryInfo info;
      if (info.ParseFromString(any.value())) {
        const int64_t ms = info.retry_delay().seconds() * 1000 + info.retry_delay().nanos() / 1'000'000;
        out.retry_ms = std::clamp<int64_t>(ms, 0, 3'600'000);
      }
    } else if (name.ends_with("BadRequest")) {
      common::v1::BadRequest bad;
      if (bad.ParseFromString(any.value()) && bad.field_violations_size() > 0) {
        out.field = bad.field_violations(0).field();
      }
    }
  }
  return out;
}

ApiError Make(int status, std::string type, std::string code, std::string message) {
  ApiError e;
  e.status = status;
  e.type = std::move(type);
  e.code = std::move(code);
  e.message = std::move(message);
  return e;
}

// Lower-case slug of an UPPER_SNAKE reason.
std::string Slug(std::string_view reason) {
  std::string out;
  for (char c : reason.substr(0, 64)) out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

// Messages of INTERNAL errors may name files of the server; words that look like absolute paths are left out.
std::string WithoutPaths(std::string_view text) {
  std::string out;
  size_t i = 0;
  while (i < text.size()) {
    size_t end = text.find(' ', i);
    if (end == text.npos) end = text.size();
    const std::string_view word = text.substr(i, end - i);
    const bool path = word.size() > 2 && word.find('/') != word.npos && word.find("://") == word.npos &&
                      std::count(word.begin(), word.end(), '/') >= 2;
    base::StrAppend(&out, out.empty() ? "" : " ", path ? "<path>" : word);
    i = end + 1;
  }
  return out;
}

ApiError FromInvalidArgument(const Details& d, std::string message) {
  std::string code;
  if (d.reason == "CONTEXT_LENGTH_EXCEEDED" || d.reason == "PROMPT_EXCEEDS_KV_POOL") {
    code = "context_length_exceeded";
  } else if (!d.reason.empty()) {
    code = Slug(d.reason);
  }
  ApiError e = InvalidRequest(std::move(message), d.field, code);
  if (code == "context_length_exceeded" && e.param.empty()) e.param = "messages";
  return e;
}

}  // namespace

std::string ApiError::Json() const {
  std::string out = "{\"error\":{\"message\":";
  AppendJsonString(&out, Shorten(message, kMaxMessageBytes));
  out += ",\"type\":";
  AppendJsonString(&out, type);
  out += ",\"param\":";
  if (param.empty()) {
    out += "null";
  } else {
    AppendJsonString(&out, Shorten(param, kMaxParamBytes));
  }
  out += ",\"code\":";
  if (code.empty()) {
    out += "null";
  } else {
    AppendJsonString(&out, code);
  }
  out += "}}";
  return out;
}

HeaderList ApiError::Headers() const {
  HeaderList out;
  if (status == 401) out.emplace_back("www-authenticate", "Bearer realm=\"agentserve\"");
  if (retry_after_ms) {
    out.emplace_back("retry-after", StrCat(std::max<int64_t>(1, (*retry_after_ms + 999) / 1000)));
    out.emplace_back("retry-after-ms", StrCat(*retry_after_ms));
  }
  if (should_retry) out.emplace_back("x-should-retry", *should_retry ? "true" : "false");
  if (!allow.empty()) out.emplace_back("allow", allow);
  return out;
}

ApiError InvalidRequest(std::string message, std::string param, std::string code) {
  ApiError e = Make(400, "invalid_request_error", std::move(code), std::move(message));
  e.param = std::move(param);
  e.should_retry = false;
  return e;
}

ApiError InvalidApiKey(bool missing) {
  ApiError e = Make(401, "authentication_error", "invalid_api_key",
                    missing ? "No API key given: send the header `Authorization: Bearer KEY`."
                            : "Incorrect API key given: check the header `Authorization: Bearer KEY`.");
  e.should_retry = false;
  return e;
}

ApiError ModelNotFound(std::string_view model, std::string_view served) {
  ApiError e = Make(404, "not_found_error", "model_not_found",
                    StrCat("The model '", Shorten(model, 100), "' is not served here",
                           served.empty() ? std::string(".") : StrCat("; this server has '", served, "'.")));
  e.param = "model";
  e.should_retry = false;
  return e;
}

ApiError RouteNotFound(std::string_view method, std::string_view path) {
  ApiError e = Make(404, "not_found_error", "route_not_found",
                    StrCat("No route ", Shorten(method, 20), " ", Shorten(path, 100), "; GET / lists the routes."));
  e.should_retry = false;
  return e;
}

ApiError MethodNotAllowed(std::string_view method, std::string_view path, std::string allow) {
  ApiError e =
      Make(405, "invalid_request_error", "method_not_allowed",
           StrCat("The route ", Shorten(path, 100), " does not take ", Shorten(method, 20), "; use ", allow, "."));
  e.allow = std::move(allow);
  e.should_retry = false;
  return e;
}

ApiError BodyTooLarge(size_t limit) {
  ApiError e = Make(413, "invalid_request_error", "request_too_large",
                    StrCat("The request body is larger than the limit of ", limit,
                           " bytes; send less or raise --max-body-mib on the server."));
  e.should_retry = false;
  return e;
}

ApiError HeadersTooLarge(size_t limit) {
  ApiError e = Make(431, "invalid_request_error", "headers_too_large",
                    StrCat("The request line and headers are larger than the limit of ", limit, " bytes."));
  e.should_retry = false;
  return e;
}

ApiError RequestTimeout(std::string message) {
  ApiError e = Make(408, "invalid_request_error", "request_timeout", std::move(message));
  e.should_retry = false;
  return e;
}

ApiError Unavailable(std::string message, int64_t retry_after_ms) {
  ApiError e = Make(503, "unavailable", "unavailable", std::move(message));
  e.retry_after_ms = retry_after_ms;
  return e;
}

ApiError InternalError(std::string message) {
  return Make(500, "internal_error", "internal_error", std::move(message));
}

std::string GrpcReason(const grpc::Status& status) { return ParseDetails(status).reason; }

ApiError FromGrpc(const grpc::Status& status) {
  const Details d = ParseDetails(status);
  std::string message = WithoutPaths(status.error_message());
  if (message.empty()) message = StrCat("the router failed with status ", static_cast<int>(status.error_code()));
  const int64_t retry_ms = d.retry_ms.value_or(kDefaultRetryMs);
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::OUT_OF_RANGE:
      return FromInvalidArgument(d, std::move(message));
    case grpc::StatusCode::UNAUTHENTICATED: {
      ApiError e = InvalidApiKey(false);
      e.message = std::move(message);
      return e;
    }
    case grpc::StatusCode::PERMISSION_DENIED: {
      ApiError e = Make(403, "permission_error", "permission_denied", std::move(message));
      e.should_retry = false;
      return e;
    }
    case grpc::StatusCode::NOT_FOUND: {
      const bool model = d.reason.empty() || d.reason == "MODEL_NOT_FOUND";
      ApiError e = Make(404, "not_found_error", model ? "model_not_found" : Slug(d.reason), std::move(message));
      if (model) e.param = "model";
      e.should_retry = false;
      return e;
    }
    case grpc::StatusCode::RESOURCE_EXHAUSTED: {
      ApiError e = Make(429, "rate_limit_exceeded", "rate_limit_exceeded", std::move(message));
      e.retry_after_ms = retry_ms;
      return e;
    }
    case grpc::StatusCode::CANCELLED:
      return Make(499, "request_cancelled", "request_cancelled", std::move(message));
    case grpc::StatusCode::DEADLINE_EXCEEDED: {
      if (d.reason.find("QUEUE") != std::string::npos) {
        ApiError e = Make(408, "scheduler_queue_timeout", "scheduler_queue_timeout", std::move(message));
        e.retry_after_ms = retry_ms;
        return e;
      }
      return Make(504, "deadline_exceeded", "deadline_exceeded", std::move(message));
    }
    case grpc::StatusCode::ABORTED:
      if (d.reason == "POISON") {  // it brought workers down before: to send it again can only do harm
        ApiError e = InternalError(std::move(message));
        e.code = "poison_request";
        e.should_retry = false;
        return e;
      }
      return Unavailable(std::move(message), retry_ms);
    case grpc::StatusCode::UNAVAILABLE:
      return Unavailable(std::move(message), retry_ms);
    case grpc::StatusCode::UNIMPLEMENTED: {
      ApiError e = Make(501, "not_implemented", "not_implemented", std::move(message));
      e.should_retry = false;
      return e;
    }
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::UNKNOWN:
      return Make(502, "upstream_error", d.reason.empty() ? "upstream_error" : Slug(d.reason), std::move(message));
    default: {
      ApiError e = InternalError(std::move(message));
      if (!d.reason.empty()) e.code = Slug(d.reason);
      return e;
    }
  }
}

}  // namespace agentserve::gateway
