// Blocks in memory of this host that somebody else owns (the pool's file, a test's buffer).
#pragma once

#include "kvstore/transport/block_memory.h"

namespace agentserve::kvstore {

// Ordinary memory; pages exist once they are touched.
absl::StatusOr<std::unique_ptr<HostBuffer>> MapHostBuffer(size_t bytes);

class HostMemory final : public BlockMemory {
 public:
  // `view` points to memory that outlives this.
  explicit HostMemory(const engine::KvPoolView& view) : view_(view) {}

  const engine::KvPoolView& view() const override { return view_; }
  const MemoryFacts& facts() const override { return facts_; }
  std::string name() const override { return "host"; }
  absl::Status CopyOut(std::span<const PieceOut> pieces) override;
  absl::Status CopyIn(std::span<const PieceIn> pieces) override;
  absl::StatusOr<std::unique_ptr<HostBuffer>> NewHostBuffer(size_t bytes) override { return MapHostBuffer(bytes); }
  absl::Status Digests(DigestAlgorithm algorithm, std::span<const DigestItem> items, std::span<uint64_t> out) override;
  absl::StatusOr<base::UniqueFd> Export() override;
  absl::StatusOr<std::unique_ptr<PeerMemory>> Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                     const ImportOptions& options) override;

 private:
  const engine::KvPoolView view_;
  const MemoryFacts facts_;
};

}  // namespace agentserve::kvstore
