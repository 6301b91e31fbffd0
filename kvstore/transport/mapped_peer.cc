// Reads a peer's pool through a read-only mapping.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/unix_fd.h"
#include "kvstore/transport/control_page.h"
#include "kvstore/transport/handshake.h"
#include "kvstore/transport/peer_pool_impl.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace agentserve::kvstore {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Longest sleep between checks that the owner still lives.
constexpr int64_t kLivenessCheckUs = 20'000;

absl::Status Differs(const PeerEndpoint& peer, std::string_view what, uint64_t got, uint64_t expected) {
  return absl::FailedPreconditionError(base::StrCat("KV pool of ", peer.worker_id, " at ", peer.unix_socket, ": ", what,
                                                    " is ", got, ", expected ", expected));
}

class MappedPeer final : public PeerPool {
 public:
  MappedPeer(const PeerEndpoint& peer, const PeerOptions& options) : PeerPool(peer, options) {}
  ~MappedPeer() override {
    if (base_ != nullptr) munmap(base_, file_bytes_);
  }

  absl::Status Open() {
    if (peer_.unix_socket.empty()) {
      return absl::InvalidArgumentError(base::StrCat("KV pool of ", peer_.worker_id, " offers no unix socket"));
    }
    AS_ASSIGN_OR_RETURN(socket_, base::ConnectUnix(peer_.unix_socket, options_.connect_timeout_ms));
    AS_ASSIGN_OR_RETURN(auto received, base::ReceiveFds(socket_.get(), options_.connect_timeout_ms));
    AS_ASSIGN_OR_RETURN(const PoolHello hello, DecodeHello(received.second));
    AS_RETURN_IF_ERROR(CheckHello(hello));
    AS_RETURN_IF_ERROR(Map(received.first[0].get(), hello.file_bytes));
    AS_RETURN_IF_ERROR(CheckHeader(hello.memory));
    if (hello.memory.kind != MemoryKind::kHost) {
      if (received.first.size() != 2) {
        return absl::DataLossError(base::StrCat("KV pool of ", peer_.worker_id, ": ", received.first.size(),
                                                " descriptors came; blocks on a device need 2"));
      }
      AS_RETURN_IF_ERROR(Import(std::move(received.first[1]), hello.memory));
    }
    AS_RETURN_IF_ERROR(CheckMode());
    return Probe();
  }

  std::string_view transport() const override {
    if (imported_ != nullptr) return imported_->path();
    return into_device() ? "staged" : "mapped";
  }
  // A link between GPUs moves 64 MiB in 0.2 ms.
  size_t bytes_per_read() const override { return imported_ != nullptr ? 64 << 20 : PeerPool::bytes_per_read(); }

  std::chrono::microseconds poll_every() const override {
    return imported_ != nullptr ? std::chrono::microseconds(0) : PeerPool::poll_every();
  }

