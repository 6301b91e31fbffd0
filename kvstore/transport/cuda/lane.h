// A stream with pinned host memory for staging, and a pool of them.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kv_layout.h"
#include "kernels/kv_copy/kv_copy_cuda.h"

namespace agentserve::kvstore::cuda {

// OK, or INTERNAL with the name of the error and what was done.
absl::Status Check(cudaError_t error, const char* what);

// Pinned host memory, readable and writable by kernels of every device of this process.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& o) noexcept { *this = std::move(o); }
  PinnedBuffer& operator=(PinnedBuffer&& o) noexcept;
  static absl::StatusOr<PinnedBuffer> Make(size_t bytes);
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// One thread at a time. Made for one device; the user sets that device current first (Lanes::Lease does).
class Lane {
 public:
  // Two halves of this size: large enough that a copy's fixed cost (some microseconds) does not count, small enough
  // that lanes are cheap.
  static constexpr size_t kHalfBytes = 4 << 20;
  // Most blocks of one kernel: 8 GiB of Llama 3.2 1B's; longer lists take several.
  static constexpr size_t kMostBlocks = 1 << 14;

  // `high_priority`: before the model's kernels; else after them.
  static absl::StatusOr<std::unique_ptr<Lane>> Make(int device, bool high_priority);
  ~Lane();

  cudaStream_t stream() const { return stream_; }
  int device() const { return device_; }
  // Pinned memory to stage in, made when it is first asked for.
  absl::StatusOr<std::byte*> Half(size_t i);
  cudaEvent_t event(size_t i) const { return events_[i]; }
  // Most pieces of one half: those of the smallest blocks, 4 KiB a layer.
  static constexpr size_t kMostPieces = kHalfBytes / 4096;
  // Starts copies between half `i` and device memory. The list is free again when they are complete.
  absl::Status CopyPieces(size_t i, std::span<const kernels::cuda::KvPiece> pieces);

  // The list on the device; kernels read it often, and host memory over a link is too slow for that. At most
  // kMostBlocks. Valid for this stream until the next call, before which all kernels that read it have ended. The same
  // list as last time, as for each layer of a pull, is not sent again.
  absl::StatusOr<const kernels::cuda::KvMove*> Upload(std::span<const kernels::cuda::KvMove> blocks);
  // What a kernel of this lane needs to sum digests into and to tell the host of its end. WaitDone waits for the last
  // one; then the sums are in sums() if `sums` was asked for. One such kernel at a time.
  void Attach(const engine::KvLayout& layout, bool sums, kernels::cuda::KvGatherParams* params);
  absl::Status WaitDone();
  const uint64_t* sums() const { return reinterpret_cast<const uint64_t*>(results_.data() + kResultsAt); }
  // Makes the sums of a kernel without `out` go on in the next one's.
  static void KeepSums(kernels::cuda::KvGatherParams* params) {
    params->sums.out = nullptr;
    params->done = {};
  }

  absl::Status Synchronize() { return Check(cudaStreamSynchronize(stream_), "KV copy"); }

 private:
  static constexpr size_t kResultsAt = 64;  // after the word that says that a kernel is over
  explicit Lane(int device) : device_(device) {}
  uint32_t DoneWord() const;

  const int device_;
  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, 2> events_{};
  PinnedBuffer staging_, list_, results_;
  size_t listed_ = 0;             // blocks on the device
  std::byte* scratch_ = nullptr;  // device memory: arrivals, sums, list
  uint32_t ticket_ = 0;
};

// Lanes of one device, made on demand and kept: as many as threads ever copied at the same time, that is pullers of
// peers (at most 64) or threads of the gRPC server, at 8 MiB of pinned memory each. Thread-safe.
class Lanes {
 public:
  Lanes(int device, bool high_priority) : device_(device), high_priority_(high_priority) {}

  // A lane for the caller alone, until the lease is destroyed; its device is the thread's current one.
  class Lease {
   public:
    Lease(Lanes* lanes, std::unique_ptr<Lane> lane) : lanes_(lanes), lane_(std::move(lane)) {}
    ~Lease() {
      if (lane_) lanes_->Return(std::move(lane_));
    }
    Lease(Lease&&) = default;
    Lane* operator->() const { return lane_.get(); }
    Lane& operator*() const { return *lane_; }

   private:
    Lanes* lanes_;
    std::unique_ptr<Lane> lane_;
  };
  absl::StatusOr<Lease> Take();
  // Makes lanes until `count` are free, with memory to stage in if asked for: pinning memory stops the device, which is
  // better done before the first step.
  absl::Status Warm(size_t count, bool staging);

 private:
  void Return(std::unique_ptr<Lane> lane);

  const int device_;
  const bool high_priority_;
  std::mutex mu_;  // guards below
  std::vector<std::unique_ptr<Lane>> free_;
};

}  // namespace agentserve::kvstore::cuda
