// Decisions of the router as JSON. Pure.
#pragma once

#include <string>

#include "agentserve/router/v1/router.pb.h"

namespace agentserve::gateway {

std::string DecisionJson(const router::v1::Decision& decision);
// {"object":"list","data":[..]}
std::string DecisionListJson(const router::v1::ListDecisionsResponse& decisions);

}  // namespace agentserve::gateway
