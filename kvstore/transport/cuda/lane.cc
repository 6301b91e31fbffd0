#include "kvstore/transport/cuda/lane.h"

#include <utility>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::kvstore::cuda {

absl::Status Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();  // an error that is not sticky must not meet the next caller
  const std::string message = base::StrCat(what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Make(size_t bytes) {
  PinnedBuffer b;
  void* p = nullptr;
  AS_RETURN_IF_ERROR(Check(cudaHostAlloc(&p, bytes, cudaHostAllocPortable | cudaHostAllocMapped), "pin host memory"));
  b.data_ = static_cast<std::byte*>(p);
  b.bytes_ = bytes;
  return b;
}

absl::StatusOr<std::unique_ptr<Lane>> Lane::Make(int device, bool high_priority) {
  std::unique_ptr<Lane> lane(new Lane(device));
  int least = 0, greatest = 0;
  AS_RETURN_IF_ERROR(Check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream priorities"));
  AS_RETURN_IF_ERROR(Check(
      cudaStreamCreateWithPriority(&lane->stream_, cudaStreamNonBlocking, high_priority ? greatest : least), "stream"));
  for (cudaEvent_t& e : lane->events_) {
    AS_RETURN_IF_ERROR(Check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event"));
  }
  AS_ASSIGN_OR_RETURN(lane->staging_, PinnedBuffer::Make(2 * kHalfBytes));
  void* numbers = nullptr;
  AS_RETURN_IF_ERROR(Check(cudaMalloc(&numbers, 2 * kMostPairs * sizeof(uint32_t)), "memory for block numbers"));
  lane->numbers_ = static_cast<uint32_t*>(numbers);
  return lane;
}

Lane::~Lane() {
  for (cudaEvent_t e : events_) {
    if (e != nullptr) (void)cudaEventDestroy(e);
  }
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  if (numbers_ != nullptr) (void)cudaFree(numbers_);
}

absl::StatusOr<Lanes::Lease> Lanes::Take() {
  AS_RETURN_IF_ERROR(Check(cudaSetDevice(device_), "select the GPU"));
  {
    const std::lock_guard lock(mu_);
    if (!free_.empty()) {
      std::unique_ptr<Lane> lane = std::move(free_.back());
      free_.pop_back();
      return Lease(this, std::move(lane));
    }
  }
  AS_ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane, Lane::Make(device_, high_priority_));
  return Lease(this, std::move(lane));
}

absl::Status Lanes::Warm(size_t count) {
  std::vector<Lease> taken;
  while (taken.size() < count) {
    AS_ASSIGN_OR_RETURN(Lease lane, Take());
    taken.push_back(std::move(lane));
  }
  return absl::OkStatus();
}

void Lanes::Return(std::unique_ptr<Lane> lane) {
  const std::lock_guard lock(mu_);
  free_.push_back(std::move(lane));
}

}  // namespace agentserve::kvstore::cuda
