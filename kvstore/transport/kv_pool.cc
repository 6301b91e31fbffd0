#include "kvstore/transport/kv_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/check.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/digest.h"
#include "kvstore/transport/host_memory.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace agentserve::kvstore {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = 2 << 20;
// A slot costs 64 bytes; more prompts than this in flight at one worker is a configuration error.
constexpr uint32_t kMaxProgressSlots = 1 << 20;

// MemAvailable of /proc/meminfo in bytes; 0 = not known.
uint64_t AvailableMemory() {
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (in >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(in, unit);
  }
  return 0;
}

absl::Status CheckOptions(const KvPoolOptions& o) {
  if (o.worker_id.empty() || o.worker_id.size() >= kWorkerIdBytes) {
    return absl::InvalidArgumentError(
        base::StrCat("KV pool: worker id '", o.worker_id, "' must have 1..", kWorkerIdBytes - 1, " bytes"));
  }
  if (o.incarnation == 0) return absl::InvalidArgumentError("KV pool: incarnation 0 means 'none'; draw a random one");
  if (o.num_progress_slots == 0 || o.num_progress_slots > kMaxProgressSlots) {
    return absl::InvalidArgumentError(
        base::StrCat("KV pool: ", o.num_progress_slots, " progress slots; 1..", kMaxProgressSlots));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvPool>> KvPool::Create(const KvPoolOptions& options,
                                                       std::unique_ptr<BlockMemory> device_memory) {
  AS_RETURN_IF_ERROR(CheckOptions(options));
  const auto geometry =
      ComputeGeometry(options.layout, options.num_blocks, options.num_progress_slots,
                      options.huge_pages ? kHugePageBytes : kPageBytes, /*blocks_in_file=*/device_memory == nullptr);
  if (!geometry) {
    return absl::InvalidArgumentError(base::StrCat(
        "KV pool: impossible shape: ", options.num_blocks, " blocks of ", options.layout.num_layers, " layers x ",
        options.layout.num_kv_heads, " KV heads x ", options.layout.head_dim, " x ", options.layout.block_tokens,
        " tokens (all must be positive, a row of a head a multiple of 16 bytes, and the pool must fit the address "
        "space)"));
  }
  const uint64_t available = AvailableMemory();
  if (available != 0 && geometry->file_bytes > available) {
    return absl::ResourceExhaustedError(base::StrCat(
        "KV pool: ", options.num_blocks, " blocks need ", geometry->file_bytes >> 20, " MiB, but only ",
        available >> 20, " MiB of memory are available; ask for fewer blocks (--kv-blocks or --kv-memory-mib)"));
  }
  if (device_memory != nullptr) {
    const engine::KvPoolView& v = device_memory->view();
    AS_CHECK(v.layout == options.layout && v.num_blocks == options.num_blocks) << "memory made for another pool";
  }
  std::unique_ptr<KvPool> pool(new KvPool(options, std::move(device_memory)));
  pool->geometry_ = *geometry;
  AS_RETURN_IF_ERROR(pool->Map());
  pool->WriteHeader();
  pool->free_slots_.reserve(options.num_progress_slots);
  for (uint32_t i = options.num_progress_slots; i > 0; --i) pool->free_slots_.push_back(i - 1);
  return pool;
}

KvPool::~KvPool() {
  if (base_ != nullptr) munmap(base_, geometry_.file_bytes);
}

absl::Status KvPool::Map() {
  const std::string name = "agentserve-kv-" + options_.worker_id;
  fd_.Reset(memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd_.valid()) return absl::UnavailableError(base::StrCat("KV pool: memfd_create: ", strerror(errno)));
  const auto bytes = static_cast<off_t>(geometry_.file_bytes);
  if (ftruncate(fd_.get(), bytes) != 0) {
    return absl::ResourceExhaustedError(
        base::StrCat("KV pool: cannot size the pool to ", bytes, " bytes: ", strerror(errno)));
  }
  void* p = mmap(nullptr, geometry_.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(base::StrCat("KV pool: cannot map ", bytes, " bytes: ", strerror(errno)));
  }
  base_ = static_cast<std::byte*>(p);
  if (options_.huge_pages) madvise(p, geometry_.file_bytes, MADV_HUGEPAGE);
  // Commit now: lack of memory must show here, not as SIGBUS in the middle of a step.
  if (const int rc = posix_fallocate(fd_.get(), 0, bytes); rc != 0) {
    return absl::ResourceExhaustedError(
        base::StrCat("KV pool: no memory for ", bytes >> 20, " MiB (", strerror(rc), "); ask for fewer blocks"));
  }
  madvise(p, geometry_.file_bytes, MADV_POPULATE_WRITE);  // page tables; best effort
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  // FUTURE_WRITE (Linux 5.1): nobody, not even through /proc/PID/fd, gets another writable mapping.
  if (fcntl(fd_.get(), F_ADD_SEALS, kSeals | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0 &&
      fcntl(fd_.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0) {
    return absl::UnavailableError(base::StrCat("KV pool: cannot seal the pool's size: ", strerror(errno)));
  }
  page_ = ControlPage(base_, geometry_);
  if (memory_ == nullptr) {
    memory_ = std::make_unique<HostMemory>(
        engine::KvPoolView{base_ + geometry_.control_bytes, options_.num_blocks, options_.layout});
  }
  return absl::OkStatus();
}

void KvPool::WriteHeader() {
  const engine::KvLayout& l = options_.layout;
  PoolHeader h{};
  h.magic = kPoolMagic;
  h.version = kPoolFormatVersion;
  h.header_bytes = sizeof(PoolHeader);
  h.incarnation = options_.incarnation;
  h.layout_fingerprint = l.Fingerprint();
  h.model_fingerprint = l.model_fingerprint;
  h.num_layers = l.num_layers;
  h.num_kv_heads = l.num_kv_heads;
  h.head_dim = l.head_dim;
  h.block_tokens = l.block_tokens;
  h.dtype = static_cast<uint32_t>(l.dtype);
  h.num_blocks = options_.num_blocks;
  h.num_progress_slots = options_.num_progress_slots;
  h.control_bytes = geometry_.control_bytes;
  h.block_bytes = geometry_.block_bytes;
  h.memory_kind = static_cast<uint32_t>(memory_->facts().kind);
  h.digest_algorithm = kPositionalSum;
  std::memcpy(h.worker_id, options_.worker_id.data(), options_.worker_id.size());
  std::memcpy(base_, &h, sizeof(h));
}

void KvPool::SetBlockEpoch(engine::BlockId block, engine::Epoch epoch) {
  AS_CHECK_LT(block.value, options_.num_blocks);
  page_.block(block.value)
      .meta.store(BlockMeta{epoch.value, 0, BlockState::kWriting}.Pack(), std::memory_order_relaxed);
  ReleaseFence();
}

void KvPool::SealBlock(engine::BlockId block, uint32_t tokens, uint64_t digest) {
  AS_CHECK_LT(block.value, options_.num_blocks);
  AS_CHECK_LE(tokens, options_.layout.block_tokens);
  BlockWords& w = page_.block(block.value);
  w.digest.store(digest != 0 ? digest : Digest(block, tokens), std::memory_order_relaxed);
  w.meta.store(BlockMeta{Meta(block).epoch, tokens, BlockState::kSealed}.Pack(), std::memory_order_release);
}

void KvPool::ReopenBlock(engine::BlockId block) {
  BlockMeta m = Meta(block);
  m.state = BlockState::kWriting;
  page_.block(block.value).meta.store(m.Pack(), std::memory_order_relaxed);
  ReleaseFence();
}

void KvPool::FreeBlock(engine::BlockId block) {
  page_.block(block.value)
      .meta.store(BlockMeta{Meta(block).epoch, 0, BlockState::kFree}.Pack(), std::memory_order_release);
}

uint64_t KvPool::Digest(engine::BlockId block, uint32_t tokens) const {
  AS_CHECK_LT(block.value, options_.num_blocks);
  const DigestItem item{block.value, tokens};
  uint64_t sum = 0;
  const absl::Status status = memory_->Sums({&item, 1}, 0, layout().num_layers, {&sum, 1});
  AS_CHECK(status.ok()) << status.message();
  return DigestOfSum(sum, tokens);
}

absl::StatusOr<std::vector<uint64_t>> KvPool::Digests(std::span<const engine::SealRequest> seals) const {
  return SealDigests(memory_.get(), seals).Finish();
}

SealDigests::SealDigests(BlockMemory* memory, std::span<const engine::SealRequest> seals)
    : num_layers_(memory->view().layout.num_layers) {
  if (seals.empty()) return;
  std::vector<DigestItem> items;
  items.reserve(seals.size());
  for (const engine::SealRequest& s : seals) {
    items.push_back({s.block.value, s.tokens});
    tokens_.push_back(s.tokens);
  }
  absl::StatusOr<std::unique_ptr<LayerSums>> sums = memory->BeginSums(items);
  status_ = sums.status();
  if (sums.ok()) sums_ = *std::move(sums);
}

void SealDigests::LayerWritten(uint32_t layer) {
  if (sums_ == nullptr || !status_.ok() || layer < layers_) return;
  status_ = sums_->Add(layers_, layer + 1 - layers_);
  layers_ = layer + 1;
}

absl::StatusOr<std::vector<uint64_t>> SealDigests::Finish() {
  std::vector<uint64_t> digests(tokens_.size());
  if (layers_ < num_layers_) LayerWritten(num_layers_ - 1);
  AS_RETURN_IF_ERROR(status_);
  if (sums_ != nullptr) AS_RETURN_IF_ERROR(sums_->Take(digests));
  for (size_t i = 0; i < digests.size(); ++i) digests[i] = DigestOfSum(digests[i], tokens_[i]);
  return digests;
}

BlockMeta KvPool::Meta(engine::BlockId block) const {
  AS_CHECK_LT(block.value, options_.num_blocks);
  return BlockMeta::Unpack(page_.block(block.value).meta.load(std::memory_order_acquire));
}

absl::StatusOr<ProgressRef> KvPool::AcquireProgress() {
  std::lock_guard lock(mu_);
  if (free_slots_.empty()) {
    return absl::ResourceExhaustedError(
        base::StrCat("KV pool: all ", options_.num_progress_slots, " progress slots are in use"));
  }
  const ProgressRef ref{free_slots_.back(), next_tag_++};
  free_slots_.pop_back();
  ProgressSlot& s = page_.slot(ref.slot);
  s.tag.store(0, std::memory_order_relaxed);
  ReleaseFence();
  s.progress.store(0, std::memory_order_release);
  s.tag.store(ref.tag, std::memory_order_release);
  return ref;
}

void KvPool::StoreProgress(const ProgressRef& ref, engine::PrefillProgress progress) {
  AS_CHECK_LT(ref.slot, options_.num_progress_slots);
  ProgressSlot& s = page_.slot(ref.slot);
  AS_CHECK_EQ(s.tag.load(std::memory_order_relaxed), ref.tag) << "progress of a released slot";
  s.progress.store(progress.Pack(), std::memory_order_release);
  Wake(s);
}

void KvPool::ReleaseProgress(const ProgressRef& ref) {
  AS_CHECK_LT(ref.slot, options_.num_progress_slots);
  ProgressSlot& s = page_.slot(ref.slot);
  {
    std::lock_guard lock(mu_);
    if (ref.tag == 0 || s.tag.load(std::memory_order_relaxed) != ref.tag) return;
    s.tag.store(0, std::memory_order_release);
    free_slots_.push_back(ref.slot);
  }
  Wake(s);
}

void KvPool::Wake(ProgressSlot& slot) {
  slot.wake.fetch_add(1, std::memory_order_release);
  FutexWakeAll(slot.wake);
  progress_epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (progress_waiters_.load(std::memory_order_seq_cst) != 0) FutexWakeAll(progress_epoch_);
}

void KvPool::WaitAnyProgress(uint32_t seen, int64_t timeout_us) {
  progress_waiters_.fetch_add(1, std::memory_order_seq_cst);
  if (progress_epoch_.load(std::memory_order_seq_cst) == seen) FutexWait(progress_epoch_, seen, timeout_us);
  progress_waiters_.fetch_sub(1, std::memory_order_seq_cst);
}

void KvPool::WakeProgressWaiters() {
  progress_epoch_.fetch_add(1, std::memory_order_seq_cst);
  FutexWakeAll(progress_epoch_);
}

uint32_t KvPool::progress_slots_in_use() const {
  std::lock_guard lock(mu_);
  return options_.num_progress_slots - static_cast<uint32_t>(free_slots_.size());
}

absl::StatusOr<base::UniqueFd> KvPool::OpenReadOnly() const {
  const std::string path = base::StrCat("/proc/self/fd/", fd_.get());
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return absl::UnavailableError(
        base::StrCat("KV pool: cannot reopen ", path, " read-only (is /proc mounted?): ", strerror(errno)));
  }
  return fd;
}

}  // namespace agentserve::kvstore
