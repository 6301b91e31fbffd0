// A stream with pinned host memory for staging, and a pool of them.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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

  // `high_priority`: before the model's kernels; else after them.
  static absl::StatusOr<std::unique_ptr<Lane>> Make(int device, bool high_priority);
  ~Lane();

  cudaStream_t stream() const { return stream_; }
  int device() const { return device_; }
  std::byte* half(size_t i) const { return staging_.data() + i * kHalfBytes; }
  cudaEvent_t event(size_t i) const { return events_[i]; }
  // Copies `n` <= kMostPairs pairs of numbers, pair(i), to the device: first the first ones, then the second ones.
  // Kernels read them often, and host memory over a link is too slow for that. Uses half(0); the result is valid for
  // this stream until the next Upload, which must come after a Synchronize.
  static constexpr size_t kMostPairs = 1 << 16;
  template <typename Pair>
  absl::StatusOr<const uint32_t*> Upload(size_t n, const Pair& pair) {
    auto* host = reinterpret_cast<uint32_t*>(half(0));
    for (size_t i = 0; i < n; ++i) std::tie(host[i], host[n + i]) = pair(i);
    absl::Status s = Check(cudaMemcpyAsync(numbers_, host, 2 * n * sizeof(uint32_t), cudaMemcpyHostToDevice, stream_),
                           "block numbers");
    if (!s.ok()) return s;
    return numbers_;
  }
  absl::Status Synchronize() { return Check(cudaStreamSynchronize(stream_), "KV copy"); }

 private:
  explicit Lane(int device) : device_(device) {}
  const int device_;
  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, 2> events_{};
  PinnedBuffer staging_;
  uint32_t* numbers_ = nullptr;  // device memory
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
  // Makes lanes until `count` are free: pinning memory stops the device, which is better done before the first step.
  absl::Status Warm(size_t count);

 private:
  void Return(std::unique_ptr<Lane> lane);

  const int device_;
  const bool high_priority_;
  std::mutex mu_;  // guards below
  std::vector<std::unique_ptr<Lane>> free_;
};

}  // namespace agentserve::kvstore::cuda
