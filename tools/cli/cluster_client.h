// What the router says about its cluster, without generated message types.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"

namespace agentserve::tools {

struct ClusterSummary {
  struct Worker {
    std::string id, role, state, address;
    uint32_t running = 0, waiting = 0, waiting_tokens = 0;
    uint32_t total_blocks = 0, available_blocks = 0, cached_blocks = 0;
    uint64_t preemptions = 0, steps = 0, silent_ms = 0;
    double tokens_per_s = 0;
  };
  std::string model_id, policy;
  uint32_t context_length = 0;  // 0 = not asked
  uint32_t block_tokens = 0;    // 0 = not asked
  uint32_t queued = 0, running = 0;
  uint64_t accepted_total = 0, finished_total = 0;
  double tokens_per_s = 0;
  bool kvstore_connected = false;
  std::vector<Worker> workers;
};

// One state, with the model's figures. Errors name the address.
absl::StatusOr<ClusterSummary> FetchClusterSummary(const std::string& router, base::TimeNs timeout);

// Calls `on_state` for each state until it returns false (then OK) or the stream breaks.
absl::Status WatchCluster(const std::string& router, uint32_t interval_ms,
                          const std::function<bool(const ClusterSummary&)>& on_state);

// Asks grpc.health.v1.Health. OK = SERVING.
absl::Status CheckGrpcHealth(const std::string& address, const std::string& service, base::TimeNs timeout);

}  // namespace agentserve::tools
