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
    {"/v1/agentserve/decisions",
     {RouteId::kDecisions, "/v1/agentserve/decisions", false},
     "how the latest requests were treated; ?program_id= and ?limit="},
    {"/", {RouteId::kIndex, "/", false}, "this page"},
};

// Paths around an id.
struct IdEntry {
  std::string_view before, after;
  Route route;
  std::string_view what;
};

constexpr IdEntry kIdTable[] = {
    {"/v1/models/", "", {RouteId::kModel, "/v1/models/{id}", false}, ""},
    {"/v1/agentserve/requests/",
     "/decision",
     {RouteId::kDecision, "/v1/agentserve/requests/{id}/decision", false},
     "why a request waited and went where it went"},
    {"/v1/agentserve/programs/",
     "/tool",
     {RouteId::kProgramTool, "/v1/agentserve/programs/{id}/tool", true},
     "a tool of an agent program started or ended"},
    {"/v1/agentserve/programs/",
     "",
     {RouteId::kProgram, "/v1/agentserve/programs/{id}", false, "PUT, DELETE"},
     "PUT: calls to come; DELETE: the program is over"},
};

bool Fits(const IdEntry& e, std::string_view path) {
  return path.size() > e.before.size() + e.after.size() && path.starts_with(e.before) && path.ends_with(e.after);
}

}  // namespace

Route FindRoute(std::string_view path) {
  for (const Entry& e : kTable) {
    if (e.path == path) return e.route;
  }
  for (const IdEntry& e : kIdTable) {
    if (Fits(e, path)) return e.route;
  }
  return {};
}

std::string_view IdOf(RouteId route, std::string_view path) {
  for (const IdEntry& e : kIdTable) {
    if (e.route.id != route || !Fits(e, path)) continue;
    return path.substr(e.before.size(), path.size() - e.before.size() - e.after.size());
  }
  return {};
}

bool TakesMethod(const Route& route, std::string_view method) {
  const std::string list = base::StrCat(", ", AllowedMethods(route), ",");
  return list.find(base::StrCat(", ", method, ",")) != list.npos;
}

std::string AllowedMethods(const Route& route) {
  if (!route.methods.empty()) return std::string(route.methods);
  return route.post ? "POST" : "GET, HEAD";
}

std::string RoutesPage() {
  std::string out = base::StrCat("AgentServe gateway ", base::Version(), " (", base::Commit(), ")\n\n");
  for (const Entry& e : kTable) {
    if (e.what.empty()) continue;
    std::string line = base::StrCat(e.route.post ? "POST " : "GET  ", e.path);
    line.resize(std::max<size_t>(line.size() + 2, 30), ' ');
    base::StrAppend(&out, line, e.what, "\n");
  }
  for (const IdEntry& e : kIdTable) {
    if (e.what.empty()) continue;
    base::StrAppend(&out, AllowedMethods(e.route), " ", e.route.pattern, "  ", e.what, "\n");
  }
  out += "\nThe API is that of OpenAI: point a client's base URL at /v1.\n";
  return out;
}

}  // namespace agentserve::gateway
