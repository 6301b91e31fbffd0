#include "kvstore/transport/layer_pull.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace agentserve::kvstore {

LayerPull::LayerPull(const engine::KvLayout& layout, Blocks blocks)
    : layout_(layout),
      blocks_(std::move(blocks)),
      copied_(blocks_.refs.size(), 0),
      sums_(blocks_.refs.size(), 0),
      complete_(blocks_.first >= blocks_.refs.size()) {
  AS_CHECK_EQ(blocks_.refs.size(), blocks_.to.size());
}

// In runs of blocks that lack the same layers.
absl::Status LayerPull::Advance(PeerPool& peer, const engine::KvPoolView& dst,
                                const engine::PrefillProgress& progress) {
  const auto ready_layers = [&](size_t i) -> uint32_t {
    const size_t end = i * layout_.block_tokens + blocks_.refs[i].tokens;
    if (end <= progress.complete) return layout_.num_layers;
    return end <= progress.chunk_end ? std::min(progress.layers, layout_.num_layers) : 0;
  };
  const size_t n = blocks_.refs.size();
  bool all = true;
  for (size_t i = blocks_.first; i < n;) {
    const uint32_t ready = ready_layers(i), from = copied_[i];
    if (ready <= from) {
      all = all && from == layout_.num_layers;
      ++i;
      continue;
    }
    const size_t most = std::max<size_t>(1, peer.bytes_per_read() / ((ready - from) * layout_.LayerBytes()));
    size_t end = i + 1;
    while (end < n && end - i < most && copied_[end] == from && ready_layers(end) == ready) ++end;
    AS_RETURN_IF_ERROR(CopyRange(peer, dst, i, end, ready));
    all = all && ready == layout_.num_layers;
    i = end;
  }
  complete_ = all;
  return absl::OkStatus();
}

absl::Status LayerPull::CopyRange(PeerPool& peer, const engine::KvPoolView& dst, size_t begin, size_t end,
                                  uint32_t layers) {
  using SteadyClock = std::chrono::steady_clock;
  const uint32_t from = copied_[begin];
  const size_t n = end - begin;
  const auto started = SteadyClock::now();
  const absl::Status status = peer.ReadLayers(std::span(blocks_.refs).subspan(begin, n), from, layers - from, dst,
                                              std::span<const engine::BlockId>(blocks_.to).subspan(begin, n),
                                              std::span(sums_).subspan(begin, n));
  copy_ns_ += std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now() - started).count();
  AS_RETURN_IF_ERROR(status);
  std::fill(copied_.begin() + static_cast<ptrdiff_t>(begin), copied_.begin() + static_cast<ptrdiff_t>(end), layers);
  bytes_ += n * (layers - from) * layout_.LayerBytes();
  return absl::OkStatus();
}

absl::Status LayerPull::Finish(PeerPool& peer, const engine::KvPoolView& dst) {
  if (complete_) return absl::OkStatus();
  const auto tokens = static_cast<uint32_t>(blocks_.refs.size()) * layout_.block_tokens;
  return Advance(peer, dst, {tokens, tokens, 0});
}

bool LayerPull::SetFinal(std::vector<BlockRef> refs) {
  if (refs.size() != blocks_.refs.size()) return false;
  for (size_t i = 0; i < refs.size(); ++i) {
    const BlockRef& known = blocks_.refs[i];
    if (refs[i].index != known.index || refs[i].epoch != known.epoch) return false;
    // Other rows count than those that were summed.
    if (i >= blocks_.first && copied_[i] > 0 && refs[i].tokens != known.tokens) sums_known_ = false;
  }
  blocks_.refs = std::move(refs);
  return true;
}

ValidateResult LayerPull::Validate(PeerPool& peer, const engine::KvPoolView& dst) const {
  const size_t first = std::min(blocks_.first, blocks_.refs.size());
  std::span<const uint64_t> sums;
  if (sums_known_) sums = std::span(sums_).subspan(first);
  ValidateResult result = peer.Validate(std::span(blocks_.refs).subspan(first), dst,
                                        std::span<const engine::BlockId>(blocks_.to).subspan(first), sums);
  result.position += first;
  return result;
}

void PullPace::Came(int64_t now_ns) {
  const int64_t interval = now_ns - last_ns_;
  // A pause between prompts says nothing about layers.
  if (last_ns_ != 0 && interval < 100'000'000) {
    interval_ns_ = interval_ns_ == 0 ? interval : (3 * interval_ns_ + interval) / 4;
  }
  last_ns_ = now_ns;
}

int64_t PullPace::SleepNs(int64_t now_ns) const {
  constexpr int64_t kShort = 20'000, kLong = 1'000'000;
  const int64_t since = now_ns - last_ns_;
  if (last_ns_ == 0 || since > 20 * interval_ns_ + kLong) return kShort * 10;  // another prompt runs, or none
  if (interval_ns_ == 0 || since > 2 * interval_ns_ + kEarlyNs) return kShort;
  const int64_t due = interval_ns_ * 7 / 8 - kEarlyNs;
  return since >= due ? 0 : std::min(due - since, kLong);
}

}  // namespace agentserve::kvstore