  bool PeerAlive() override {
    if (gone_.load(std::memory_order_relaxed)) return false;
    char byte = 0;
    const ssize_t n = recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) gone_.store(true, std::memory_order_relaxed);
    return !gone_.load(std::memory_order_relaxed);
  }

  absl::StatusOr<engine::PrefillProgress> LoadProgress(uint32_t slot, uint64_t tag) override {
    if (slot >= page_.header().num_progress_slots || tag == 0) {
      return absl::InvalidArgumentError(base::StrCat("progress slot ", slot, " with tag ", tag, "; slots are below ",
                                                     page_.header().num_progress_slots, " and tags are not 0"));
    }
    const auto progress = page_.LoadProgress(slot, tag);
    if (progress) return *progress;
    return absl::NotFoundError(base::StrCat("progress slot ", slot, " of ", peer_.worker_id, " was released"));
  }

  absl::StatusOr<engine::PrefillProgress> WaitProgress(uint32_t slot, uint64_t tag, engine::PrefillProgress last,
                                                       std::chrono::microseconds timeout) override {
    const auto deadline = SteadyClock::now() + timeout;
    for (;;) {
      // The wake word is loaded before the progress: a change in between makes the wait return at once.
      const uint32_t wake =
          slot < page_.header().num_progress_slots ? page_.slot(slot).wake.load(std::memory_order_acquire) : 0;
      AS_ASSIGN_OR_RETURN(const engine::PrefillProgress now, LoadProgress(slot, tag));
      if (now != last) return now;
      if (!PeerAlive()) return absl::UnavailableError(base::StrCat("worker ", peer_.worker_id, " is gone"));
      const auto left = std::chrono::duration_cast<std::chrono::microseconds>(deadline - SteadyClock::now()).count();
      if (left <= 0) return absl::DeadlineExceededError("no progress");
      FutexWait(page_.slot(slot).wake, wake, std::min<int64_t>(left, kLivenessCheckUs));
    }
  }

  void EndProgress(uint32_t, uint64_t) override {}

  uint64_t SealedDigest(const BlockRef& ref) override {
    if (ref.index >= peer_.num_blocks) return 0;
    const BlockWords& words = page_.block(ref.index);
    const BlockMeta expected{ref.epoch, ref.tokens, BlockState::kSealed};
    if (BlockMeta::Unpack(words.meta.load(std::memory_order_acquire)) != expected) return 0;
    const uint64_t digest = words.digest.load(std::memory_order_relaxed);
    return page_.LoadMetaAfterCopy(ref.index) == expected ? digest : 0;
  }

 protected:
  absl::Status DoRead(std::span<const BlockRef> refs, LayerRange layers, BlockMemory& local,
                      std::span<const engine::BlockId> dst_blocks, std::span<uint64_t> sums) override {
    if (imported_ != nullptr) {
      std::vector<PulledBlock> blocks(refs.size());
      for (size_t i = 0; i < refs.size(); ++i) blocks[i] = {refs[i].index, dst_blocks[i].value, refs[i].tokens};
      return imported_->Gather(blocks, layers.first, layers.count, sums);
    }
    const engine::KvLayout& l = options_.layout;
    const size_t offset = layers.first * l.LayerBytes(), bytes = layers.count * l.LayerBytes();
    if (into_device()) {
      std::vector<PieceIn> pieces(refs.size());
      for (size_t i = 0; i < refs.size(); ++i) {
        pieces[i] = {dst_blocks[i].value, offset, bytes, Block(refs[i].index) + offset};
      }
      AS_RETURN_IF_ERROR(local.CopyIn(pieces));
      return SumCopies(refs, layers, local, dst_blocks, sums);
    }
    for (size_t i = 0; i < refs.size(); ++i) {
      std::byte* to = local.view().Block(dst_blocks[i].value);
      std::memcpy(to + offset, Block(refs[i].index) + offset, bytes);
      if (!sums.empty()) sums[i] = LayerSum(l, to, layers, refs[i].tokens);  // while the copy is in the cache
    }
    return absl::OkStatus();
  }

  ReadOutcome CheckEpoch(const BlockRef& ref, std::string* detail) override {
    const BlockMeta meta = page_.LoadMetaAfterCopy(ref.index);
    if (meta.epoch == ref.epoch && meta.state != BlockState::kFree) return ReadOutcome::kOk;
    *detail = base::StrCat("block ", ref.index, " of ", peer_.worker_id, ": epoch is ", meta.epoch, " (state ",
                           static_cast<int>(meta.state), "), expected ", ref.epoch);
    return ReadOutcome::kStaleEpoch;
  }

  absl::Status Probe() override {
    if (imported_ == nullptr) return PeerPool::Probe();
    AS_ASSIGN_OR_RETURN(gb_per_s_, imported_->Measure(options_.probe_bytes, options_.probe_ms));
    LogProbe(options_.probe_bytes);
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> ProbeOnce(std::span<std::byte> scratch) override {
    std::memcpy(scratch.data(), Block(0), scratch.size());
    return scratch.size();
  }

 private:
  const std::byte* Block(uint32_t index) const { return blocks_ + size_t{index} * options_.layout.BlockBytes(); }

  absl::Status Import(base::UniqueFd fd, const MemoryFacts& facts) {
    if (!into_device()) {
      return absl::UnimplementedError(
          base::StrCat("the blocks of ", peer_.worker_id, " are on a GPU; a worker on the CPU can only stream them"));
    }
    const ImportOptions import{peer_.num_blocks, options_.mode == TransportMode::kStaged};
    AS_ASSIGN_OR_RETURN(imported_, options_.memory->Import(std::move(fd), facts, import));
    return absl::OkStatus();
  }

  // A slower path than asked for is an error; a slower one than possible is told.
  absl::Status CheckMode() {
    std::string why;
    if (transport() == "staged") {
      why = imported_ != nullptr ? imported_->problem()
                                 : base::StrCat("the blocks of ", peer_.worker_id, " are in host memory, ours on ",
                                                options_.memory->name());
    }
    if (options_.mode == TransportMode::kMapped && transport() != "mapped") {
      return absl::UnavailableError(base::StrCat("KV pool of ", peer_.worker_id, " can only be staged: ", why));
    }
    if (options_.mode == TransportMode::kStaged && transport() != "staged") {
      return absl::InvalidArgumentError("KV transport 'staged' is for GPUs; there is nothing to stage here");
    }
    if (options_.mode == TransportMode::kAuto && transport() == "staged") {
      problem_ = base::StrCat("mapped path does not work: ", why);
      AS_LOG(kWarn, "kv.transport.fallback") << base::Field("peer", peer_.worker_id)
                                             << base::Field("transport", "staged") << base::Field("problem", problem_);
    }
    return absl::OkStatus();
  }

  absl::Status CheckHello(const PoolHello& hello) {
    if (hello.worker_id != peer_.worker_id) {
      return absl::FailedPreconditionError(base::StrCat("socket ", peer_.unix_socket, " belongs to worker ",
                                                        hello.worker_id, ", expected ", peer_.worker_id));
    }
    if (hello.incarnation != peer_.incarnation) {
      return Differs(peer_, "incarnation", hello.incarnation, peer_.incarnation);
    }
    if (hello.layout_fingerprint != peer_.layout_fingerprint) {
      return Differs(peer_, "layout fingerprint", hello.layout_fingerprint, peer_.layout_fingerprint);
    }
    return absl::OkStatus();
  }

  absl::Status Map(int fd, uint64_t file_bytes) {
    struct stat st {};
    if (fstat(fd, &st) != 0) return absl::UnavailableError(base::StrCat("fstat of the pool: ", strerror(errno)));
    if (static_cast<uint64_t>(st.st_size) != file_bytes || file_bytes < sizeof(PoolHeader)) {
      return Differs(peer_, "size of the pool file", static_cast<uint64_t>(st.st_size), file_bytes);
    }
    // Without this seal the owner could shrink the file and a copy would end in SIGBUS.
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
      return absl::FailedPreconditionError(
          base::StrCat("KV pool of ", peer_.worker_id, ": the pool file is not sealed against shrinking"));
    }
    void* p = mmap(nullptr, file_bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          base::StrCat("KV pool of ", peer_.worker_id, ": cannot map ", file_bytes, " bytes: ", strerror(errno)));
    }
    base_ = static_cast<std::byte*>(p);
    file_bytes_ = file_bytes;
    madvise(p, file_bytes, MADV_POPULATE_READ);  // page tables now, not in the first pulls; best effort
    return absl::OkStatus();
  }

  absl::Status CheckHeader(const MemoryFacts& memory) {
    const PoolHeader& h = *reinterpret_cast<const PoolHeader*>(base_);
    const engine::KvLayout& l = options_.layout;
    const bool in_file = memory.kind == MemoryKind::kHost;
    const auto geometry = ComputeGeometry(l, h.num_blocks, h.num_progress_slots, 4096, in_file);
    if (!geometry) return Differs(peer_, "number of blocks", h.num_blocks, peer_.num_blocks);
    const struct {
      std::string_view what;
      uint64_t got, expected;
    } rules[] = {
        {"magic", h.magic, kPoolMagic},
        {"format version", h.version, kPoolFormatVersion},
        {"header size", h.header_bytes, sizeof(PoolHeader)},
        {"incarnation in the header", h.incarnation, peer_.incarnation},
        {"number of layers", h.num_layers, l.num_layers},
        {"number of KV heads", h.num_kv_heads, l.num_kv_heads},
        {"head size", h.head_dim, l.head_dim},
        {"tokens per block", h.block_tokens, l.block_tokens},
        {"dtype", h.dtype, static_cast<uint64_t>(l.dtype)},
        {"model fingerprint", h.model_fingerprint, l.model_fingerprint},
        {"layout fingerprint in the header", h.layout_fingerprint, peer_.layout_fingerprint},
        {"number of blocks", h.num_blocks, peer_.num_blocks},
        {"block size", h.block_bytes, geometry->block_bytes},
        {"kind of memory", h.memory_kind, static_cast<uint64_t>(memory.kind)},
        {"digest algorithm", h.digest_algorithm, kPositionalSum},
    };
    for (const auto& r : rules) {
      if (r.got != r.expected) return Differs(peer_, r.what, r.got, r.expected);
    }
    // The first block may be aligned further (huge pages), never less.
    if (h.control_bytes < geometry->control_bytes || h.control_bytes % 4096 != 0 || h.control_bytes > file_bytes_ ||
        file_bytes_ - h.control_bytes != (in_file ? geometry->blocks_bytes : 0)) {
      return Differs(peer_, "offset of the first block", h.control_bytes, geometry->control_bytes);
    }
    if (!in_file && memory.allocation_bytes < geometry->blocks_bytes) {
      return Differs(peer_, "size of the device memory", memory.allocation_bytes, geometry->blocks_bytes);
    }
    page_ = ControlPage(base_, *geometry);
    if (in_file) blocks_ = base_ + h.control_bytes;
    return absl::OkStatus();
  }

  base::UniqueFd socket_;
  std::byte* base_ = nullptr;
  const std::byte* blocks_ = nullptr;
  size_t file_bytes_ = 0;
  std::unique_ptr<PeerMemory> imported_;  // null: the blocks are in the file
  ControlPage page_;
  std::atomic<bool> gone_{false};
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerPool>> ConnectMapped(const PeerEndpoint& peer, const PeerOptions& options) {
  auto pool = std::make_unique<MappedPeer>(peer, options);
  AS_RETURN_IF_ERROR(pool->Open());
  return pool;
}

}  // namespace agentserve::kvstore
