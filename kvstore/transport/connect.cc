#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/peer_pool.h"
#include "kvstore/transport/peer_pool_impl.h"

namespace agentserve::kvstore {

using base::Field;

absl::StatusOr<std::unique_ptr<PeerPool>> PeerPool::Connect(const PeerEndpoint& peer, const PeerOptions& options) {
  const uint64_t own = options.layout.Fingerprint();
  if (peer.layout_fingerprint != own) {
    return absl::FailedPreconditionError(base::StrCat(
        "KV pool of ", peer.worker_id, ": layout fingerprint ", peer.layout_fingerprint, " differs from ours, ", own,
        ": both workers must run the same model with the same --block-tokens"));
  }
  std::string problem;
  if (options.mode != TransportMode::kStream) {
    auto mapped = ConnectMapped(peer, options);
    if (mapped.ok() || options.mode != TransportMode::kAuto) return mapped;
    // Another process or model behind the socket: the stream path would meet the same one.
    if (absl::IsFailedPrecondition(mapped.status())) return mapped;
    problem = base::MessageOf(mapped.status());
  }
  AS_ASSIGN_OR_RETURN(std::unique_ptr<PeerPool> stream, ConnectStream(peer, options));
  if (!problem.empty()) {
    stream->problem_ = base::StrCat("mapped path does not work: ", problem);
    AS_LOG(kWarn, "kv.transport.fallback")
        << Field("peer", peer.worker_id) << Field("transport", "stream") << Field("problem", stream->problem_);
  }
  return stream;
}

}  // namespace agentserve::kvstore
