#include "kvstore/transport/control_page.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#include <limits>

#if defined(__SANITIZE_THREAD__)
#define AGENTSERVE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define AGENTSERVE_TSAN 1
#endif
#endif

namespace agentserve::kvstore {
namespace {

#ifdef AGENTSERVE_TSAN
std::atomic<uint64_t> fence_word{0};
#endif

// a * b or a + b, false on overflow.
bool Mul(size_t a, size_t b, size_t* out) { return !__builtin_mul_overflow(a, b, out); }
bool Add(size_t a, size_t b, size_t* out) { return !__builtin_add_overflow(a, b, out); }

bool AlignUp(size_t v, size_t align, size_t* out) {
  if (!Add(v, align - 1, out)) return false;
  *out -= *out % align;
  return true;
}

}  // namespace

void AcquireFence() {
#ifdef AGENTSERVE_TSAN
  fence_word.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
}

void ReleaseFence() {
#ifdef AGENTSERVE_TSAN
  fence_word.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_release);
#endif
}

std::optional<PoolGeometry> ComputeGeometry(const engine::KvLayout& layout, uint32_t num_blocks, uint32_t num_slots,
                                            size_t align, bool blocks_in_file) {
  PoolGeometry g;
  size_t piece = 0, words = 0, slots = 0;
  if (layout.dtype != engine::KvDtype::kBf16 && layout.dtype != engine::KvDtype::kFp32) return std::nullopt;
  if (num_blocks == 0 || layout.block_tokens == 0 || layout.block_tokens > 0xffff) return std::nullopt;
  bool ok = Mul(layout.block_tokens, layout.head_dim, &piece) && Mul(piece, layout.ElementBytes(), &piece) &&
            Mul(piece, size_t{2} * layout.num_kv_heads, &piece) && Mul(piece, layout.num_layers, &g.block_bytes);
  if (!ok || g.block_bytes == 0) return std::nullopt;
  if (layout.head_dim * layout.ElementBytes() % 16 != 0) return std::nullopt;  // digests read whole 16-byte words
  ok = Mul(num_blocks, sizeof(BlockWords), &words) && Add(words, sizeof(PoolHeader), &words) &&
       AlignUp(words, alignof(ProgressSlot), &g.slots_offset) && Mul(num_slots, sizeof(ProgressSlot), &slots) &&
       Add(slots, g.slots_offset, &slots) && AlignUp(slots, align, &g.control_bytes) &&
       Mul(num_blocks, g.block_bytes, &g.blocks_bytes) &&
       Add(blocks_in_file ? g.blocks_bytes : 0, g.control_bytes, &g.file_bytes);
  if (!ok || g.file_bytes > static_cast<size_t>(std::numeric_limits<off_t>::max())) return std::nullopt;
  return g;
}

BlockMeta ControlPage::LoadMetaAfterCopy(uint32_t i) const {
  AcquireFence();
  return BlockMeta::Unpack(block(i).meta.load(std::memory_order_acquire));
}

std::optional<engine::PrefillProgress> ControlPage::LoadProgress(uint32_t slot_index, uint64_t tag) const {
  const ProgressSlot& s = slot(slot_index);
  if (s.tag.load(std::memory_order_acquire) != tag) return std::nullopt;
  const uint64_t word = s.progress.load(std::memory_order_acquire);
  AcquireFence();
  if (s.tag.load(std::memory_order_acquire) != tag) return std::nullopt;
  return engine::PrefillProgress::Unpack(word);
}

void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected, int64_t timeout_us) {
  timespec ts{timeout_us / 1'000'000, (timeout_us % 1'000'000) * 1000};
  const long rc = syscall(SYS_futex, reinterpret_cast<const uint32_t*>(&word), FUTEX_WAIT, expected, &ts, nullptr, 0);
  // A kernel that refuses (a futex on a read-only page, say) must not turn the caller into a busy loop.
  if (rc != 0 && errno != EAGAIN && errno != EINTR && errno != ETIMEDOUT) usleep(200);
}

void FutexWakeAll(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace agentserve::kvstore
