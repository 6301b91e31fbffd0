// The two implementations of PeerPool. Each connects, verifies and probes; errors as PeerPool::Connect.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvstore/transport/peer_pool.h"

namespace agentserve::kvstore {

absl::StatusOr<std::unique_ptr<PeerPool>> ConnectMapped(const PeerEndpoint& peer, const PeerOptions& options);
absl::StatusOr<std::unique_ptr<PeerPool>> ConnectStream(const PeerEndpoint& peer, const PeerOptions& options);

}  // namespace agentserve::kvstore
