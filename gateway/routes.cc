#include "gateway/routes.h"

#include "base/strings.h"
#include "base/version.h"

namespace agentserve::gateway {
namespace {

struct Entry {
  std::string_view path;
  Route route;
  std::string_view what;
};

constexpr Entry kTable[] = {
    {"/v1/chat/completions", {RouteId::kChat, "/v1/chat/completions", true}, "chat, streamed or whole, with tools"},
    {"/v1/completions", {RouteId::kCompletions, "/v1/completions", true}, "plain text completion"},
    {"/v1/models", {RouteId::kModels, "/v1/models", false}, "the served model; /v1/models/{id} for one"},
    {"/tokenize", {RouteId::kTokenize, "/tokenize", true}, "text or chat to token ids"},
    {"/v1/tokenize", {RouteId::kTokenize, "/tokenize", true}, ""},
    {"/detokenize", {RouteId::kDetokenize, "/detokenize", true}, "token ids to text"},
    {"/v1/detokenize", {RouteId::kDetokenize, "/detokenize", true}, ""},
    {"/health", {RouteId::kHealth, "/health", false}, "200 when requests can be served"},
    {"/live", {RouteId::kLive, "/live", false}, "200 while the process runs"},
    {"/ready", {RouteId::kReady, "/ready", false}, "200 when the router is reachable and ready"},
    {"/metrics", {RouteId::kMetrics, "/metrics", false}, "Prometheus metrics"},
    {"/version", {RouteId::kVersion, "/version", false}, "version and commit"},
    {"/", {RouteId::kIndex, "/", false}, "this page"},
};

}  // namespace

Route FindRoute(std::string_view path) {
  for (const Entry& e : kTable) {
    if (e.path == path) return e.route;
  }
  constexpr std::string_view kModelPrefix = "/v1/models/";
  if (path.size() > kModelPrefix.size() && path.starts_with(kModelPrefix)) {
    return {RouteId::kModel, "/v1/models/{id}", false};
  }
  return {};
}

bool TakesMethod(const Route& route, std::string_view method) {
  return route.post ? method == "POST" : method == "GET" || method == "HEAD";
}

std::string AllowedMethods(const Route& route) { return route.post ? "POST" : "GET, HEAD"; }

std::string RoutesPage() {
  std::string out = base::StrCat("AgentServe gateway ", base::Version(), " (", base::Commit(), ")\n\n");
  for (const Entry& e : kTable) {
    if (e.what.empty()) continue;
    std::string line = base::StrCat(e.route.post ? "POST " : "GET  ", e.path);
    line.resize(std::max<size_t>(line.size() + 2, 30), ' ');
    base::StrAppend(&out, line, e.what, "\n");
  }
  out += "\nThe API is that of OpenAI: point a client's base URL at /v1.\n";
  return out;
}

}  // namespace agentserve::gateway
