// Where the blocks of a pool live, and everything that is done to their bytes: memory of this host, or of a GPU.
//
// The rest of the transport never dereferences a block's address; it goes through this interface. Host memory is
// host_memory.h, GPU memory is in cuda/, and device_memory.h is the one place where the kind is chosen.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unix_fd.h"
#include "engine/kv_layout.h"
#include "kvstore/transport/digest.h"

namespace agentserve::kvstore {

// Values are in the pool's header and in the handshake (docs/kv_block_format.md).
enum class MemoryKind : uint32_t { kHost = 0, kCuda = 1 };

// What a reader must know about a pool's memory before it maps it.
struct MemoryFacts {
  MemoryKind kind = MemoryKind::kHost;
  // How the owner computes the digests of its seals.
  DigestAlgorithm digest = DigestAlgorithm::kXxh3;
  std::array<uint8_t, 16> device_uuid{};  // host memory: zeros
  uint64_t allocation_bytes = 0;          // of the descriptor beside the pool file; host memory: 0
  bool operator==(const MemoryFacts&) const = default;
};

// Bytes [offset, offset + bytes) of a block, and their place on the host.
struct PieceOut {
  uint32_t block = 0;
  size_t offset = 0, bytes = 0;
  std::byte* host = nullptr;
};
struct PieceIn {
  uint32_t block = 0;
  size_t offset = 0, bytes = 0;
  const std::byte* host = nullptr;
};

// The first `tokens` rows of a block.
struct DigestItem {
  uint32_t block = 0;
  uint32_t tokens = 0;
};

// Blocks of another process, mapped read-only. Thread-safe. Must not outlive the memory that imported it.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  // Copies bytes [offset, offset + bytes) (multiples of 16) of src_blocks[i] here to the same place of dst_blocks[i] of
  // the memory that imported this. When it returns, the copy is complete and visible to everything that this process
  // starts on its device afterwards. Indices were checked.
  virtual absl::Status Gather(std::span<const uint32_t> src_blocks, std::span<const uint32_t> dst_blocks, size_t offset,
                              size_t bytes) = 0;
  // "mapped": one hop. "staged": through memory of this host, since the devices cannot reach each other.
  virtual std::string_view path() const = 0;
  // Bytes / 1e9 / second of copies of real blocks into scratch memory of about `bytes`, for at most about `ms`.
  virtual absl::StatusOr<double> Measure(size_t bytes, int ms) = 0;
  // Why it is staged; else empty.
  virtual std::string problem() const { return {}; }
};

// Memory of this host to which blocks are copied. Must not outlive the memory that made it.
class HostBuffer {
 public:
  virtual ~HostBuffer() = default;
  virtual std::byte* data() const = 0;
  virtual size_t bytes() const = 0;
};

struct ImportOptions {
  uint32_t num_blocks = 0;  // of the peer
  // Use host staging even where the devices reach each other.
  bool force_staged = false;
};

// The blocks of this process' pool. Thread-safe: copies and digests of different blocks run in parallel.
class BlockMemory {
 public:
  virtual ~BlockMemory() = default;

  // Addresses as kernels of this memory's device see them.
  virtual const engine::KvPoolView& view() const = 0;
  virtual const MemoryFacts& facts() const = 0;
  // For logs: "host", "cuda:0".
  virtual std::string name() const = 0;

  // Copies between blocks and host memory; complete when they return. INTERNAL: the device failed.
  virtual absl::Status CopyOut(std::span<const PieceOut> pieces) = 0;
  virtual absl::Status CopyIn(std::span<const PieceIn> pieces) = 0;
  // Memory to and from which CopyOut and CopyIn are as fast as they get: pinned, for a GPU, so that its copy engine
  // works alone. Not cleared. RESOURCE_EXHAUSTED: there is not so much.
  virtual absl::StatusOr<std::unique_ptr<HostBuffer>> NewHostBuffer(size_t bytes) = 0;
  // Digests of blocks whose bytes are complete, by any of the algorithms. `out` has a place for each item.
  virtual absl::Status Digests(DigestAlgorithm algorithm, std::span<const DigestItem> items,
                               std::span<uint64_t> out) = 0;
  // Descriptor of the memory for peers. Host memory lies in the pool's file and has none: UNIMPLEMENTED.
  virtual absl::StatusOr<base::UniqueFd> Export() = 0;
  // Maps memory of the same kind that another process exported. UNIMPLEMENTED: not possible between these two, another
  // path may be. FAILED_PRECONDITION: it is not what `facts` says.
  virtual absl::StatusOr<std::unique_ptr<PeerMemory>> Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                             const ImportOptions& options) = 0;
};

}  // namespace agentserve::kvstore
