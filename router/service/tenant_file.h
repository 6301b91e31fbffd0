// The operator's file of tenants: shares, classes, bounds on hints (docs/agents.md, "Tenants").
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "router/core/config.h"

namespace agentserve::router {

// Reads JSON text into `config`: tenant_rules, tenant_share, tenant_class, tenant_policy. `what` names it in errors.
// INVALID_ARGUMENT names the tenant, the member and what is allowed; unknown members are errors, for a misspelt bound
// is none.
absl::Status ReadTenants(std::string_view text, std::string_view what, CoreConfig* config);
// The same for a file. NOT_FOUND.
absl::Status ReadTenantFile(const std::string& path, CoreConfig* config);

}  // namespace agentserve::router
