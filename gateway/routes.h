// The route table. Pure.
#pragma once

#include <string>
#include <string_view>

namespace agentserve::gateway {

enum class RouteId {
  kNone,
  kChat,
  kCompletions,
  kModels,
  kModel,
  kTokenize,
  kDetokenize,
  kHealth,
  kLive,
  kReady,
  kMetrics,
  kVersion,
  kProgram,      // /v1/agentserve/programs/{id}
  kProgramTool,  // /v1/agentserve/programs/{id}/tool
  kDecision,     // /v1/agentserve/requests/{id}/decision
  kDecisions,    // /v1/agentserve/decisions
  kIndex,
};

struct Route {
  RouteId id = RouteId::kNone;
  std::string_view pattern = "unmatched";  // label of metrics
  bool post = false;                       // POST; otherwise GET and HEAD, unless
  std::string_view methods = {};           // these are named, separated by ", "
};

Route FindRoute(std::string_view path);
// The {id} of a path that FindRoute found one in; ids may hold '/'.
std::string_view IdOf(RouteId route, std::string_view path);
// Whether the route takes the method.
bool TakesMethod(const Route& route, std::string_view method);
// E.g. "POST" or "GET, HEAD".
std::string AllowedMethods(const Route& route);
// The page behind GET /: one line per route.
std::string RoutesPage();

}  // namespace agentserve::gateway
