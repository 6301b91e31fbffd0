// Blocks in memory of this host that somebody else owns (the pool's file, a test's buffer).
#pragma once

#include <functional>
#include <vector>

#include "kvstore/transport/block_memory.h"

namespace agentserve::kvstore {

// Ordinary memory; pages exist once they are touched.
absl::StatusOr<std::unique_ptr<HostBuffer>> MapHostBuffer(size_t bytes);

// Sums of blocks that the host reads at block(index); added at once.
class HostLayerSums final : public LayerSums {
 public:
  HostLayerSums(const engine::KvLayout& layout, std::span<const DigestItem> items,
                std::function<const std::byte*(uint32_t)> block)
      : layout_(layout), items_(items.begin(), items.end()), block_(std::move(block)), sums_(items.size(), 0) {}
  absl::Status Add(uint32_t first, uint32_t count) override;
  absl::Status Take(std::span<uint64_t> sums) override;

 private:
  const engine::KvLayout layout_;
  const std::vector<DigestItem> items_;
  const std::function<const std::byte*(uint32_t)> block_;
  std::vector<uint64_t> sums_;
};

class HostMemory final : public BlockMemory {
 public:
  // `view` points to memory that outlives this.
  explicit HostMemory(const engine::KvPoolView& view) : view_(view) {}

  const engine::KvPoolView& view() const override { return view_; }
  const MemoryFacts& facts() const override { return facts_; }
  std::string name() const override { return "host"; }
  absl::Status CopyOut(std::span<const PieceOut> pieces) override;
  absl::Status CopyIn(std::span<const PieceIn> pieces) override;
  absl::StatusOr<std::unique_ptr<LayerSums>> BeginSums(std::span<const DigestItem> items) override;
  absl::StatusOr<std::unique_ptr<HostBuffer>> NewHostBuffer(size_t bytes) override { return MapHostBuffer(bytes); }
  absl::StatusOr<base::UniqueFd> Export() override;
  absl::StatusOr<std::unique_ptr<PeerMemory>> Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                     const ImportOptions& options) override;

 private:
  const engine::KvPoolView view_;
  const MemoryFacts facts_;
};

}  // namespace agentserve::kvstore
