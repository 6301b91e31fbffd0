// Owner side of a KV pool: the control page in a memfd, through which peers read it safely, and memory for blocks, in
// the same memfd or on a GPU (docs/kv_block_format.md).
//
// The pool publishes state; it does not decide it. Which block is free, when an epoch is bumped and what is evicted is
// the business of the engine's block pool, which calls the setters below at each transition.
//
// Threads: setters of one block, and of one progress slot, from one thread at a time; different blocks and slots in
// parallel. Acquire/release of slots is internally locked. Loads from anywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unix_fd.h"
#include "engine/ids.h"
#include "engine/kv_layout.h"
#include "engine/planner.h"
#include "kvstore/transport/block_memory.h"
#include "kvstore/transport/control_page.h"

namespace agentserve::kvstore {

struct KvPoolOptions {
  engine::KvLayout layout;
  uint32_t num_blocks = 0;
  // One per prompt whose KV is offered at the same time: 1024 slots cost 64 KiB.
  uint32_t num_progress_slots = 1024;
  uint64_t incarnation = 0;  // never 0
  std::string worker_id;     // 1..63 bytes
  // Aligns blocks to 2 MiB and asks for transparent huge pages; no error if the kernel has none.
  bool huge_pages = false;
};

// A progress slot in use. `tag` is what KvHandle.progress_tag carries.
struct ProgressRef {
  uint32_t slot = 0;
  uint64_t tag = 0;
};

// Digests of the blocks that a step fills, taken layer by layer while it runs, so that little is left to do at its end.
// One thread at a time; must not outlive the memory. A device's failure shows at Finish.
class SealDigests {
 public:
  SealDigests(BlockMemory* memory, std::span<const engine::SealRequest> seals);
  // Layers up to this one are written in all the blocks. Rising; layers may be left out.
  void LayerWritten(uint32_t layer);
  // All layers are written, and nobody writes to those rows. One digest for each seal, in their order. INTERNAL: the
  // device failed. Call once.
  absl::StatusOr<std::vector<uint64_t>> Finish();

 private:
  const uint32_t num_layers_;
  std::vector<uint32_t> tokens_;
  std::unique_ptr<LayerSums> sums_;  // null: there is nothing to digest, or the device failed
  uint32_t layers_ = 0;              // added
  absl::Status status_;
};

class KvPool {
 public:
  // INVALID_ARGUMENT: bad options. RESOURCE_EXHAUSTED: no memory for so many blocks. With `device_memory` (of the same
  // layout and number of blocks) the blocks are there, else in the memfd.
  static absl::StatusOr<std::unique_ptr<KvPool>> Create(const KvPoolOptions& options,
                                                        std::unique_ptr<BlockMemory> device_memory = nullptr);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  // Memory as the kernels of its device see it. Valid for the life of the pool.
  const engine::KvPoolView& view() const { return memory_->view(); }
  // What is done to the blocks' bytes goes through this.
  BlockMemory& memory() const { return *memory_; }
  const KvPoolOptions& options() const { return options_; }
  const engine::KvLayout& layout() const { return options_.layout; }
  uint64_t file_bytes() const { return geometry_.file_bytes; }

  // FREE -> WRITING with a new epoch. Call before the first byte of the new content is written.
  void SetBlockEpoch(engine::BlockId block, engine::Epoch epoch);
  // WRITING -> SEALED: `tokens` rows are final. `digest` from Digest(); 0 = computed here.
  void SealBlock(engine::BlockId block, uint32_t tokens, uint64_t digest = 0);
  // SEALED -> WRITING of the same content (rows are appended to a partial block); the epoch stays.
  void ReopenBlock(engine::BlockId block);
  // Any -> FREE. The epoch stays until the next SetBlockEpoch.
  void FreeBlock(engine::BlockId block);
  // Digest of the block's first `tokens` rows as they are now; the device must work.
  uint64_t Digest(engine::BlockId block, uint32_t tokens) const;
  // Digests of a step's seals, in their order: one call, since asking a GPU costs more than the hashing. The blocks'
  // bytes are complete and nobody writes to those rows. INTERNAL: the device failed.
  absl::StatusOr<std::vector<uint64_t>> Digests(std::span<const engine::SealRequest> seals) const;
  BlockMeta Meta(engine::BlockId block) const;

  // Progress slots. RESOURCE_EXHAUSTED when all are in use.
  absl::StatusOr<ProgressRef> AcquireProgress();
  // Publishes that the KV described by `progress` is written; wakes readers. Cheap (a store and a futex call).
  void StoreProgress(const ProgressRef& ref, engine::PrefillProgress progress);
  // Readers of the slot see it as gone. Unknown or already released: ignored.
  void ReleaseProgress(const ProgressRef& ref);
  uint32_t progress_slots_in_use() const;

  const ControlPage& control() const { return page_; }
  // A descriptor of the pool's file that can only be read and only be mapped read-only.
  absl::StatusOr<base::UniqueFd> OpenReadOnly() const;

  // For the stream path, in this process: a count of all progress changes, a wait until it differs from `seen` (may
  // return early), and a wake-up of all who wait.
  uint32_t progress_epoch() const { return progress_epoch_.load(std::memory_order_seq_cst); }
  void WaitAnyProgress(uint32_t seen, int64_t timeout_us);
  void WakeProgressWaiters();

 private:
  KvPool(const KvPoolOptions& options, std::unique_ptr<BlockMemory> memory)
      : options_(options), memory_(std::move(memory)) {}
  absl::Status Map();
  void WriteHeader();
  void Wake(ProgressSlot& slot);

  const KvPoolOptions options_;
  PoolGeometry geometry_;
  base::UniqueFd fd_;
  std::byte* base_ = nullptr;
  std::unique_ptr<BlockMemory> memory_;
  ControlPage page_;
  std::atomic<uint32_t> progress_epoch_{0};
  std::atomic<uint32_t> progress_waiters_{0};

  mutable std::mutex mu_;  // guards below
  std::vector<uint32_t> free_slots_;
  uint64_t next_tag_ = 1;
};

}  // namespace agentserve::kvstore
