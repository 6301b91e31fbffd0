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
  kIndex,
};

struct Route {
  RouteId id = RouteId::kNone;
  std::string_view pattern = "unmatched";  // label of metrics
  bool post = false;                       // POST; otherwise GET and HEAD
};

Route FindRoute(std::string_view path);
// Whether the route takes the method.
bool TakesMethod(const Route& route, std::string_view method);
// "POST" or "GET, HEAD".
std::string AllowedMethods(const Route& route);
// The page behind GET /: one line per route.
std::string RoutesPage();

}  // namespace agentserve::gateway
