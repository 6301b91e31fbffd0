// Blocks in the memory of a GPU: one allocation that other processes can map read-only.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "kvstore/transport/block_memory.h"
#include "kvstore/transport/cuda/driver.h"
#include "kvstore/transport/cuda/lane.h"

namespace agentserve::kvstore::cuda {

// UUID of a device of this process.
absl::StatusOr<std::array<uint8_t, 16>> DeviceUuid(int device);

class CudaMemory final : public BlockMemory {
 public:
  // Zeroed. Errors as NewDeviceMemory.
  static absl::StatusOr<std::unique_ptr<CudaMemory>> Make(int device, const engine::KvLayout& layout,
                                                          uint32_t num_blocks);

  const engine::KvPoolView& view() const override { return view_; }
  const MemoryFacts& facts() const override { return facts_; }
  std::string name() const override;
  absl::Status CopyOut(std::span<const PieceOut> pieces) override;
  absl::Status CopyIn(std::span<const PieceIn> pieces) override;
  absl::StatusOr<std::unique_ptr<LayerSums>> BeginSums(std::span<const DigestItem> items) override;
  absl::Status WarmUp(size_t copies) override { return pull_lanes_.Warm(copies, /*staging=*/true); }
  absl::StatusOr<std::unique_ptr<HostBuffer>> NewHostBuffer(size_t bytes) override;
  absl::StatusOr<base::UniqueFd> Export() override;
  absl::StatusOr<std::unique_ptr<PeerMemory>> Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                     const ImportOptions& options) override;

  int device() const { return device_; }
  Lanes& pull_lanes() { return pull_lanes_; }

 private:
  explicit CudaMemory(int device)
      : device_(device), pull_lanes_(device, /*high_priority=*/false), seal_lanes_(device, /*high_priority=*/true) {}
  friend class PinnedHostBuffer;
  // Whether a buffer of NewHostBuffer holds these bytes: then the device copies them by itself.
  bool IsPinned(const std::byte* host, size_t bytes);

  const int device_;
  MemoryFacts facts_;
  Mapping mapping_;
  engine::KvPoolView view_;
  // Bulk copies give way to the model's kernels; digests, which are short and which a step waits for, do not.
  Lanes pull_lanes_, seal_lanes_;
  std::mutex mu_;
  std::map<const std::byte*, size_t> pinned_;  // bytes by begin; guarded by mu_
};

}  // namespace agentserve::kvstore::cuda
