// Reader side: another worker's KV pool, by read-only mapping (of host memory, or of a GPU's memory, directly or staged
// through the host) or by gRPC stream.
//
//   PeerEndpoint peer = FromProto(connect_peer.endpoint());
//   auto pool = PeerPool::Connect(peer, {.layout = my_layout, .mode = TransportMode::kAuto});
//   ... while the owner prefills:
//   pool->WaitProgress(slot, tag, last, timeout)  ->  pool->ReadLayers(refs, first_layer, count, my_view, my_blocks)
//   ... when the final references (with digests) are known:
//   ValidateResult v = pool->Validate(refs, my_view, my_blocks);   // anything but kOk: recompute
//
// Thread-safe: several threads may read at the same time. The owner's death never crashes a reader.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/kv_layout.h"
#include "kvstore/block_ref.h"
#include "kvstore/transport/block_memory.h"
#include "kvstore/transport/digest.h"

namespace agentserve::kvstore {

enum class TransportMode { kAuto, kMapped, kStaged, kStream };
// "auto", "mapped", "staged", "stream"; anything else is INVALID_ARGUMENT.
absl::StatusOr<TransportMode> ParseTransportMode(std::string_view text);

struct PeerEndpoint {
  std::string worker_id;
  uint64_t incarnation = 0;
  std::string unix_socket;   // empty = cannot be mapped
  std::string grpc_address;  // empty = cannot be streamed
  uint64_t layout_fingerprint = 0;
  uint32_t num_blocks = 0;
};

struct PeerOptions {
  engine::KvLayout layout;  // the reader's own
  // The reader's pool, into which blocks are copied; outlives the PeerPool. Null: host memory behind the view that is
  // given to each call.
  BlockMemory* memory = nullptr;
  // kAuto: mapped, else staged, else stream, with problem() saying why. kMapped, kStaged: that or an error. kStream:
  // stream.
  TransportMode mode = TransportMode::kAuto;
  int connect_timeout_ms = 2000;
  // Limit of one Read call of the stream path.
  int read_timeout_ms = 10000;
  // Connections of the stream path; 0 = one for two cores, at most 8.
  int stream_connections = 0;
  // Bytes that the probe copies at most; it also stops after probe_ms.
  size_t probe_bytes = 16 << 20;
  int probe_ms = 20;
};

enum class ReadOutcome { kOk, kStaleEpoch, kDigestMismatch, kPeerGone };
std::string_view ToString(ReadOutcome outcome);

struct ValidateResult {
  ReadOutcome outcome = ReadOutcome::kOk;
  size_t position = 0;  // in `refs`, of the first bad one
  std::string detail;   // for the log
  bool ok() const { return outcome == ReadOutcome::kOk; }
};

// Totals since Connect; the probe is not counted.
struct TransferCounters {
  uint64_t bytes = 0;
  double seconds = 0;  // inside ReadLayers, summed over threads
  uint64_t reads = 0;
};

class PeerPool {
 public:
  // Connects, verifies identity, incarnation, layout and size, and times a copy of real blocks.
  // INVALID_ARGUMENT: the endpoint can never work. FAILED_PRECONDITION: it is another worker, process, layout or size
  // than announced (the message names both values). UNAVAILABLE / DEADLINE_EXCEEDED: not reachable now.
  static absl::StatusOr<std::unique_ptr<PeerPool>> Connect(const PeerEndpoint& peer, const PeerOptions& options);
  virtual ~PeerPool() = default;

  // Copies layers [first_layer, first_layer + count) of refs[i] to block dst_blocks[i] of `dst` (same layout; the view
  // of options.memory, if there is one). The copy is complete on return; its content is not to be believed before
  // Validate. Adds the digest sum of the copied layers' first refs[i].tokens rows to sums[i], unless `sums` is empty;
  // after an error they are as before. Sizes of the spans are equal. Errors: INVALID_ARGUMENT (ranges),
  // ABORTED (stream path: an epoch changed), UNAVAILABLE (peer gone; mapped reads never fail so).
  absl::Status ReadLayers(std::span<const BlockRef> refs, uint32_t first_layer, uint32_t count,
                          const engine::KvPoolView& dst, std::span<const engine::BlockId> dst_blocks,
                          std::span<uint64_t> sums = {});
  // All layers.
  absl::Status ReadBlocks(std::span<const BlockRef> refs, const engine::KvPoolView& dst,
                          std::span<const engine::BlockId> dst_blocks) {
    return ReadLayers(refs, 0, options_.layout.num_layers, dst, dst_blocks);
  }

