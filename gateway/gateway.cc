#include "gateway/gateway.h"

#include <boost/asio/post.hpp>
#include <charconv>

#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"
#include "base/version.h"
#include "gateway/agent_context.h"
#include "gateway/json_util.h"
#include "gateway/openai/chat_request.h"
#include "gateway/openai/completion_request.h"
#include "gateway/routes.h"
#include "gateway/unary_active.h"

namespace agentserve::gateway {
namespace {

using base::Field;
using base::StrCat;

constexpr size_t kMaxRequestIdBytes = 128;
constexpr int64_t kUnaryDeadlineMs = 30'000;

bool PrintableAscii(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return c >= 0x20 && c <= 0x7E; });
}

// The caller's label if it is a safe header value, else a new one.
std::string RequestId(const HttpRequest& request) {
  const auto given = request.Header("x-request-id");
  if (!given.empty() && given.size() <= kMaxRequestIdBytes && PrintableAscii(given)) return std::string(given);
  return StrCat("req-", base::RandomHex128());
}

// 00-<32 hex>-<16 hex>-<2 hex>; anything else is dropped, as the W3C text asks.
std::string TraceParent(const HttpRequest& request) {
  const auto v = request.Header("traceparent");
  const bool good = v.size() == 55 && v[2] == '-' && v[35] == '-' && v[52] == '-' &&
                    v.find_first_not_of("0123456789abcdef-") == v.npos;
  return good ? std::string(v) : std::string();
}

std::string ModelJson(const ModelFacts& facts) {
  return StrCat("{\"id\":", JsonString(facts.id), ",\"object\":\"model\",\"created\":", facts.created_unix_s,
                ",\"owned_by\":\"agentserve\",\"root\":", JsonString(facts.id),
                ",\"parent\":null,\"max_model_len\":", facts.context_length, ",\"permission\":[]}");
}

}  // namespace

Gateway::Gateway(boost::asio::io_context& io, const GatewayConfig& config, const base::Clock* clock)
    : config_(config),
      clock_(clock),
      auth_(config.api_keys, config.api_key_names),
      router_(config.router, config.router_channels),
      model_(std::make_shared<ModelWatcher>(io, &router_, &metrics_)) {}

Gateway::~Gateway() = default;

void Gateway::Start() { model_->Start(); }

void Gateway::BeginDrain() { draining_ = true; }

