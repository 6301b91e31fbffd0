// What `agentserve up` prints when the cluster is ready.
#pragma once

#include <string>
#include <vector>

#include "tools/cli/cluster_client.h"
#include "tools/cli/up/cluster_plan.h"

namespace agentserve::tools {

// An address that clients on this machine can use for a server listening on `host`.
std::string ClientHost(const std::string& host);

// `info` may be null: then capacity is left out.
std::string ReadyBanner(const UpConfig& config, const std::vector<ManagedChild>& children, const ReadyReport& report,
                        const ClusterSummary* info);

}  // namespace agentserve::tools
