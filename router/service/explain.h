// Decisions as the wire shows them.
#pragma once

#include "agentserve/router/v1/router.pb.h"
#include "router/core/router_core.h"
#include "router/service/request_index.h"

namespace agentserve::router {

common::v1::IdentitySource ToProto(Identity i);
Identity ToIdentity(common::v1::IdentitySource s);

// What is known of one request: the note, and the core's record if it still has it.
void FillDecision(const RequestNote& note, const RouterCore& core, TimeNs now, v1::Decision* out);

}  // namespace agentserve::router