void Gateway::Stop() {
  if (router_.WaitIdle(5'000)) return;
  AS_LOG(kWarn, "gateway.calls_open_at_exit");
}

HeaderList Gateway::BaseHeaders(const std::string& request_id) const {
  HeaderList out{{"x-request-id", request_id}};
  if (!config_.cors_origin.empty()) {
    out.emplace_back("access-control-allow-origin", config_.cors_origin);
    out.emplace_back("access-control-expose-headers",
                     "x-request-id, retry-after, retry-after-ms, x-agentserve-request-id, x-agentserve-program-id");
    out.emplace_back("vary", "origin");
  }
  return out;
}

HttpReply Gateway::ProtocolError(int status, const std::string& detail) {
  ApiError error;
  switch (status) {
    case 413:
      error = BodyTooLarge(config_.http.body_bytes);
      break;
    case 431:
      error = HeadersTooLarge(config_.http.header_bytes);
      break;
    case 408:
      error = RequestTimeout(detail);
      break;
    case 503:
      error = Unavailable(detail);
      break;
    default:
      error = InvalidRequest(StrCat("malformed HTTP request: ", Shorten(detail, 200)));
      error.status = status;
  }
  metrics_.CountReject(error.code.empty() ? "malformed_http" : error.reason());
  metrics_.CountRequest("protocol", error.status);
  HttpReply reply;
  reply.status = error.status;
  reply.body = error.Json();
  reply.headers = BaseHeaders(StrCat("req-", base::RandomHex128()));
  for (auto& h : error.Headers()) reply.headers.push_back(std::move(h));
  return reply;
}

std::optional<HttpReply> Gateway::CheckHead(const HttpRequest& head) {
  const Route route = FindRoute(head.path);
  const auto refuse = [&](const ApiError& error) {
    metrics_.CountReject(error.reason());
    metrics_.CountRequest(route.pattern, error.status);
    HttpReply reply;
    reply.status = error.status;
    reply.body = error.Json();
    reply.headers = BaseHeaders(RequestId(head));
    for (auto& h : error.Headers()) reply.headers.push_back(std::move(h));
    return reply;
  };
  if (head.method == "OPTIONS" && !config_.cors_origin.empty()) return std::nullopt;
  std::string tenant;
  if (!Authenticator::IsPublicPath(head.path)) {
    if (auto error = auth_.Check(head, &tenant)) return refuse(*error);
  }
  if (route.id == RouteId::kNone) return refuse(RouteNotFound(head.method, head.path));
  if (!TakesMethod(route, head.method)) return refuse(MethodNotAllowed(head.method, head.path, AllowedMethods(route)));
  if (route.post && draining_) return refuse(Unavailable("the server is shutting down; try again shortly"));
  return std::nullopt;
}

std::shared_ptr<ActiveRequest> Gateway::Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) {
  const Route route = FindRoute(request.path);
  Call call;
  call.request_id = RequestId(request);
  call.headers = BaseHeaders(call.request_id);
  call.route = route.pattern;
  call.request = std::move(request);
  call.exchange = std::move(exchange);
  if (call.request.method == "OPTIONS") {
    call.headers.emplace_back("access-control-allow-methods", "GET, POST, PUT, DELETE, OPTIONS");
    call.headers.emplace_back("access-control-allow-headers", "*, authorization");
    call.headers.emplace_back("access-control-max-age", "86400");
    HttpReply reply;
    reply.status = 204;
    Reply(call, std::move(reply));
    return nullptr;
  }
  if (!Authenticator::IsPublicPath(call.request.path)) {
    // Checked with the head; here it names the tenant.
    if (auto error = auth_.Check(call.request, &call.tenant)) return ReplyError(call, *error), nullptr;
  }
  switch (route.id) {
    case RouteId::kChat:
      return Generate(std::move(call), true);
    case RouteId::kCompletions:
      return Generate(std::move(call), false);
    case RouteId::kTokenize:
      return Tokenize(std::move(call));
    case RouteId::kDetokenize:
      return Detokenize(std::move(call));
    case RouteId::kModels:
    case RouteId::kModel:
      return Models(std::move(call)), nullptr;
    case RouteId::kHealth:
      return Health(std::move(call)), nullptr;
    case RouteId::kReady:
      return Ready(std::move(call)), nullptr;
    case RouteId::kLive:
      return ReplyJson(call, 200, "{\"status\":\"ok\"}"), nullptr;
    case RouteId::kVersion:
      return ReplyJson(
                 call, 200,
                 StrCat("{\"version\":", JsonString(base::Version()), ",\"commit\":", JsonString(base::Commit()), "}")),
             nullptr;
    case RouteId::kMetrics: {
      HttpReply reply;
      reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
      reply.body = metrics_.Render();
      return Reply(call, std::move(reply)), nullptr;
    }
    case RouteId::kProgram:
      return Program(std::move(call));
    case RouteId::kProgramTool:
      return ProgramTool(std::move(call));
    case RouteId::kDecision:
      return Decision(std::move(call));
    case RouteId::kDecisions:
      return Decisions(std::move(call));
    case RouteId::kIndex:
      return Index(std::move(call)), nullptr;
    case RouteId::kNone:
      return ReplyError(call, RouteNotFound(call.request.method, call.request.path)), nullptr;
  }
  return nullptr;
}

// ---- Small replies ----

void Gateway::Reply(Call& call, HttpReply reply) {
  metrics_.CountRequest(call.route, reply.status);
  for (auto& h : reply.headers) call.headers.push_back(std::move(h));
  reply.headers = std::move(call.headers);
  call.exchange->Send(std::move(reply));
}

void Gateway::ReplyJson(Call& call, int status, std::string body) {
  HttpReply reply;
  reply.status = status;
  reply.body = std::move(body);
  Reply(call, std::move(reply));
}

void Gateway::ReplyError(Call& call, const ApiError& error) {
  metrics_.CountReject(error.reason());
  AS_LOG(kDebug, "request.refused") << Field("route", call.route) << Field("status", error.status)
                                    << Field("code", error.reason()) << Field("message", error.message)
                                    << Field("request_id", call.request_id);
  HttpReply reply;
  reply.status = error.status;
  reply.body = error.Json();
  reply.headers = error.Headers();
  Reply(call, std::move(reply));
}

void Gateway::Index(Call call) {
  HttpReply reply;
  reply.content_type = "text/plain; charset=utf-8";
  reply.body = RoutesPage();
  Reply(call, std::move(reply));
}

void Gateway::Models(Call call) {
  const ModelState state = model_->Get();
  if (state.facts.id.empty()) return ReplyError(call, Unavailable("the model is not known yet: " + state.problem));
  if (call.route == "/v1/models") {
    return ReplyJson(call, 200, StrCat("{\"object\":\"list\",\"data\":[", ModelJson(state.facts), "]}"));
  }
  const std::string id = call.request.path.substr(sizeof("/v1/models/") - 1);
  if (id != state.facts.id) return ReplyError(call, ModelNotFound(id, state.facts.id));
  ReplyJson(call, 200, ModelJson(state.facts));
}

void Gateway::Health(Call call) {
  const ModelState state = model_->Get();
  if (state.ready && !draining_) return ReplyJson(call, 200, "{\"status\":\"ok\"}");
  // The shape that llama-server has while it loads; watchers of it parse `error.message`.
  HttpReply reply;
  reply.status = 503;
  reply.body =
      StrCat("{\"error\":{\"code\":503,\"message\":", JsonString(draining_ ? "Shutting down" : "Loading model"),
             ",\"type\":\"unavailable_error\"}}");
  reply.headers.emplace_back("retry-after", "1");
  Reply(call, std::move(reply));
}

void Gateway::Ready(Call call) {
  const ModelState state = model_->Get();
  if (state.ready && !draining_) return ReplyJson(call, 200, "{\"status\":\"ready\"}");
  const std::string why = draining_ ? std::string("shutting down") : state.problem;
  HttpReply reply;
  reply.status = 503;
  reply.body = StrCat("{\"status\":\"not ready\",\"reason\":", JsonString(Shorten(why, 200)), "}");
  reply.headers.emplace_back("retry-after", "1");
  Reply(call, std::move(reply));
}

// ---- Calls of the router ----

std::optional<nlohmann::json> Gateway::Body(Call& call) {
  auto json = ParseJson(call.request.body, config_.request.json_depth, config_.request.json_values);
  if (json.ok()) return std::move(*json);
  ReplyError(call, InvalidRequest(base::MessageOf(json.status())));
  return std::nullopt;
}

Metadata Gateway::MetadataFor(const Call& call) const {
  Metadata out{{"x-request-id", call.request_id}};
  if (std::string trace = TraceParent(call.request); !trace.empty()) out.emplace_back("traceparent", trace);
  return out;
}

std::shared_ptr<ActiveRequest> Gateway::Generate(Call call, bool chat) {
  if (!call.request.Header("x-stainless-retry-count").empty() &&
      call.request.Header("x-stainless-retry-count") != "0") {
    metrics_.client_retries.Increment();
  }
  const auto json = Body(call);
  if (!json) return nullptr;
  GenerationStart start;
  const ParseContext context{config_.request, Facts()};
  auto error = chat ? ParseChatRequest(call.request.body, *json, context, &start.parsed)
                    : ParseCompletionRequest(*json, context, &start.parsed);
  if (error) return ReplyError(call, *error), nullptr;
  for (const auto& name : start.parsed.ignored) {
    metrics_.CountIgnoredField(name);
    AS_LOG(kDebug, "request.field_ignored")
        << Field("field", Shorten(name, 100)) << Field("request_id", call.request_id);
  }
  start.parsed.options.timeline |= call.request.Header("x-agentserve-timeline") == "1";
  start.budget_ms = config_.request_timeout_ms;
  const auto budget = call.request.Header("x-agentserve-budget-ms");
  int64_t asked = 0;
  if (std::from_chars(budget.data(), budget.data() + budget.size(), asked).ec == std::errc() && asked > 0) {
    start.budget_ms = std::min(start.budget_ms, asked);
  }
  const auto agent = ReadAgentContext(call.request, *json, {call.tenant, auth_.enabled()});
  if (agent.error) return ReplyError(call, *agent.error), nullptr;
  for (const auto source : agent.ignored) {
    metrics_.CountIgnoredHint(source);
    AS_LOG(kDebug, "request.hint_ignored") << Field("source", source) << Field("request_id", call.request_id);
  }
  for (auto& request : start.parsed.requests) {
    *request.mutable_agent() = agent.context;
    request.mutable_trace()->set_client_request_id(call.request_id);
    request.mutable_trace()->set_traceparent(TraceParent(call.request));
  }
  start.route = call.route;
  start.request_id = call.request_id;
  start.model = start.parsed.requests[0].model().empty() ? context.model.id : start.parsed.requests[0].model();
  start.metadata = MetadataFor(call);
  start.received_ns = call.request.received_ns;
  start.headers = std::move(call.headers);
  const GenerationDeps deps{&config_, &router_, model_.get(), &metrics_, clock_};
  auto generation = std::make_shared<Generation>(deps, std::move(start), call.exchange);
  generation->Start();
  return generation;
}

std::shared_ptr<ActiveRequest> Gateway::Tokenize(Call call) {
  const auto json = Body(call);
  if (!json) return nullptr;
  pb::TokenizeRequest request;
  const ParseContext context{config_.request, Facts()};
  if (auto error = ParseTokenizeRequest(call.request.body, *json, context, &request)) {
    return ReplyError(call, *error), nullptr;
  }
  auto active = std::make_shared<UnaryActive>();
  const Metadata metadata = MetadataFor(call);
  auto shared = std::make_shared<Call>(std::move(call));
  active->handle = router_.Tokenize(
      request, metadata, kUnaryDeadlineMs,
      [this, shared, active, context](const grpc::Status& status, const pb::TokenizeResponse& response) {
        boost::asio::post(shared->exchange->executor(), [this, shared, active, context, status, response] {
          if (active->gone) return;
          if (!status.ok()) return ReplyError(*shared, FromGrpc(status));
          std::string body = StrCat("{\"count\":", response.ids_size(),
                                    ",\"max_model_len\":", context.model.context_length, ",\"tokens\":[");
          for (int i = 0; i < response.ids_size(); ++i) base::StrAppend(&body, i > 0 ? "," : "", response.ids(i));
          body += "]";
          if (!response.rendered().empty()) base::StrAppend(&body, ",\"prompt\":", JsonString(response.rendered()));
          ReplyJson(*shared, 200, body + "}");
        });
      });
  return active;
}

std::shared_ptr<ActiveRequest> Gateway::Detokenize(Call call) {
  const auto json = Body(call);
  if (!json) return nullptr;
  pb::DetokenizeRequest request;
  const ParseContext context{config_.request, Facts()};
  if (auto error = ParseDetokenizeRequest(*json, context, &request)) return ReplyError(call, *error), nullptr;
  auto active = std::make_shared<UnaryActive>();
  const Metadata metadata = MetadataFor(call);
  auto shared = std::make_shared<Call>(std::move(call));
  active->handle =
      router_.Detokenize(request, metadata, kUnaryDeadlineMs,
                         [this, shared, active](const grpc::Status& status, const pb::DetokenizeResponse& response) {
                           boost::asio::post(shared->exchange->executor(), [this, shared, active, status, response] {
                             if (active->gone) return;
                             if (!status.ok()) return ReplyError(*shared, FromGrpc(status));
                             const std::string text = JsonString(response.text());
                             // vLLM calls it prompt, llama-server content.
                             ReplyJson(*shared, 200, StrCat("{\"prompt\":", text, ",\"content\":", text, "}"));
                           });
                         });
  return active;
}

}  // namespace agentserve::gateway
