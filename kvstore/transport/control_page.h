// The words that the owner of a KV pool shares with its readers; layout and memory ordering are specified in
// docs/kv_block_format.md sections 2 and 3.
//
// The owner maps the file writable, readers map it read-only: every accessor below that takes a const page only loads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "engine/kv_layout.h"

namespace agentserve::kvstore {

inline constexpr uint64_t kPoolMagic = 0x31304b4c424b5641;
inline constexpr uint32_t kPoolFormatVersion = 2;
// How digests are computed: the only way at present. 0 was another one.
inline constexpr uint32_t kPositionalSum = 1;
inline constexpr size_t kWorkerIdBytes = 64;  // zero-padded, so at most 63 characters

enum class BlockState : uint8_t { kFree = 0, kWriting = 1, kSealed = 2 };

// What a block's `meta` word says. A consistent triple: it is loaded and stored as one word.
struct BlockMeta {
  uint32_t epoch = 0;
  uint32_t tokens = 0;
  BlockState state = BlockState::kFree;
  bool operator==(const BlockMeta&) const = default;

  uint64_t Pack() const {
    return (uint64_t{epoch} << 32) | (uint64_t{tokens & 0xffffff} << 8) | static_cast<uint8_t>(state);
  }
  static BlockMeta Unpack(uint64_t w) {
    return {static_cast<uint32_t>(w >> 32), static_cast<uint32_t>((w >> 8) & 0xffffff),
            static_cast<BlockState>(w & 0xff)};
  }
};

struct PoolHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint64_t incarnation;
  uint64_t layout_fingerprint;
  uint64_t model_fingerprint;
  uint32_t num_layers, num_kv_heads, head_dim, block_tokens, dtype;
  uint32_t num_blocks;
  uint32_t num_progress_slots;
  uint32_t reserved0;
  uint64_t control_bytes;
  uint64_t block_bytes;
  char worker_id[kWorkerIdBytes];
  uint32_t memory_kind;       // MemoryKind: whether the blocks are in this file
  uint32_t digest_algorithm;  // kPositionalSum
  char reserved1[96];
};
static_assert(sizeof(PoolHeader) == 256);

struct BlockWords {
  std::atomic<uint64_t> meta;
  std::atomic<uint64_t> digest;
};
static_assert(sizeof(BlockWords) == 16);

struct alignas(64) ProgressSlot {
  std::atomic<uint64_t> tag;
  std::atomic<uint64_t> progress;
  std::atomic<uint32_t> wake;
};
static_assert(sizeof(ProgressSlot) == 64);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
              "words are shared between processes");

// Sizes of a pool file. Computed from untrusted numbers too, hence optional: nullopt = the numbers overflow or are 0.
struct PoolGeometry {
  size_t slots_offset = 0;
  size_t control_bytes = 0;
  size_t block_bytes = 0;
  size_t blocks_bytes = 0;  // of all blocks together
  size_t file_bytes = 0;    // control page, and the blocks if they are in the file
};
// `align` is the alignment of the first block (4 KiB or 2 MiB).
std::optional<PoolGeometry> ComputeGeometry(const engine::KvLayout& layout, uint32_t num_blocks, uint32_t num_slots,
                                            size_t align, bool blocks_in_file = true);

// A view of a mapped control page. Does not own the mapping. Thread-safe as far as the words are (see the owner's
// rules).
class ControlPage {
 public:
  ControlPage() = default;
  // `base`: start of the mapping, whose geometry was checked.
  ControlPage(std::byte* base, const PoolGeometry& geometry) : base_(base), slots_offset_(geometry.slots_offset) {}

  const PoolHeader& header() const { return *reinterpret_cast<const PoolHeader*>(base_); }
  BlockWords& block(uint32_t i) const { return reinterpret_cast<BlockWords*>(base_ + sizeof(PoolHeader))[i]; }
  ProgressSlot& slot(uint32_t i) const { return reinterpret_cast<ProgressSlot*>(base_ + slots_offset_)[i]; }

  // meta of block `i`, ordered after every earlier plain load of the caller (rule "reader 3").
  BlockMeta LoadMetaAfterCopy(uint32_t i) const;
  // Word of the slot if its tag is `tag` around the load, else nullopt (the slot was reused or released).
  std::optional<engine::PrefillProgress> LoadProgress(uint32_t slot_index, uint64_t tag) const;

 private:
  std::byte* base_ = nullptr;
  size_t slots_offset_ = 0;
};

// Full fences of the sequence-lock rules. (Under ThreadSanitizer, which does not know fences, an equivalent
// read-modify-write.)
void AcquireFence();
void ReleaseFence();

// Waits until *word != expected or about `timeout_us` have passed; may return early. Works on read-only mappings.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected, int64_t timeout_us);
// Wakes all waiters of every process.
void FutexWakeAll(std::atomic<uint32_t>& word);

}  // namespace agentserve::kvstore
