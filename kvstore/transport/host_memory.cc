#include "kvstore/transport/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/digest.h"

namespace agentserve::kvstore {
namespace {

class MappedBuffer final : public HostBuffer {
 public:
  MappedBuffer(void* data, size_t bytes) : data_(static_cast<std::byte*>(data)), bytes_(bytes) {}
  ~MappedBuffer() override { ::munmap(data_, bytes_); }
  std::byte* data() const override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  std::byte* const data_;
  const size_t bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HostBuffer>> MapHostBuffer(size_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(base::StrCat(
        "cannot map ", bytes >> 20, " MiB for KV in host memory: ", std::strerror(errno), "; lower --host-kv-mib"));
  }
  (void)::madvise(data, bytes, MADV_HUGEPAGE);  // fewer page faults where the kernel has them
  return std::make_unique<MappedBuffer>(data, bytes);
}

absl::Status BlockMemory::Sums(std::span<const DigestItem> items, uint32_t first, uint32_t count,
                               std::span<uint64_t> sums) {
  if (items.empty()) return absl::OkStatus();
  AS_ASSIGN_OR_RETURN(const std::unique_ptr<LayerSums> layers, BeginSums(items));
  AS_RETURN_IF_ERROR(layers->Add(first, count));
  return layers->Take(sums);
}

absl::Status HostLayerSums::Add(uint32_t first, uint32_t count) {
  for (size_t i = 0; i < items_.size(); ++i) {
    sums_[i] += LayerSum(layout_, block_(items_[i].block), {first, count}, items_[i].tokens);
  }
  return absl::OkStatus();
}

absl::Status HostLayerSums::Take(std::span<uint64_t> sums) {
  std::copy(sums_.begin(), sums_.end(), sums.begin());
  std::fill(sums_.begin(), sums_.end(), 0);
  return absl::OkStatus();
}

absl::Status HostMemory::CopyOut(std::span<const PieceOut> pieces) {
  for (const PieceOut& p : pieces) std::memcpy(p.host, view_.Block(p.block) + p.offset, p.bytes);
  return absl::OkStatus();
}

absl::Status HostMemory::CopyIn(std::span<const PieceIn> pieces) {
  for (const PieceIn& p : pieces) std::memcpy(view_.Block(p.block) + p.offset, p.host, p.bytes);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LayerSums>> HostMemory::BeginSums(std::span<const DigestItem> items) {
  return std::make_unique<HostLayerSums>(view_.layout, items, [v = view_](uint32_t block) { return v.Block(block); });
}

absl::StatusOr<base::UniqueFd> HostMemory::Export() {
  return absl::UnimplementedError("host memory is part of the pool's file");
}

absl::StatusOr<std::unique_ptr<PeerMemory>> HostMemory::Import(base::UniqueFd, const MemoryFacts&,
                                                               const ImportOptions&) {
  return absl::UnimplementedError("a worker on the CPU cannot map the memory of a GPU");
}

}  // namespace agentserve::kvstore
