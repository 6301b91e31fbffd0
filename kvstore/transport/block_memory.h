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

namespace agentserve::kvstore {

// Values are in the pool's header and in the handshake (docs/kv_block_format.md).
enum class MemoryKind : uint32_t { kHost = 0, kCuda = 1 };

// What a reader must know about a pool's memory before it maps it.
struct MemoryFacts {
  MemoryKind kind = MemoryKind::kHost;
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

// A block that is read from a peer's pool. `tokens` as in DigestItem.
struct PulledBlock {
  uint32_t from = 0, to = 0;
  uint32_t tokens = 0;
};

// Digest sums (digest.h) of some blocks, taken layer by layer while they are written. One thread at a time. Must not
// outlive its memory.
class LayerSums {
 public:
  virtual ~LayerSums() = default;
  // Adds layers [first, first + count), above those before, whose bytes are complete. A device may read them after this
  // has returned: nobody writes to those rows before Take.
  virtual absl::Status Add(uint32_t first, uint32_t count) = 0;
  // What was added since the last Take, in the order of the items. INTERNAL: the device failed.
  virtual absl::Status Take(std::span<uint64_t> sums) = 0;
};

// Blocks of another process, mapped read-only. Thread-safe. Must not outlive the memory that imported it.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  // Copies layers [first, first + count) of blocks[i].from here to blocks[i].to of the memory that imported this, and
  // stores the digest sums of the copies, unless `sums` is empty. When it returns, the copy is complete and visible to
  // everything that this process starts on its device afterwards. Indices were checked.
  virtual absl::Status Gather(std::span<const PulledBlock> blocks, uint32_t first, uint32_t count,
                              std::span<uint64_t> sums) = 0;
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
  // Begins to digest blocks that are being written.
  virtual absl::StatusOr<std::unique_ptr<LayerSums>> BeginSums(std::span<const DigestItem> items) = 0;
  // Sums of layers [first, first + count) of blocks whose bytes are complete there. `sums` has a place for each
  // item.
  absl::Status Sums(std::span<const DigestItem> items, uint32_t first, uint32_t count, std::span<uint64_t> sums);
  // Makes ready for so many copies at once: doing it later would stop the device for a moment.
  virtual absl::Status WarmUp(size_t) { return absl::OkStatus(); }
  // Memory to and from which CopyOut and CopyIn are as fast as they get: pinned, for a GPU, so that its copy engine
  // works alone. Not cleared. RESOURCE_EXHAUSTED: there is not so much.
  virtual absl::StatusOr<std::unique_ptr<HostBuffer>> NewHostBuffer(size_t bytes) = 0;
  // Descriptor of the memory for peers. Host memory lies in the pool's file and has none: UNIMPLEMENTED.
  virtual absl::StatusOr<base::UniqueFd> Export() = 0;
  // Maps memory of the same kind that another process exported. UNIMPLEMENTED: not possible between these two, another
  // path may be. FAILED_PRECONDITION: it is not what `facts` says.
  virtual absl::StatusOr<std::unique_ptr<PeerMemory>> Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                             const ImportOptions& options) = 0;
};

}  // namespace agentserve::kvstore
