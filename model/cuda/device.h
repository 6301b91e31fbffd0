// Small owners of CUDA runtime objects, and the checks a device must pass before anything is placed on it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentserve::model::cuda {

// OK if device `ordinal` exists and can run the kernels (compute capability 9.0). Else what was found and what to do:
// FAILED_PRECONDITION without a driver or device, INVALID_ARGUMENT for an ordinal that does not exist, UNIMPLEMENTED
// for another kind of GPU.
absl::Status CheckDevice(int ordinal);

// Device memory; freed when it goes. Move-only.
class DeviceBuffer {
 public:
  // On the current device. RESOURCE_EXHAUSTED names `what`, its size, what is free and what to lower.
  static absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what);
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& o) noexcept { *this = std::move(o); }
  DeviceBuffer& operator=(DeviceBuffer&& o) noexcept;
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locked host memory. Move-only.
class PinnedBuffer {
 public:
  static absl::StatusOr<PinnedBuffer> Allocate(size_t bytes, const std::string& what);
  PinnedBuffer() = default;
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& o) noexcept { *this = std::move(o); }
  PinnedBuffer& operator=(PinnedBuffer&& o) noexcept;
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A non-blocking stream.
class Stream {
 public:
  static absl::StatusOr<Stream> Create();
  Stream() = default;
  ~Stream();
  Stream(Stream&& o) noexcept : stream_(std::exchange(o.stream_, nullptr)) {}
  Stream& operator=(Stream&& o) noexcept;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// An event without timing.
class Event {
 public:
  static absl::StatusOr<Event> Create();
  Event() = default;
  ~Event();
  Event(Event&& o) noexcept : event_(std::exchange(o.event_, nullptr)) {}
  Event& operator=(Event&& o) noexcept;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Carves aligned arrays out of one block. With a null base it only counts, so that the size of a block and its
// division come from the same code.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}
  template <typename T>
  T* Take(size_t n) {
    constexpr size_t kAlign = 256;
    used_ = (used_ + kAlign - 1) / kAlign * kAlign;
    const size_t at = used_;
    used_ += n * sizeof(T);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace agentserve::model::cuda
