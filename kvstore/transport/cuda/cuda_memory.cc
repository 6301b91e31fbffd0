#include "kvstore/transport/cuda/cuda_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/kv_copy/kv_copy_cuda.h"
#include "kvstore/transport/cuda/peer_memory.h"

namespace agentserve::kvstore::cuda {
namespace {

// Copies through the lane's two halves: while one half is on its way to or from the device, the host works on the
// other.
class Staging {
 public:
  explicit Staging(Lane* lane) : lane_(*lane) {}

  absl::Status Out(const std::byte* device, std::byte* host, size_t bytes) {
    while (bytes > 0) {
      const size_t n = std::min(bytes, Lane::kHalfBytes - used_);
      AS_RETURN_IF_ERROR(Check(
          cudaMemcpyAsync(lane_.half(now_) + used_, device, n, cudaMemcpyDeviceToHost, lane_.stream()), "KV copy out"));
      pending_[now_].push_back({host, used_, n});
      used_ += n;
      if (used_ == Lane::kHalfBytes) AS_RETURN_IF_ERROR(Flip());
      device += n, host += n, bytes -= n;
    }
    return absl::OkStatus();
  }

  absl::Status In(std::byte* device, const std::byte* host, size_t bytes) {
    while (bytes > 0) {
      const size_t n = std::min(bytes, Lane::kHalfBytes - used_);
      std::memcpy(lane_.half(now_) + used_, host, n);
      AS_RETURN_IF_ERROR(Check(
          cudaMemcpyAsync(device, lane_.half(now_) + used_, n, cudaMemcpyHostToDevice, lane_.stream()), "KV copy in"));
      used_ += n;
      if (used_ == Lane::kHalfBytes) AS_RETURN_IF_ERROR(Flip());
      device += n, host += n, bytes -= n;
    }
    return absl::OkStatus();
  }

  // All that was begun is complete.
  absl::Status Finish() {
    AS_RETURN_IF_ERROR(Flip());
    return Flip();
  }

 private:
  struct Landed {
    std::byte* host;
    size_t offset, bytes;
  };

  // Marks the end of this half's copies and makes the other half free.
  absl::Status Flip() {
    AS_RETURN_IF_ERROR(Check(cudaEventRecord(lane_.event(now_), lane_.stream()), "KV copy"));
    started_[now_] = true;
    now_ ^= 1;
    used_ = 0;
    if (!started_[now_]) return absl::OkStatus();
    AS_RETURN_IF_ERROR(Check(cudaEventSynchronize(lane_.event(now_)), "KV copy"));
    for (const Landed& l : pending_[now_]) std::memcpy(l.host, lane_.half(now_) + l.offset, l.bytes);
    pending_[now_].clear();
    return absl::OkStatus();
  }

  Lane& lane_;
  size_t now_ = 0, used_ = 0;
  bool started_[2] = {false, false};
  std::vector<Landed> pending_[2];
};

}  // namespace

class PinnedHostBuffer final : public HostBuffer {
 public:
  PinnedHostBuffer(CudaMemory* memory, PinnedBuffer buffer) : memory_(memory), buffer_(std::move(buffer)) {}
  ~PinnedHostBuffer() override {
    const std::lock_guard lock(memory_->mu_);
    memory_->pinned_.erase(buffer_.data());
  }
  std::byte* data() const override { return buffer_.data(); }
  size_t bytes() const override { return buffer_.bytes(); }

