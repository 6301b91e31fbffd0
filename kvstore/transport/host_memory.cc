#include "kvstore/transport/host_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "base/strings.h"

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

absl::Status HostMemory::CopyOut(std::span<const PieceOut> pieces) {
  for (const PieceOut& p : pieces) std::memcpy(p.host, view_.Block(p.block) + p.offset, p.bytes);
  return absl::OkStatus();
}

absl::Status HostMemory::CopyIn(std::span<const PieceIn> pieces) {
  for (const PieceIn& p : pieces) std::memcpy(view_.Block(p.block) + p.offset, p.host, p.bytes);
  return absl::OkStatus();
}

absl::Status HostMemory::Digests(DigestAlgorithm algorithm, std::span<const DigestItem> items,
                                 std::span<uint64_t> out) {
  for (size_t i = 0; i < items.size(); ++i) {
    out[i] = BlockDigest(algorithm, view_.layout, view_.Block(items[i].block), items[i].tokens);
  }
  return absl::OkStatus();
}

absl::StatusOr<base::UniqueFd> HostMemory::Export() {
  return absl::UnimplementedError("host memory is part of the pool's file");
}

absl::StatusOr<std::unique_ptr<PeerMemory>> HostMemory::Import(base::UniqueFd, const MemoryFacts&,
                                                               const ImportOptions&) {
  return absl::UnimplementedError("a worker on the CPU cannot map the memory of a GPU");
}

}  // namespace agentserve::kvstore
