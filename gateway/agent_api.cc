// Handlers of /v1/agentserve/*: programs, tools, and why requests were treated as they were. A caller sees and changes
// what belongs to its own tenant only.
#include <boost/asio/post.hpp>
#include <charconv>

#include "base/strings.h"
#include "gateway/agent_context.h"
#include "gateway/decision_json.h"
#include "gateway/gateway.h"
#include "gateway/http/target.h"
#include "gateway/json_util.h"
#include "gateway/openai/fields.h"
#include "gateway/routes.h"
#include "gateway/unary_active.h"

namespace agentserve::gateway {
namespace {

using base::StrCat;

constexpr int64_t kDeadlineMs = 10'000;
constexpr size_t kMaxDeclared = 1024;

ApiError NotKnown(std::string_view what, std::string_view id) {
  ApiError e = InvalidRequest(StrCat("no ", what, " '", Shorten(id, 60), "' of this key is known"));
  e.status = 404;
  e.code = StrCat(what, "_not_found");
  return e;
}

ApiError BadId(std::string_view id) {
  return InvalidRequest(
      StrCat("'", Shorten(id, 60), "' is no program id: 1 to ", kMaxProgramIdBytes, " bytes of printable ASCII"), "id");
}

// The value of `key` in a raw query; "" if absent. Ids need no escapes beyond those of paths.
std::string QueryValue(std::string_view query, std::string_view key) {
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(pair.size() + 1, query.size()));
    const size_t equals = pair.find('=');
    if (equals == pair.npos || pair.substr(0, equals) != key) continue;
    std::string path, rest;
    SplitTarget(StrCat("/", pair.substr(equals + 1)), &path, &rest);
    return path.substr(1);
  }
  return "";
}

// One call to come: {"id", "depends_on", "osl"}.
void ReadDeclared(const Json& json, size_t index, Fields& all, pb::DeclaredCall* out) {
  Fields f(json, StrCat("calls[", index, "]."));
  const std::string id = f.String("id", kMaxProgramIdBytes).value_or("");
  if (f.ok() && id.empty()) f.Fail("id", "is missing");
  out->set_call_id(id);
  if (const Json* needs = f.Array("depends_on", kMaxDependsOn)) {
    for (const Json& n : *needs) {
      if (!n.is_string()) {
        f.Fail("depends_on", "must hold strings");
        break;
      }
      out->add_depends_on(n.get<std::string>());
    }
  }
  out->set_osl_hint(static_cast<uint32_t>(f.Integer("osl", 0, UINT32_MAX).value_or(0)));
  if (!f.ok()) all.Fail(*f.error());
}

}  // namespace

// Programs live under the tenant of the key. Without keys the tenant may be named as in requests, by the query.
std::string Gateway::TenantOf(const Call& call) const {
  if (auth_.enabled()) return call.tenant;
  const std::string named = QueryValue(call.request.query, "user");
  return named.empty() ? call.tenant : named;
}

template <typename Response, typename Begin>
Gateway::Active Gateway::AskRouter(Call call, Begin begin,
                                   std::function<std::optional<ApiError>(const Response&, std::string*)> reply) {
  auto active = std::make_shared<UnaryActive>();
  const Metadata metadata = MetadataFor(call);
  auto shared = std::make_shared<Call>(std::move(call));
  active->handle = begin(metadata, [this, shared, active, reply](const grpc::Status& status, const Response& response) {
    boost::asio::post(shared->exchange->executor(), [this, shared, active, reply, status, response] {
      if (active->gone) return;
      if (!status.ok()) return ReplyError(*shared, FromGrpc(status));
      std::string body;
      if (auto error = reply(response, &body)) return ReplyError(*shared, *error);
      ReplyJson(*shared, 200, std::move(body));
    });
  });
  return active;
}

Gateway::Active Gateway::Decision(Call call) {
  const std::string id(IdOf(RouteId::kDecision, call.request.path));
  pb::ExplainRequest request;
  request.set_tenant_id(TenantOf(call));
  request.set_request_id(id);
  return AskRouter<pb::ExplainResponse>(
      std::move(call),
      [this, request](const Metadata& metadata, RouterClient::Callback<pb::ExplainResponse> done) {
        return router_.Explain(request, metadata, kDeadlineMs, std::move(done));
      },
      [](const pb::ExplainResponse& response, std::string* body) {
        *body = DecisionJson(response.decision());
        return std::optional<ApiError>();
      });
}