 private:
  CudaMemory* const memory_;
  const PinnedBuffer buffer_;
};

absl::StatusOr<std::array<uint8_t, 16>> DeviceUuid(int device) {
  cudaDeviceProp properties;
  AS_RETURN_IF_ERROR(Check(cudaGetDeviceProperties(&properties, device), "properties of the GPU"));
  std::array<uint8_t, 16> uuid;
  static_assert(sizeof(properties.uuid.bytes) == sizeof(uuid));
  std::memcpy(uuid.data(), properties.uuid.bytes, sizeof(uuid));
  return uuid;
}

absl::StatusOr<std::unique_ptr<CudaMemory>> CudaMemory::Make(int device, const engine::KvLayout& layout,
                                                             uint32_t num_blocks) {
  AS_RETURN_IF_ERROR(Check(cudaSetDevice(device), "select the GPU"));
  std::unique_ptr<CudaMemory> memory(new CudaMemory(device));
  const size_t bytes = size_t{num_blocks} * layout.BlockBytes();
  absl::StatusOr<Mapping> mapping = Mapping::Allocate(device, bytes);
  if (absl::IsResourceExhausted(mapping.status())) {
    size_t free = 0, total = 0;
    (void)cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(base::StrCat(
        "KV pool: ", num_blocks, " blocks need ", bytes >> 20, " MiB of cuda:", device, ", but only ", free >> 20,
        " MiB are free; ask for fewer blocks (--kv-blocks, --kv-memory-mib or --gpu-memory-utilization)"));
  }
  if (!mapping.ok()) return mapping.status();
  memory->mapping_ = *std::move(mapping);
  // What was in the memory before belongs to somebody else, and must not look like numbers.
  AS_RETURN_IF_ERROR(Check(cudaMemset(memory->mapping_.data(), 0, memory->mapping_.bytes()), "clear the KV pool"));
  AS_RETURN_IF_ERROR(Check(cudaDeviceSynchronize(), "clear the KV pool"));
  memory->view_ = {memory->mapping_.data(), num_blocks, layout};
  memory->facts_.kind = MemoryKind::kCuda;
  memory->facts_.digest = DigestAlgorithm::kPositionalSum;
  memory->facts_.allocation_bytes = memory->mapping_.bytes();
  AS_ASSIGN_OR_RETURN(memory->facts_.device_uuid, DeviceUuid(device));
  AS_RETURN_IF_ERROR(memory->pull_lanes_.Warm(2));
  AS_RETURN_IF_ERROR(memory->seal_lanes_.Warm(1));
  return memory;
}

std::string CudaMemory::name() const { return base::StrCat("cuda:", device_); }

absl::StatusOr<std::unique_ptr<HostBuffer>> CudaMemory::NewHostBuffer(size_t bytes) {
  AS_RETURN_IF_ERROR(Check(cudaSetDevice(device_), "select the GPU"));
  absl::StatusOr<PinnedBuffer> pinned = PinnedBuffer::Make(bytes);
  if (!pinned.ok()) {
    return absl::ResourceExhaustedError(base::StrCat("cannot pin ", bytes >> 20, " MiB for KV in host memory (",
                                                     base::MessageOf(pinned.status()), "); lower --host-kv-mib"));
  }
  const std::lock_guard lock(mu_);
  pinned_.emplace(pinned->data(), bytes);
  return std::make_unique<PinnedHostBuffer>(this, *std::move(pinned));
}

bool CudaMemory::IsPinned(const std::byte* host, size_t bytes) {
  const std::lock_guard lock(mu_);
  auto after = pinned_.upper_bound(host);
  if (after == pinned_.begin()) return false;
  --after;
  return host + bytes <= after->first + after->second;
}

absl::Status CudaMemory::CopyOut(std::span<const PieceOut> pieces) {
  AS_ASSIGN_OR_RETURN(const Lanes::Lease lane, pull_lanes_.Take());
  Staging staging(&*lane);
  for (const PieceOut& p : pieces) {
    const std::byte* device = view_.Block(p.block) + p.offset;
    if (IsPinned(p.host, p.bytes)) {
      AS_RETURN_IF_ERROR(Check(cudaMemcpyAsync(p.host, device, p.bytes, cudaMemcpyDeviceToHost, lane->stream()),
                               "KV copy to the host"));
    } else {
      AS_RETURN_IF_ERROR(staging.Out(device, p.host, p.bytes));
    }
  }
  AS_RETURN_IF_ERROR(staging.Finish());
  return lane->Synchronize();
}

absl::Status CudaMemory::CopyIn(std::span<const PieceIn> pieces) {
  AS_ASSIGN_OR_RETURN(const Lanes::Lease lane, pull_lanes_.Take());
  Staging staging(&*lane);
  for (const PieceIn& p : pieces) {
    std::byte* device = view_.Block(p.block) + p.offset;
    if (IsPinned(p.host, p.bytes)) {
      AS_RETURN_IF_ERROR(Check(cudaMemcpyAsync(device, p.host, p.bytes, cudaMemcpyHostToDevice, lane->stream()),
                               "KV copy from the host"));
    } else {
      AS_RETURN_IF_ERROR(staging.In(device, p.host, p.bytes));
    }
  }
  AS_RETURN_IF_ERROR(staging.Finish());
  return lane->Synchronize();
}

absl::Status CudaMemory::Digests(DigestAlgorithm algorithm, std::span<const DigestItem> items,
                                 std::span<uint64_t> out) {
  return algorithm == DigestAlgorithm::kPositionalSum ? DeviceDigests(items, out) : HostDigests(items, out);
}

// Of blocks from a peer on the CPU, whose digest is a serial one.
absl::Status CudaMemory::HostDigests(std::span<const DigestItem> items, std::span<uint64_t> out) {
  std::vector<std::byte> copy(view_.layout.BlockBytes());
  for (size_t i = 0; i < items.size(); ++i) {
    const PieceOut piece{items[i].block, 0, copy.size(), copy.data()};
    AS_RETURN_IF_ERROR(CopyOut({&piece, 1}));
    out[i] = BlockDigest(DigestAlgorithm::kXxh3, view_.layout, copy.data(), items[i].tokens);
  }
  return absl::OkStatus();
}

absl::Status CudaMemory::DeviceDigests(std::span<const DigestItem> items, std::span<uint64_t> out) {
  AS_ASSIGN_OR_RETURN(const Lanes::Lease lane, seal_lanes_.Take());
  auto* digests = reinterpret_cast<uint64_t*>(lane->half(1));  // the kernel writes there
  for (size_t first = 0; first < items.size(); first += Lane::kMostPairs) {
    const size_t n = std::min(Lane::kMostPairs, items.size() - first);
    const auto part = items.subspan(first, n);
    AS_ASSIGN_OR_RETURN(const uint32_t* const pairs,
                        lane->Upload(n, [&](size_t i) { return std::pair(part[i].block, part[i].tokens); }));
    kernels::cuda::KvDigestParams p;
    p.pool = view_.base;
    p.block_bytes = view_.layout.BlockBytes();
    p.piece_bytes = view_.layout.HeadBytes();
    p.row_bytes = view_.layout.head_dim * view_.layout.ElementBytes();
    p.blocks = pairs;
    p.tokens = pairs + n;
    p.digests = digests;
    p.count = static_cast<int>(n);
    kernels::cuda::LaunchContext context;
    context.stream = lane->stream();
    AS_RETURN_IF_ERROR(kernels::cuda::KvDigest(p, context));
    AS_RETURN_IF_ERROR(lane->Synchronize());
    std::memcpy(out.data() + first, digests, n * sizeof(uint64_t));
  }
  return absl::OkStatus();
}

absl::StatusOr<base::UniqueFd> CudaMemory::Export() {
  AS_RETURN_IF_ERROR(Check(cudaSetDevice(device_), "select the GPU"));
  AS_ASSIGN_OR_RETURN(const int fd, mapping_.Export());
  return base::UniqueFd(fd);
}

absl::StatusOr<std::unique_ptr<PeerMemory>> CudaMemory::Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                               const ImportOptions& options) {
  return ImportPeer(this, std::move(fd), facts, options);
}

}  // namespace agentserve::kvstore::cuda
