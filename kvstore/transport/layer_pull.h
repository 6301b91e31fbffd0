// One prompt's blocks, pulled behind the owner's prefill: layers are copied, and their digests summed, as they become
// final; at the end only the last layer is left to do and the sums are compared.
//
//   LayerPull pull(layout, {refs, to, first});
//   while the prompt is not finished:  pull.Advance(peer, view, *peer.LoadProgress(slot, tag))
//   when the final references come:    pull.SetFinal(refs), pull.Finish(peer, view), pull.Validate(peer, view)
#pragma once

#include <cstdint>
#include <vector>

#include "kvstore/transport/peer_pool.h"

namespace agentserve::kvstore {

// Not thread-safe.
class LayerPull {
 public:
  struct Blocks {
    std::vector<BlockRef> refs;       // of the prompt, from its start
    std::vector<engine::BlockId> to;  // as many
    size_t first = 0;                 // blocks before it are here already
  };
  LayerPull() = default;
  LayerPull(const engine::KvLayout& layout, Blocks blocks);

  // Copies what is final at `progress` and not here yet. Errors as PeerPool::ReadLayers; it may be called again.
  absl::Status Advance(PeerPool& peer, const engine::KvPoolView& dst, const engine::PrefillProgress& progress);
  // The owner has written everything: copies what is missing.
  absl::Status Finish(PeerPool& peer, const engine::KvPoolView& dst);
  // All layers of all blocks are here.
  bool complete() const { return complete_; }

  // The references with their digests. False: they name other blocks than the first ones.
  bool SetFinal(std::vector<BlockRef> refs);
  // A copy was changed: Validate reads them all again.
  void ForgetSums() { sums_known_ = false; }
  // As PeerPool::Validate; positions count from the start of the prompt.
  ValidateResult Validate(PeerPool& peer, const engine::KvPoolView& dst) const;

  const std::vector<BlockRef>& refs() const { return blocks_.refs; }
  uint64_t bytes() const { return bytes_; }
  int64_t copy_ns() const { return copy_ns_; }

 private:
  absl::Status CopyRange(PeerPool& peer, const engine::KvPoolView& dst, size_t begin, size_t end, uint32_t layers);

  engine::KvLayout layout_;
  Blocks blocks_;
  std::vector<uint32_t> copied_;  // per block: its layers [0, copied) are here
  std::vector<uint64_t> sums_;    // per block: digest sum of those
  bool sums_known_ = true;
  bool complete_ = false;
  uint64_t bytes_ = 0;
  int64_t copy_ns_ = 0;
};

// When to look at a peer's progress words again. Layers come at an even pace: sleeping until shortly before the next
// one and spinning from then on finds it at once, for a part of a core. Time is passed in. Not thread-safe.
class PullPace {
 public:
  // Something came.
  void Came(int64_t now_ns);
  // How long to sleep; 0 = look again at once.
  int64_t SleepNs(int64_t now_ns) const;

 private:
  // From waking a thread to its first instruction, and how long a layer's end may be early.
  static constexpr int64_t kEarlyNs = 60'000;
  int64_t last_ns_ = 0, interval_ns_ = 0;
};

}  // namespace agentserve::kvstore
