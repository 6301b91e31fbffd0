#include "kvstore/transport/cuda/peer_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/kv_copy/kv_copy_cuda.h"
#include "kvstore/transport/digest.h"

namespace agentserve::kvstore::cuda {
namespace {

using SteadyClock = std::chrono::steady_clock;

// The device of this process with the UUID; NOT_FOUND: it is hidden from us.
absl::StatusOr<int> FindDevice(const std::array<uint8_t, 16>& uuid) {
  int count = 0;
  AS_RETURN_IF_ERROR(Check(cudaGetDeviceCount(&count), "count the GPUs"));
  for (int i = 0; i < count; ++i) {
    AS_ASSIGN_OR_RETURN(const auto other, DeviceUuid(i));
    if (other == uuid) return i;
  }
  return absl::NotFoundError("not visible");
}

// What both ways share: timing copies of real blocks into scratch memory.
class ImportedMemory : public PeerMemory {
 public:
  ImportedMemory(CudaMemory* local, Mapping mapping, uint32_t num_blocks)
      : local_(local), mapping_(std::move(mapping)), num_blocks_(num_blocks) {}

  absl::Status Gather(std::span<const PulledBlock> blocks, uint32_t first, uint32_t count,
                      std::span<uint64_t> sums) override {
    return Copy(local_->view().base, blocks, {first, count}, sums);
  }

  absl::StatusOr<double> Measure(size_t bytes, int ms) override {
    const size_t block_bytes = layout().BlockBytes();
    const size_t n = std::clamp<size_t>(bytes / block_bytes, 1, num_blocks_);
    AS_ASSIGN_OR_RETURN(const Lanes::Lease lane, local_->pull_lanes().Take());
    void* scratch = nullptr;
    AS_RETURN_IF_ERROR(Check(cudaMallocAsync(&scratch, n * block_bytes, lane->stream()), "memory for the probe"));
    std::vector<PulledBlock> blocks(n);
    for (size_t i = 0; i < n; ++i) blocks[i] = {static_cast<uint32_t>(i), static_cast<uint32_t>(i), 0};
    absl::Status status = lane->Synchronize();
    double best = 0;
    const auto limit = SteadyClock::now() + std::chrono::milliseconds(ms);
    // The first round is slower (page tables, clocks); it counts only if it is the only one.
    for (int round = 0; status.ok() && round < 16 && (round < 2 || SteadyClock::now() < limit); ++round) {
      const auto start = SteadyClock::now();
      status = Copy(static_cast<std::byte*>(scratch), blocks, {0, layout().num_layers}, {});
      const double seconds = std::chrono::duration<double>(SteadyClock::now() - start).count();
      best = std::max(best, static_cast<double>(n * block_bytes) / 1e9 / std::max(seconds, 1e-9));
    }
    status.Update(Check(cudaFreeAsync(scratch, lane->stream()), "memory of the probe"));
    status.Update(lane->Synchronize());
    if (!status.ok()) return status;
    return best;
  }

 protected:
  // As Gather, into blocks from `dst`.
  virtual absl::Status Copy(std::byte* dst, std::span<const PulledBlock> blocks, LayerRange layers,
                            std::span<uint64_t> sums) = 0;
  const engine::KvLayout& layout() const { return local_->view().layout; }
  const std::byte* source() const { return mapping_.data(); }

  CudaMemory* const local_;

 private:
  const Mapping mapping_;
  const uint32_t num_blocks_;
};

// The device of the reader reads the peer's memory, over NVLink or in the same GPU.
class MappedMemory final : public ImportedMemory {
 public:
  using ImportedMemory::ImportedMemory;
  std::string_view path() const override { return "mapped"; }

 protected:
  absl::Status Copy(std::byte* dst, std::span<const PulledBlock> blocks, LayerRange layers,
                    std::span<uint64_t> sums) override {
    AS_ASSIGN_OR_RETURN(const Lanes::Lease lane, local_->pull_lanes().Take());
    std::vector<kernels::cuda::KvMove> moves;
    for (size_t first = 0; first < blocks.size(); first += moves.size()) {
      moves.clear();
      for (const PulledBlock& b : blocks.subspan(first, std::min(Lane::kMostBlocks, blocks.size() - first))) {
        moves.push_back({b.from, b.to, b.tokens});
      }
      kernels::cuda::KvGatherParams p;
      p.src = source();
      p.dst = dst;
      AS_ASSIGN_OR_RETURN(p.blocks, lane->Upload(moves));
      p.count = static_cast<int>(moves.size());
      p.block_bytes = layout().BlockBytes();
      p.offset = layers.first * layout().LayerBytes();
      p.bytes = layers.count * layout().LayerBytes();
      lane->Attach(layout(), !sums.empty(), &p);
      kernels::cuda::LaunchContext context;
      context.stream = lane->stream();
      AS_RETURN_IF_ERROR(kernels::cuda::KvGather(p, context));
      AS_RETURN_IF_ERROR(lane->WaitDone());
      if (!sums.empty()) std::copy_n(lane->sums(), moves.size(), sums.begin() + static_cast<ptrdiff_t>(first));
    }
    return absl::OkStatus();
  }
};

// The owner's device copies into pinned memory of the host, ours out of it; two buffers, so that both links work.
class StagedMemory final : public ImportedMemory {
 public:
  StagedMemory(CudaMemory* local, Mapping mapping, uint32_t num_blocks, int owner_device, std::string problem)
      : ImportedMemory(local, std::move(mapping), num_blocks),
        problem_(std::move(problem)),
        owner_lanes_(owner_device, /*high_priority=*/false) {}
  // Pinning takes milliseconds, which no pull should wait for.
  absl::Status WarmUp() {
    AS_RETURN_IF_ERROR(owner_lanes_.Warm(1, /*staging=*/true));
    return local_->pull_lanes().Warm(1, /*staging=*/true);
  }
  std::string_view path() const override { return "staged"; }
  std::string problem() const override { return problem_; }

