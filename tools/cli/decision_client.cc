#include "tools/cli/decision_client.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include <chrono>

#include "agentserve/router/v1/router.grpc.pb.h"
#include "base/strings.h"
#include "tools/cli/decision_text.h"

namespace agentserve::tools {

using base::StrCat;
namespace rpc = agentserve::router::v1;

namespace {

// 200 decisions of a few KiB.
constexpr int kMaxMessageBytes = 4 << 20;

std::string ToJson(const google::protobuf::Message& m) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string out;
  // Cannot fail for messages without Any.
  const auto status = google::protobuf::util::MessageToJsonString(m, &out, options);
  return status.ok() ? out : std::string("{}");
}

absl::Status ToAbsl(const std::string& address, const grpc::Status& s) {
  return absl::Status(static_cast<absl::StatusCode>(s.error_code()),
                      base::ToAbsl(StrCat(address, ": ", s.error_message())));
}

}  // namespace

absl::StatusOr<std::string> AskWhy(const WhyQuery& query) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto stub =
      rpc::RouterService::NewStub(grpc::CreateCustomChannel(query.router, grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(query.timeout));
  if (!query.request.empty()) {
    rpc::ExplainRequest request;
    request.set_request_id(query.request);
    request.set_tenant_id(query.tenant);
    rpc::ExplainResponse response;
    const grpc::Status s = stub->Explain(&context, request, &response);
    if (!s.ok()) return ToAbsl(query.router, s);
    return query.json ? ToJson(response.decision()) : DecisionText(response.decision());
  }
  rpc::ListDecisionsRequest request;
  request.set_tenant_id(query.tenant);
  request.set_program_id(query.program);
  request.set_limit(query.limit);
  rpc::ListDecisionsResponse response;
  const grpc::Status s = stub->ListDecisions(&context, request, &response);
  if (!s.ok()) return ToAbsl(query.router, s);
  if (query.json) return ToJson(response);
  std::string out = DecisionLineHeader();
  for (const auto& d : response.decisions()) out += DecisionLine(d);
  return out;
}

}  // namespace agentserve::tools
