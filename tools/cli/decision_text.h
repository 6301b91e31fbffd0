// A decision of the router for people. Pure.
#pragma once

#include <string>

#include "agentserve/router/v1/router.pb.h"

namespace agentserve::tools {

// Several lines: what the request was, whom it belonged to, why it waited, why it went where it went, where its time
// went.
std::string DecisionText(const router::v1::Decision& decision);
// One line for a list.
std::string DecisionLine(const router::v1::Decision& decision);
std::string DecisionLineHeader();

}  // namespace agentserve::tools