 protected:
  absl::Status Copy(std::byte* dst, std::span<const PulledBlock> blocks, LayerRange layers,
                    std::span<uint64_t> sums) override {
    AS_RETURN_IF_ERROR(Copy(dst, blocks, layers.first * layout().LayerBytes(), layers.count * layout().LayerBytes()));
    if (sums.empty()) return absl::OkStatus();
    std::vector<DigestItem> items;
    for (const PulledBlock& b : blocks) items.push_back({b.to, b.tokens});
    return local_->Sums(items, layers.first, layers.count, sums);
  }

 private:
  absl::Status Copy(std::byte* dst, std::span<const PulledBlock> blocks, size_t offset, size_t bytes) {
    // A lane's events belong to its device: "landed" is recorded on the owner's stream, "taken" on ours.
    AS_ASSIGN_OR_RETURN(const Lanes::Lease owner, owner_lanes_.Take());
    AS_ASSIGN_OR_RETURN(const Lanes::Lease local, local_->pull_lanes().Take());
    const size_t block_bytes = layout().BlockBytes();
    std::vector<kernels::cuda::KvPiece> in, out;
    size_t half = 0;
    for (size_t i = 0, done = 0; i < blocks.size(); half ^= 1) {
      // The peer's memory is mapped for the owner's device alone, so the copy must be one of that device's context.
      AS_RETURN_IF_ERROR(Check(cudaSetDevice(owner->device()), "select the owner's GPU"));
      // The half may be in use by copies to our device that have not ended.
      AS_RETURN_IF_ERROR(Check(cudaEventSynchronize(local->event(half)), "staged KV copy"));
      AS_ASSIGN_OR_RETURN(std::byte* const staged, owner->Half(half));
      in.clear();
      out.clear();
      for (size_t used = 0; i < blocks.size() && used < Lane::kHalfBytes && in.size() < Lane::kMostPieces;) {
        const size_t n = std::min(bytes - done, Lane::kHalfBytes - used), at = offset + done;
        in.push_back({staged + used, source() + blocks[i].from * block_bytes + at, static_cast<uint32_t>(n)});
        out.push_back({dst + blocks[i].to * block_bytes + at, staged + used, static_cast<uint32_t>(n)});
        Advance(n, bytes, &used, &i, &done);
      }
      AS_RETURN_IF_ERROR(owner->CopyPieces(half, in));
      AS_RETURN_IF_ERROR(Check(cudaEventRecord(owner->event(half), owner->stream()), "staged KV copy"));
      AS_RETURN_IF_ERROR(Check(cudaSetDevice(local->device()), "select our GPU"));
      AS_RETURN_IF_ERROR(Check(cudaStreamWaitEvent(local->stream(), owner->event(half), 0), "staged KV copy"));
      AS_RETURN_IF_ERROR(local->Half(half).status());
      AS_RETURN_IF_ERROR(local->CopyPieces(half, out));
      AS_RETURN_IF_ERROR(Check(cudaEventRecord(local->event(half), local->stream()), "staged KV copy"));
    }
    return local->Synchronize();
  }

  static void Advance(size_t n, size_t bytes, size_t* used, size_t* block, size_t* done) {
    *used += n;
    *done += n;
    if (*done == bytes) {
      *done = 0;
      ++*block;
    }
  }

  const std::string problem_;
  Lanes owner_lanes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerMemory>> ImportPeer(CudaMemory* local, base::UniqueFd fd, const MemoryFacts& facts,
                                                       const ImportOptions& options) {
  if (facts.kind != MemoryKind::kCuda) return absl::UnimplementedError("the peer's blocks are not in GPU memory");
  const absl::StatusOr<int> owner = FindDevice(facts.device_uuid);
  if (!owner.ok()) {
    return absl::UnimplementedError(
        "the peer's GPU is hidden from this process (CUDA_VISIBLE_DEVICES, or a container with other GPUs)");
  }
  int reaches = *owner == local->device() ? 1 : 0;
  if (reaches == 0) {
    AS_RETURN_IF_ERROR(Check(cudaDeviceCanAccessPeer(&reaches, local->device(), *owner), "ask for peer access"));
  }
  const bool staged = reaches == 0 || options.force_staged;
  const int reader = staged ? *owner : local->device();
  AS_RETURN_IF_ERROR(Check(cudaSetDevice(reader), "select the GPU"));
  AS_RETURN_IF_ERROR(Check(cudaFree(nullptr), "context of the GPU"));
  absl::StatusOr<Mapping> mapping = Mapping::ImportReadOnly(fd.get(), facts.allocation_bytes, reader);
  if (!mapping.ok()) return absl::UnimplementedError(mapping.status().message());
  if (staged) {
    const std::string problem =
        reaches == 0
            ? base::StrCat("cuda:", local->device(), " cannot reach the memory of cuda:", *owner, " (no peer access)")
            : "asked for by --kv-transport staged";
    auto memory = std::make_unique<StagedMemory>(local, *std::move(mapping), options.num_blocks, *owner, problem);
    AS_RETURN_IF_ERROR(memory->WarmUp());
    return memory;
  }
  return std::make_unique<MappedMemory>(local, *std::move(mapping), options.num_blocks);
}

}  // namespace agentserve::kvstore::cuda
