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
      AS_ASSIGN_OR_RETURN(const Room room, Take(bytes));
      pieces_.push_back({room.at, device, room.bytes});
      pending_[now_].push_back({host, room.at, room.bytes});
      device += room.bytes, host += room.bytes, bytes -= room.bytes;
    }
    return absl::OkStatus();
  }

  absl::Status In(std::byte* device, const std::byte* host, size_t bytes) {
    while (bytes > 0) {
      AS_ASSIGN_OR_RETURN(const Room room, Take(bytes));
      std::memcpy(room.at, host, room.bytes);
      pieces_.push_back({device, room.at, room.bytes});
      device += room.bytes, host += room.bytes, bytes -= room.bytes;
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
    const std::byte* staged;
    size_t bytes;
  };
  struct Room {
    std::byte* at;
    uint32_t bytes;
  };

  // Room for as much of a piece as there is, at most.
  absl::StatusOr<Room> Take(size_t bytes) {
    if (used_ == Lane::kHalfBytes || pieces_.size() == Lane::kMostPieces) AS_RETURN_IF_ERROR(Flip());
    AS_ASSIGN_OR_RETURN(std::byte* const half, lane_.Half(now_));
    const Room room{half + used_, static_cast<uint32_t>(std::min(bytes, Lane::kHalfBytes - used_))};
    used_ += room.bytes;
    return room;
  }

  // Starts this half's copies and makes the other half free.
  absl::Status Flip() {
    started_[now_] = !pieces_.empty();
    if (started_[now_]) {
      AS_RETURN_IF_ERROR(lane_.CopyPieces(now_, pieces_));
      AS_RETURN_IF_ERROR(Check(cudaEventRecord(lane_.event(now_), lane_.stream()), "KV copy"));
    }
    pieces_.clear();
    now_ ^= 1;
    used_ = 0;
    if (!started_[now_]) return absl::OkStatus();
    AS_RETURN_IF_ERROR(Check(cudaEventSynchronize(lane_.event(now_)), "KV copy"));
    for (const Landed& l : pending_[now_]) std::memcpy(l.host, l.staged, l.bytes);
    pending_[now_].clear();
    started_[now_] = false;
    return absl::OkStatus();
  }

  Lane& lane_;
  size_t now_ = 0, used_ = 0;
  bool started_[2] = {false, false};
  std::vector<kernels::cuda::KvPiece> pieces_;  // of the half at work
  std::vector<Landed> pending_[2];
};

// Each part of the list has a lane until the end, since the sums on the device are the lane's.
class CudaLayerSums final : public LayerSums {
 public:
  explicit CudaLayerSums(const engine::KvPoolView& view) : view_(view) {}
  ~CudaLayerSums() override {
    std::vector<uint64_t> unwanted(size_);
    if (dirty_) (void)Take(unwanted);  // the next user of the lanes begins at zero
  }

  void Join(Lanes::Lease lane, const kernels::cuda::KvMove* blocks, size_t count) {
    parts_.push_back({std::move(lane), blocks, count});
    size_ += count;
  }

  absl::Status Add(uint32_t first, uint32_t count) override {
    dirty_ = true;
    told_ = first + count == view_.layout.num_layers;  // then Take follows
    for (Part& part : parts_) {
      AS_RETURN_IF_ERROR(Launch(&part, first * view_.layout.LayerBytes(), count * view_.layout.LayerBytes(), told_));
    }
    return absl::OkStatus();
  }

  absl::Status Take(std::span<uint64_t> sums) override {
    dirty_ = false;
    size_t at = 0;
    for (Part& part : parts_) {
      if (!told_) AS_RETURN_IF_ERROR(Launch(&part, 0, 0, /*tell=*/true));
      AS_RETURN_IF_ERROR(part.lane->WaitDone());
      std::copy_n(part.lane->sums(), part.count, sums.begin() + static_cast<ptrdiff_t>(at));
      at += part.count;
    }
    told_ = false;
    return absl::OkStatus();
  }

 private:
  struct Part {
    Lanes::Lease lane;
    const kernels::cuda::KvMove* blocks;
    size_t count;
  };
  // A layer is summed beside the model's kernels: on a few SMs, at once (kernels/kv_copy/README.md has what other ways
  // cost). Somebody waits for several layers.
  static constexpr int kSmsOfLayer = 32, kSmsOfMore = 132;

  absl::Status Launch(Part* part, size_t offset, size_t bytes, bool tell) {
    kernels::cuda::KvGatherParams p;
    p.src = view_.base;
    p.blocks = part->blocks;
    p.count = static_cast<int>(part->count);
    p.block_bytes = view_.layout.BlockBytes();
    p.offset = offset;
    p.bytes = bytes;
    p.sms = bytes == 0 ? 1 : bytes <= view_.layout.LayerBytes() ? kSmsOfLayer : kSmsOfMore;
    part->lane->Attach(view_.layout, /*sums=*/true, &p);
    if (!tell) Lane::KeepSums(&p);
    kernels::cuda::LaunchContext context;
    context.stream = part->lane->stream();
    AS_RETURN_IF_ERROR(Check(cudaSetDevice(part->lane->device()), "select the GPU"));
    return kernels::cuda::KvSums(p, context);
  }

  const engine::KvPoolView view_;
  std::vector<Part> parts_;
  size_t size_ = 0;
  bool dirty_ = false;  // something was added and not taken
  bool told_ = false;   // the last kernels have moved the sums out
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
  memory->facts_.allocation_bytes = memory->mapping_.bytes();
  AS_ASSIGN_OR_RETURN(memory->facts_.device_uuid, DeviceUuid(device));
  AS_RETURN_IF_ERROR(memory->pull_lanes_.Warm(2, /*staging=*/false));
  AS_RETURN_IF_ERROR(memory->seal_lanes_.Warm(2, /*staging=*/false));
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

absl::StatusOr<std::unique_ptr<LayerSums>> CudaMemory::BeginSums(std::span<const DigestItem> items) {
  std::unique_ptr<CudaLayerSums> sums(new CudaLayerSums(view_));
  for (size_t first = 0; first < items.size(); first += Lane::kMostBlocks) {
    AS_ASSIGN_OR_RETURN(Lanes::Lease lane, seal_lanes_.Take());
    std::vector<kernels::cuda::KvMove> moves;
    for (const DigestItem& i : items.subspan(first, std::min(Lane::kMostBlocks, items.size() - first))) {
      moves.push_back({i.block, i.block, i.tokens});
    }
    AS_ASSIGN_OR_RETURN(const kernels::cuda::KvMove* const blocks, lane->Upload(moves));
    sums->Join(std::move(lane), blocks, moves.size());
  }
  return sums;
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
