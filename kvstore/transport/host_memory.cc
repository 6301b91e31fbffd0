#include "kvstore/transport/host_memory.h"

#include <cstring>

namespace agentserve::kvstore {

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