  // The progress of a prompt now. NOT_FOUND: the slot was released or reused. UNAVAILABLE: peer gone.
  virtual absl::StatusOr<engine::PrefillProgress> LoadProgress(uint32_t slot, uint64_t tag) = 0;
  // Waits until the progress differs from `last`, at most `timeout`. Errors as LoadProgress; DEADLINE_EXCEEDED: no
  // change.
  virtual absl::StatusOr<engine::PrefillProgress> WaitProgress(uint32_t slot, uint64_t tag,
                                                               engine::PrefillProgress last,
                                                               std::chrono::microseconds timeout) = 0;
  // The caller is done with this slot (stream path: ends its watch). Optional for slots that the owner releases.
  virtual void EndProgress(uint32_t slot, uint64_t tag) = 0;

  // Rules 2 and 3 of docs/kv_block_format.md section 5 over the copies. Digests of 0 in `refs` count as mismatch.
  // `sums`: what ReadLayers added up over all layers, of the same tokens; empty = the copies are digested here.
  ValidateResult Validate(std::span<const BlockRef> refs, const engine::KvPoolView& dst,
                          std::span<const engine::BlockId> dst_blocks, std::span<const uint64_t> sums = {});
  // The digest that the owner's control page shows for the block: 0 while it is not sealed with these tokens under this
  // epoch, and on paths without a page. Comes before the message that carries the same.
  virtual uint64_t SealedDigest(const BlockRef&) { return 0; }

  // False once the owner's process is known to be gone or unreachable. Cheap; may lag for the stream path.
  virtual bool PeerAlive() = 0;

  // "mapped", "staged" or "stream".
  virtual std::string_view transport() const = 0;
  // Bytes that one ReadLayers should copy at most, so that it lasts about a millisecond.
  virtual size_t bytes_per_read() const { return 8 << 20; }
  // How often it is worth looking at the progress of a prompt: often against the time of a layer. 0: as PullPace says,
  // since copies are so fast that finding a layer late is what costs.
  virtual std::chrono::microseconds poll_every() const { return std::chrono::microseconds(300); }
  // Measured by the probe: bytes / 1e9 / second.
  double gb_per_s() const { return gb_per_s_; }
  // Why the faster path is not used; empty = the configured path runs.
  const std::string& problem() const { return problem_; }
  const PeerEndpoint& endpoint() const { return peer_; }
  TransferCounters counters() const;

 protected:
  PeerPool(const PeerEndpoint& peer, const PeerOptions& options) : peer_(peer), options_(options) {}
  // As ReadLayers; stores the sums.
  virtual absl::Status DoRead(std::span<const BlockRef> refs, LayerRange layers, BlockMemory& local,
                              std::span<const engine::BlockId> dst_blocks, std::span<uint64_t> sums) = 0;
  // The sums of copies that are in `local`, for paths that do not sum while they copy.
  static absl::Status SumCopies(std::span<const BlockRef> refs, LayerRange layers, BlockMemory& local,
                                std::span<const engine::BlockId> dst_blocks, std::span<uint64_t> sums);
  // Rule 2; kOk or kStaleEpoch or kPeerGone.
  virtual ReadOutcome CheckEpoch(const BlockRef& ref, std::string* detail) = 0;
  // Copies blocks for timing only and returns bytes copied; 0 ends the probe.
  virtual absl::StatusOr<size_t> ProbeOnce(std::span<std::byte> scratch) = 0;
  // Measures gb_per_s_.
  virtual absl::Status Probe();
  void LogProbe(size_t bytes) const;
  bool into_device() const { return options_.memory != nullptr && options_.memory->facts().kind != MemoryKind::kHost; }
  // The spans fit the pools.
  absl::Status CheckRead(std::span<const BlockRef> refs, uint32_t first_layer, uint32_t count,
                         const engine::KvPoolView& dst, std::span<const engine::BlockId> dst_blocks) const;

  const PeerEndpoint peer_;
  const PeerOptions options_;
  double gb_per_s_ = 0;
  std::string problem_;

 private:
  std::atomic<uint64_t> bytes_{0}, nanoseconds_{0}, reads_{0};
};

}  // namespace agentserve::kvstore
