#include "kvstore/transport/peer_pool.h"

#include <algorithm>

#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/host_memory.h"

namespace agentserve::kvstore {

using base::Field;
using SteadyClock = std::chrono::steady_clock;

absl::StatusOr<TransportMode> ParseTransportMode(std::string_view text) {
  if (text == "auto") return TransportMode::kAuto;
  if (text == "mapped") return TransportMode::kMapped;
  if (text == "staged") return TransportMode::kStaged;
  if (text == "stream") return TransportMode::kStream;
  return absl::InvalidArgumentError(
      base::StrCat("KV transport '", text, "' is not known; auto, mapped, staged or stream"));
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

absl::Status PeerPool::CheckRead(std::span<const BlockRef> refs, uint32_t first_layer, uint32_t count,
                                 const engine::KvPoolView& dst, std::span<const engine::BlockId> dst_blocks) const {
  if (refs.size() != dst_blocks.size()) {
    return absl::InvalidArgumentError(
        base::StrCat("KV read: ", refs.size(), " source blocks but ", dst_blocks.size(), " destinations"));
  }
  if (options_.memory != nullptr && options_.memory->view().base != dst.base) {
    return absl::InvalidArgumentError("KV read: the destination is not the pool that this peer was connected for");
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
                                  const engine::KvPoolView& dst, std::span<const engine::BlockId> dst_blocks,
                                  std::span<uint64_t> sums) {
  AS_RETURN_IF_ERROR(CheckRead(refs, first_layer, count, dst, dst_blocks));
  if (refs.empty() || count == 0) return absl::OkStatus();
  const auto begin = SteadyClock::now();
  HostMemory host(dst);
  std::vector<uint64_t> read(sums.size());
  AS_RETURN_IF_ERROR(
      DoRead(refs, {first_layer, count}, options_.memory != nullptr ? *options_.memory : host, dst_blocks, read));
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += read[i];
  const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now() - begin).count();
  bytes_.fetch_add(refs.size() * count * options_.layout.LayerBytes(), std::memory_order_relaxed);
  nanoseconds_.fetch_add(static_cast<uint64_t>(spent), std::memory_order_relaxed);
  reads_.fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status PeerPool::SumCopies(std::span<const BlockRef> refs, LayerRange layers, BlockMemory& local,
                                 std::span<const engine::BlockId> dst_blocks, std::span<uint64_t> sums) {
  if (sums.empty()) return absl::OkStatus();
  std::vector<DigestItem> items(refs.size());
  for (size_t i = 0; i < refs.size(); ++i) items[i] = {dst_blocks[i].value, refs[i].tokens};
  return local.Sums(items, layers.first, layers.count, sums);
}

ValidateResult PeerPool::Validate(std::span<const BlockRef> refs, const engine::KvPoolView& dst,
                                  std::span<const engine::BlockId> dst_blocks, std::span<const uint64_t> sums) {
  if (absl::Status s = CheckRead(refs, 0, options_.layout.num_layers, dst, dst_blocks); !s.ok()) {
    return {ReadOutcome::kDigestMismatch, 0, base::MessageOf(s)};
  }
  // Only blocks before the first one that was reused count.
  size_t fresh = 0;
  ValidateResult stale;
  for (; fresh < refs.size() && stale.ok(); ++fresh) {
    stale.outcome = CheckEpoch(refs[fresh], &stale.detail);
    stale.position = fresh;
  }
  if (!stale.ok()) --fresh;
  std::vector<uint64_t> computed;
  if (sums.empty()) {
    computed.resize(fresh);
    HostMemory host(dst);
    BlockMemory& local = options_.memory != nullptr ? *options_.memory : host;
    const LayerRange all{0, options_.layout.num_layers};
    if (absl::Status s = SumCopies(refs.first(fresh), all, local, dst_blocks.first(fresh), computed); !s.ok()) {
      return {ReadOutcome::kDigestMismatch, 0, base::MessageOf(s)};
    }
    sums = computed;
  }
  for (size_t i = 0; i < fresh; ++i) {
    const BlockRef& ref = refs[i];
    const uint64_t digest = DigestOfSum(sums[i], ref.tokens);
    if (ref.digest == 0 || digest != ref.digest) {
      return {ReadOutcome::kDigestMismatch, i,
              base::StrCat("block ", ref.index, " of ", peer_.worker_id, ", epoch ", ref.epoch, ", ", ref.tokens,
                           " tokens: digest of the copy is ", digest, ", expected ", ref.digest)};
    }
  }
  return stale.ok() ? ValidateResult() : stale;
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
    if (round > 1 && start > limit) break;
    AS_ASSIGN_OR_RETURN(const size_t bytes, ProbeOnce(scratch));
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - start).count();
    gb_per_s_ = std::max(gb_per_s_, static_cast<double>(bytes) / 1e9 / std::max(seconds, 1e-9));
  }
  LogProbe(scratch.size());
  return absl::OkStatus();
}

void PeerPool::LogProbe(size_t bytes) const {
  AS_LOG(kInfo, "kv.transport.probed") << Field("peer", peer_.worker_id) << Field("transport", transport())
                                       << Field("gb_per_s", gb_per_s_) << Field("bytes", bytes);
}

TransferCounters PeerPool::counters() const {
  return {bytes_.load(std::memory_order_relaxed),
          static_cast<double>(nanoseconds_.load(std::memory_order_relaxed)) / 1e9,
          reads_.load(std::memory_order_relaxed)};
}

}  // namespace agentserve::kvstore
