#include "kvstore/transport/cuda/lane.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::kvstore::cuda {

using kernels::cuda::KvMove;
using kernels::cuda::KvPiece;

namespace {

// Parts of a lane's device memory: a word that counts arrivals, then the sums, then the list of blocks.
constexpr size_t kSumsAt = 64, kListAt = kSumsAt + Lane::kMostBlocks * sizeof(uint64_t);

}  // namespace

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
  AS_ASSIGN_OR_RETURN(lane->list_, PinnedBuffer::Make(kMostBlocks * sizeof(KvMove)));
  AS_ASSIGN_OR_RETURN(lane->results_, PinnedBuffer::Make(kResultsAt + kMostBlocks * sizeof(uint64_t)));
  std::memset(lane->results_.data(), 0, kResultsAt);
  void* scratch = nullptr;
  AS_RETURN_IF_ERROR(Check(cudaMalloc(&scratch, kListAt + kMostBlocks * sizeof(KvMove)), "memory for block numbers"));
  lane->scratch_ = static_cast<std::byte*>(scratch);
  AS_RETURN_IF_ERROR(Check(cudaMemsetAsync(scratch, 0, kListAt, lane->stream_), "memory for block numbers"));
  AS_RETURN_IF_ERROR(lane->Synchronize());
  return lane;
}

absl::StatusOr<std::byte*> Lane::Half(size_t i) {
  if (staging_.data() == nullptr) {
    AS_ASSIGN_OR_RETURN(staging_, PinnedBuffer::Make(2 * (kHalfBytes + kMostPieces * sizeof(KvPiece))));
  }
  return staging_.data() + i * kHalfBytes;
}

// Long pieces are the copy engines' work, which takes nothing from the model. A command costs some microseconds,
// though, so that short ones go together in a kernel.
absl::Status Lane::CopyPieces(size_t i, std::span<const KvPiece> pieces) {
  constexpr size_t kLong = 256 << 10;
  size_t bytes = 0;
  bool aligned = true;
  for (const KvPiece& p : pieces) {
    bytes += p.bytes;
    aligned = aligned && (reinterpret_cast<uintptr_t>(p.to) | reinterpret_cast<uintptr_t>(p.from) | p.bytes) % 16 == 0;
  }
  if (!aligned || bytes >= kLong * pieces.size()) {
    for (const KvPiece& p : pieces) {
      AS_RETURN_IF_ERROR(Check(cudaMemcpyAsync(p.to, p.from, p.bytes, cudaMemcpyDefault, stream_), "staged KV copy"));
    }
    return absl::OkStatus();
  }
  kernels::cuda::KvCopyPiecesParams p;
  auto* const list = reinterpret_cast<KvPiece*>(staging_.data() + 2 * kHalfBytes) + i * kMostPieces;
  std::copy(pieces.begin(), pieces.end(), list);
  p.pieces = list;
  p.count = static_cast<int>(pieces.size());
  kernels::cuda::LaunchContext context;
  context.stream = stream_;
  return kernels::cuda::KvCopyPieces(p, context);
}

absl::StatusOr<const KvMove*> Lane::Upload(std::span<const KvMove> blocks) {
  auto* const device = reinterpret_cast<KvMove*>(scratch_ + kListAt);
  if (blocks.size() == listed_ && std::memcmp(list_.data(), blocks.data(), blocks.size_bytes()) == 0) return device;
  listed_ = 0;
  std::memcpy(list_.data(), blocks.data(), blocks.size_bytes());
  AS_RETURN_IF_ERROR(Check(cudaMemcpyAsync(device, list_.data(), blocks.size_bytes(), cudaMemcpyHostToDevice, stream_),
                           "block numbers"));
  listed_ = blocks.size();
  return device;
}

void Lane::Attach(const engine::KvLayout& layout, bool sums, kernels::cuda::KvGatherParams* params) {
  if (sums) {
    params->sums.piece_bytes = layout.HeadBytes();
    params->sums.row_bytes = layout.head_dim * layout.ElementBytes();
    params->sums.sums = reinterpret_cast<uint64_t*>(scratch_ + kSumsAt);
    params->sums.out = reinterpret_cast<uint64_t*>(results_.data() + kResultsAt);
  }
  params->done = {reinterpret_cast<uint32_t*>(scratch_), reinterpret_cast<uint32_t*>(results_.data()), ++ticket_};
}

uint32_t Lane::DoneWord() const {
  return __atomic_load_n(reinterpret_cast<const uint32_t*>(results_.data()), __ATOMIC_ACQUIRE);
}

// The word comes some microseconds before the driver says that the stream is idle. The driver is asked only now and
// then: for errors, which leave the word as it is.
absl::Status Lane::WaitDone() {
  constexpr int kAskEvery = 1 << 14;  // a fraction of a millisecond
  for (int spins = 1; DoneWord() != ticket_; ++spins) {
    __builtin_ia32_pause();
    if (spins % kAskEvery != 0) continue;
    const cudaError_t error = cudaStreamQuery(stream_);
    if (error == cudaErrorNotReady) continue;
    AS_RETURN_IF_ERROR(Check(error, "KV copy"));
    if (DoneWord() != ticket_) return absl::InternalError("KV copy: the kernel ended without a word");
  }
  return absl::OkStatus();
}

Lane::~Lane() {
  for (cudaEvent_t e : events_) {
    if (e != nullptr) (void)cudaEventDestroy(e);
  }
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  if (scratch_ != nullptr) (void)cudaFree(scratch_);
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

absl::Status Lanes::Warm(size_t count, bool staging) {
  std::vector<Lease> taken;
  while (taken.size() < count) {
    AS_ASSIGN_OR_RETURN(Lease lane, Take());
    if (staging) AS_RETURN_IF_ERROR(lane->Half(0).status());
    taken.push_back(std::move(lane));
  }
  return absl::OkStatus();
}

void Lanes::Return(std::unique_ptr<Lane> lane) {
  const std::lock_guard lock(mu_);
  free_.push_back(std::move(lane));
}

}  // namespace agentserve::kvstore::cuda