Gateway::Active Gateway::Decisions(Call call) {
  pb::ListDecisionsRequest request;
  request.set_tenant_id(TenantOf(call));
  request.set_program_id(QueryValue(call.request.query, "program_id"));
  const std::string limit = QueryValue(call.request.query, "limit");
  uint32_t n = 0;
  const auto parsed = std::from_chars(limit.data(), limit.data() + limit.size(), n);
  if (!limit.empty() && (parsed.ec != std::errc() || parsed.ptr != limit.data() + limit.size())) {
    return ReplyError(call, InvalidRequest("limit must be a whole number", "limit")), nullptr;
  }
  request.set_limit(n);
  return AskRouter<pb::ListDecisionsResponse>(
      std::move(call),
      [this, request](const Metadata& metadata, RouterClient::Callback<pb::ListDecisionsResponse> done) {
        return router_.ListDecisions(request, metadata, kDeadlineMs, std::move(done));
      },
      [](const pb::ListDecisionsResponse& response, std::string* body) {
        *body = DecisionListJson(response);
        return std::optional<ApiError>();
      });
}

Gateway::Active Gateway::ProgramTool(Call call) {
  const auto id = GoodProgramId(IdOf(RouteId::kProgramTool, call.request.path));
  if (!id) return ReplyError(call, BadId(IdOf(RouteId::kProgramTool, call.request.path))), nullptr;
  const auto json = Body(call);
  if (!json) return nullptr;
  Fields f(*json);
  const std::string tool = f.String("tool", kMaxProgramIdBytes).value_or("");
  const std::string phase = f.String("phase", 16).value_or("");
  if (f.ok() && phase != "start" && phase != "end") f.Fail("phase", "must be \"start\" or \"end\"");
  if (!f.ok()) return ReplyError(call, *f.error()), nullptr;
  pb::ReportToolRequest request;
  request.set_tenant_id(TenantOf(call));
  request.set_program_id(*id);
  request.set_tool_name(tool);
  request.set_phase(phase == "start" ? pb::ReportToolRequest::PHASE_START : pb::ReportToolRequest::PHASE_END);
  return AskRouter<pb::ReportToolResponse>(
      std::move(call),
      [this, request](const Metadata& metadata, RouterClient::Callback<pb::ReportToolResponse> done) {
        return router_.ReportTool(request, metadata, kDeadlineMs, std::move(done));
      },
      [id](const pb::ReportToolResponse& response, std::string* body) -> std::optional<ApiError> {
        if (!response.known()) return NotKnown("program", *id);
        *body = StrCat("{\"id\":", JsonString(*id), ",\"object\":\"agentserve.program\"}");
        return std::nullopt;
      });
}

Gateway::Active Gateway::Program(Call call) {
  const auto id = GoodProgramId(IdOf(RouteId::kProgram, call.request.path));
  if (!id) return ReplyError(call, BadId(IdOf(RouteId::kProgram, call.request.path))), nullptr;
  if (call.request.method == "DELETE") {
    pb::EndProgramRequest request;
    request.set_tenant_id(TenantOf(call));
    request.set_program_id(*id);
    return AskRouter<pb::EndProgramResponse>(
        std::move(call),
        [this, request](const Metadata& metadata, RouterClient::Callback<pb::EndProgramResponse> done) {
          return router_.EndProgram(request, metadata, kDeadlineMs, std::move(done));
        },
        [id](const pb::EndProgramResponse& response, std::string* body) -> std::optional<ApiError> {
          if (!response.known()) return NotKnown("program", *id);
          *body = StrCat("{\"id\":", JsonString(*id), ",\"object\":\"agentserve.program\",\"deleted\":true}");
          return std::nullopt;
        });
  }
  const auto json = Body(call);
  if (!json) return nullptr;
  Fields f(*json);
  pb::DeclareProgramRequest request;
  request.set_tenant_id(TenantOf(call));
  request.set_program_id(*id);
  const Json* calls = f.Array("calls", kMaxDeclared);
  if (f.ok() && calls == nullptr) f.Fail("calls", "is missing");
  for (size_t i = 0; f.ok() && i < calls->size(); ++i) ReadDeclared((*calls)[i], i, f, request.add_calls());
  if (!f.ok()) return ReplyError(call, *f.error()), nullptr;
  return AskRouter<pb::DeclareProgramResponse>(
      std::move(call),
      [this, request](const Metadata& metadata, RouterClient::Callback<pb::DeclareProgramResponse> done) {
        return router_.DeclareProgram(request, metadata, kDeadlineMs, std::move(done));
      },
      [id](const pb::DeclareProgramResponse& response, std::string* body) {
        *body = StrCat("{\"id\":", JsonString(*id),
                       ",\"object\":\"agentserve.program\",\"pending_calls\":", response.pending(), "}");
        return std::optional<ApiError>();
      });
}

}  // namespace agentserve::gateway
