#include "kvstore/transport/peer_pool.h"

#include <algorithm>

#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/digest.h"
#include "kvstore/transport/peer_pool_impl.h"

namespace agentserve::kvstore {

using base::Field;
using SteadyClock = std::chrono::steady_clock;

absl::StatusOr<TransportMode> ParseTransportMode(std::string_view text) {
  if (text == "auto") return TransportMode::kAuto;
  if (text == "mapped") return TransportMode::kMapped;
  if (text == "stream") return TransportMode::kStream;
  return absl::InvalidArgumentError(base::StrCat("KV transport '", text, "' is not known; auto, mapped or stream"));
}

PeerEndpoint FromProto(const common::v1::KvEndpoint& proto) {
  return {proto.worker_id(),    proto.incarnation(),          proto.unix_socket(),
          proto.grpc_address(), proto.layout().fingerprint(), proto.num_blocks()};
}

BlockRef FromProto(const common::v1::KvBlockRef& proto) {
  return {proto.index(), proto.epoch(), proto.tokens(), proto.digest()};
}

std::vector<BlockRef> FromProto(const common::v1::KvHandle& proto) {
  std::vector<BlockRef> refs;
  refs.reserve(static_cast<size_t>(proto.blocks_size()));
  for (const auto& b : proto.blocks()) refs.push_back(FromProto(b));
  return refs;
}

void ToProto(const BlockRef& ref, common::v1::KvBlockRef* proto) {
  proto->set_index(ref.index);
  proto->set_epoch(ref.epoch);
  proto->set_tokens(ref.tokens);
  proto->set_digest(ref.digest);
}

void ToProto(const engine::KvLayout& layout, common::v1::KvLayout* proto) {
  proto->set_num_layers(layout.num_layers);
  proto->set_num_kv_heads(layout.num_kv_heads);
  proto->set_head_dim(layout.head_dim);
  proto->set_block_tokens(layout.block_tokens);
  proto->set_dtype(layout.dtype == engine::KvDtype::kBf16 ? "bf16" : "fp32");
  proto->set_fingerprint(layout.Fingerprint());
}

std::string_view ToString(ReadOutcome outcome) {
  switch (outcome) {
    case ReadOutcome::kOk:
      return "ok";
    case ReadOutcome::kStaleEpoch:
      return "stale-epoch";
    case ReadOutcome::kDigestMismatch:
      return "digest-mismatch";
    case ReadOutcome::kPeerGone:
      return "peer-gone";
  }
  return "unknown";
}

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
    if (mapped.ok() || options.mode == TransportMode::kMapped) return mapped;
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

absl::Status PeerPool::CheckRead(std::span<const BlockRef> refs, uint32_t first_layer, uint32_t count,
                                 const engine::KvPoolView& dst, std::span<const engine::BlockId> dst_blocks) const {
  if (refs.size() != dst_blocks.size()) {
    return absl::InvalidArgumentError(
        base::StrCat("KV read: ", refs.size(), " source blocks but ", dst_blocks.size(), " destinations"));
  }
  if (dst.layout != options_.layout) return absl::InvalidArgumentError("KV read: the destination has another layout");
  const uint32_t layers = options_.layout.num_layers;
  if (first_layer > layers || count > layers - first_layer) {
    return absl::InvalidArgumentError(base::StrCat("KV read: layers [", first_layer, ", +", count, ") of ", layers));
  }
  for (size_t i = 0; i < refs.size(); ++i) {
    if (refs[i].index >= peer_.num_blocks || dst_blocks[i].value >= dst.num_blocks ||
        refs[i].tokens > options_.layout.block_tokens) {
      return absl::InvalidArgumentError(base::StrCat("KV read: block ", refs[i].index, " (", refs[i].tokens,
                                                     " tokens) of ", peer_.num_blocks, " to block ",
                                                     dst_blocks[i].value, " of ", dst.num_blocks, ": out of range"));
    }
  }
  return absl::OkStatus();
}

absl::Status PeerPool::ReadLayers(std::span<const BlockRef> refs, uint32_t first_layer, uint32_t count,
                                  const engine::KvPoolView& dst, std::span<const engine::BlockId> dst_blocks) {
  AS_RETURN_IF_ERROR(CheckRead(refs, first_layer, count, dst, dst_blocks));
  if (refs.empty() || count == 0) return absl::OkStatus();
  const auto begin = SteadyClock::now();
  const absl::Status status = DoRead(refs, first_layer, count, dst, dst_blocks);
  if (status.ok()) {
    const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now() - begin).count();
    bytes_.fetch_add(refs.size() * count * options_.layout.LayerBytes(), std::memory_order_relaxed);
    nanoseconds_.fetch_add(static_cast<uint64_t>(spent), std::memory_order_relaxed);
    reads_.fetch_add(1, std::memory_order_relaxed);
  }
  return status;
}

ValidateResult PeerPool::Validate(std::span<const BlockRef> refs, const engine::KvPoolView& dst,
                                  std::span<const engine::BlockId> dst_blocks) {
  if (absl::Status s = CheckRead(refs, 0, options_.layout.num_layers, dst, dst_blocks); !s.ok()) {
    return {ReadOutcome::kDigestMismatch, 0, base::MessageOf(s)};
  }
  for (size_t i = 0; i < refs.size(); ++i) {
    const BlockRef& ref = refs[i];
    std::string detail;
    if (const ReadOutcome epoch = CheckEpoch(ref, &detail); epoch != ReadOutcome::kOk) return {epoch, i, detail};
    const uint64_t digest = BlockDigest(options_.layout, dst.Block(dst_blocks[i].value), ref.tokens);
    if (ref.digest == 0 || digest != ref.digest) {
      return {ReadOutcome::kDigestMismatch, i,
              base::StrCat("block ", ref.index, " of ", peer_.worker_id, ", epoch ", ref.epoch, ", ", ref.tokens,
                           " tokens: digest of the copy is ", digest, ", expected ", ref.digest)};
    }
  }
  return {};
}

absl::Status PeerPool::Probe() {
  const size_t block_bytes = options_.layout.BlockBytes();
  const size_t blocks = std::clamp<size_t>(options_.probe_bytes / block_bytes, 1, peer_.num_blocks);
  std::vector<std::byte> scratch(std::min(blocks * block_bytes, std::max(options_.probe_bytes, block_bytes)));
  const auto begin = SteadyClock::now();
  const auto limit = begin + std::chrono::milliseconds(options_.probe_ms);
  // The first round faults pages in and opens connections; it is timed only if it is the only one.
  for (int round = 0; round < 8; ++round) {
    const auto start = SteadyClock::now();
    if (round > 0 && start > limit) break;
    AS_ASSIGN_OR_RETURN(const size_t bytes, ProbeOnce(scratch));
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - start).count();
    gb_per_s_ = std::max(gb_per_s_, static_cast<double>(bytes) / 1e9 / std::max(seconds, 1e-9));
  }
  AS_LOG(kInfo, "kv.transport.probed") << Field("peer", peer_.worker_id) << Field("transport", transport())
                                       << Field("gb_per_s", gb_per_s_) << Field("bytes", scratch.size());
  return absl::OkStatus();
}

TransferCounters PeerPool::counters() const {
  return {bytes_.load(std::memory_order_relaxed),
          static_cast<double>(nanoseconds_.load(std::memory_order_relaxed)) / 1e9,
          reads_.load(std::memory_order_relaxed)};
}

}  // namespace agentserve::kvstore
