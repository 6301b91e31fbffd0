#include "gateway/api_error.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "gateway/testing/fake_router.h"

namespace agentserve::gateway {
namespace {

using grpc::StatusCode;
using testing::DetailedStatus;

std::string HeaderOf(const ApiError& e, std::string_view name) {
  for (const auto& [key, value] : e.Headers()) {
    if (key == name) return value;
  }
  return "";
}

struct Row {
  StatusCode code;
  const char* reason;
  int status;
  const char* type;
  const char* slug;
};

TEST(FromGrpc, Table) {
  for (const Row& row : {
           Row{StatusCode::INVALID_ARGUMENT, "", 400, "invalid_request_error", ""},
           Row{StatusCode::INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED", 400, "invalid_request_error",
               "context_length_exceeded"},
           Row{StatusCode::OUT_OF_RANGE, "", 400, "invalid_request_error", ""},
           Row{StatusCode::UNAUTHENTICATED, "", 401, "authentication_error", "invalid_api_key"},
           Row{StatusCode::NOT_FOUND, "MODEL_NOT_FOUND", 404, "not_found_error", "model_not_found"},
           Row{StatusCode::RESOURCE_EXHAUSTED, "QUEUE_FULL", 429, "rate_limit_exceeded", "rate_limit_exceeded"},
           Row{StatusCode::CANCELLED, "", 499, "request_cancelled", "request_cancelled"},
           Row{StatusCode::DEADLINE_EXCEEDED, "QUEUE_TIMEOUT", 408, "scheduler_queue_timeout",
               "scheduler_queue_timeout"},
           Row{StatusCode::DEADLINE_EXCEEDED, "", 504, "deadline_exceeded", "deadline_exceeded"},
           Row{StatusCode::UNAVAILABLE, "NO_WORKER", 503, "unavailable", "unavailable"},
           Row{StatusCode::ABORTED, "PREEMPTED", 503, "unavailable", "unavailable"},
           Row{StatusCode::ABORTED, "POISON", 500, "internal_error", "poison_request"},
           Row{StatusCode::FAILED_PRECONDITION, "", 502, "upstream_error", "upstream_error"},
           Row{StatusCode::INTERNAL, "", 500, "internal_error", "internal_error"},
           Row{StatusCode::UNIMPLEMENTED, "", 501, "not_implemented", "not_implemented"},
       }) {
    const ApiError e =
        FromGrpc(*row.reason ? DetailedStatus(row.code, "why", row.reason) : grpc::Status(row.code, "why"));
    EXPECT_EQ(e.status, row.status) << row.code;
    EXPECT_EQ(e.type, row.type) << row.code;
    EXPECT_EQ(e.code, row.slug) << row.code;
  }
}

TEST(FromGrpc, RetryInfoBecomesHeaders) {
  const ApiError e = FromGrpc(DetailedStatus(StatusCode::RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", 1500));
  EXPECT_EQ(HeaderOf(e, "retry-after"), "2");
  EXPECT_EQ(HeaderOf(e, "retry-after-ms"), "1500");
  EXPECT_EQ(HeaderOf(FromGrpc(grpc::Status(StatusCode::UNAVAILABLE, "")), "retry-after"), "1");
  EXPECT_EQ(HeaderOf(FromGrpc(grpc::Status(StatusCode::UNIMPLEMENTED, "")), "x-should-retry"), "false");
  EXPECT_EQ(HeaderOf(InvalidApiKey(true), "www-authenticate"), "Bearer realm=\"agentserve\"");
}

TEST(FromGrpc, GarbageDetailsAreIgnored) {
  EXPECT_EQ(FromGrpc(grpc::Status(StatusCode::INTERNAL, "x", "\xFF\xFF garbage")).status, 500);
}

TEST(ApiError, JsonHasAllFourMembersAndIsBounded) {
  const auto json = nlohmann::json::parse(InvalidRequest(std::string(100'000, '"'), std::string(10'000, 'p')).Json());
  const auto& e = json["error"];
  ASSERT_EQ(e.size(), 4U);
  EXPECT_LT(json.dump().size(), 3000U);
  EXPECT_TRUE(e["code"].is_null());
  EXPECT_TRUE(nlohmann::json::parse(InternalError("x").Json())["error"]["param"].is_null());
}

TEST(ApiError, PathsOfTheServerStayInside) {
  const ApiError e = FromGrpc(grpc::Status(StatusCode::INTERNAL, "cannot read /srv/models/x/config.json now"));
  EXPECT_EQ(e.message.find("/srv"), std::string::npos);
  EXPECT_NE(e.message.find("cannot read"), std::string::npos);
}

}  // namespace
}  // namespace agentserve::gateway
