// Blocks on a pretended device: addresses that fault when the host touches them, bytes in a memfd that "peers" map.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>

#include "base/check.h"
#include "kvstore/transport/block_memory.h"
#include "kvstore/transport/digest.h"
#include "kvstore/transport/host_memory.h"

namespace agentserve::kvstore {

struct FakeDevice {
  uint8_t number = 1;
  // What Import meets.
  bool reaches_peers = true;
  bool sees_peers = true;
  // Every call fails from now on, as after a device error.
  bool broken = false;
};

class FakeMemory final : public BlockMemory {
 public:
  FakeMemory(FakeDevice* device, const engine::KvLayout& layout, uint32_t blocks)
      : device_(device), bytes_(layout.BlockBytes() * blocks) {
    fd_.Reset(memfd_create("fake-device", MFD_CLOEXEC));
    AS_CHECK_EQ(ftruncate(fd_.get(), static_cast<off_t>(bytes_)), 0);
    real_ = static_cast<std::byte*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0));
    void* fake = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    AS_CHECK(real_ != MAP_FAILED && fake != MAP_FAILED);
    view_ = {static_cast<std::byte*>(fake), blocks, layout};
    facts_.kind = MemoryKind::kCuda;
    facts_.device_uuid[0] = device->number;
    facts_.allocation_bytes = bytes_;
  }
  ~FakeMemory() override {
    munmap(real_, bytes_);
    munmap(view_.base, bytes_);
  }

  // Where the bytes are.
  std::byte* Real(uint32_t block) const { return real_ + block * view_.layout.BlockBytes(); }
  int digest_calls() const { return digest_calls_; }

  const engine::KvPoolView& view() const override { return view_; }
  const MemoryFacts& facts() const override { return facts_; }
  std::string name() const override { return "fake"; }
  absl::Status CopyOut(std::span<const PieceOut> pieces) override {
    for (const PieceOut& p : pieces) std::memcpy(p.host, Real(p.block) + p.offset, p.bytes);
    return Health();
  }
  absl::Status CopyIn(std::span<const PieceIn> pieces) override {
    for (const PieceIn& p : pieces) std::memcpy(Real(p.block) + p.offset, p.host, p.bytes);
    return Health();
  }
  absl::StatusOr<std::unique_ptr<LayerSums>> BeginSums(std::span<const DigestItem> items) override {
    ++digest_calls_;
    if (device_->broken) return Health();
    return std::make_unique<HostLayerSums>(view_.layout, items, [this](uint32_t block) { return Real(block); });
  }
  absl::StatusOr<std::unique_ptr<HostBuffer>> NewHostBuffer(size_t bytes) override { return MapHostBuffer(bytes); }
  absl::StatusOr<base::UniqueFd> Export() override { return base::UniqueFd(dup(fd_.get())); }
  absl::StatusOr<std::unique_ptr<PeerMemory>> Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                     const ImportOptions& options) override;

 private:
  class Peer;
  absl::Status Health() const { return device_->broken ? absl::InternalError("the device failed") : absl::OkStatus(); }

  FakeDevice* const device_;
  const size_t bytes_;
  base::UniqueFd fd_;
  std::byte* real_ = nullptr;
  engine::KvPoolView view_;
  MemoryFacts facts_;
  int digest_calls_ = 0;
};

class FakeMemory::Peer final : public PeerMemory {
 public:
  Peer(FakeMemory* local, const base::UniqueFd& fd, size_t bytes, bool staged)
      : local_(*local), bytes_(bytes), staged_(staged) {
    data_ = static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd.get(), 0));
    AS_CHECK(data_ != MAP_FAILED);
  }
  ~Peer() override { munmap(data_, bytes_); }
  absl::Status Gather(std::span<const PulledBlock> blocks, uint32_t first, uint32_t count,
                      std::span<uint64_t> sums) override {
    const engine::KvLayout& l = local_.view().layout;
    const size_t offset = first * l.LayerBytes();
    for (size_t i = 0; i < blocks.size(); ++i) {
      std::byte* to = local_.Real(blocks[i].to);
      std::memcpy(to + offset, data_ + blocks[i].from * l.BlockBytes() + offset, count * l.LayerBytes());
      if (!sums.empty()) sums[i] = LayerSum(l, to, {first, count}, blocks[i].tokens);
    }
    return local_.Health();
  }
  std::string_view path() const override { return staged_ ? "staged" : "mapped"; }
  absl::StatusOr<double> Measure(size_t, int) override { return 123.0; }
  std::string problem() const override { return staged_ ? "no peer access" : ""; }

 private:
  FakeMemory& local_;
  std::byte* data_ = nullptr;
  const size_t bytes_;
  const bool staged_;
};

inline absl::StatusOr<std::unique_ptr<PeerMemory>> FakeMemory::Import(base::UniqueFd fd, const MemoryFacts& facts,
                                                                      const ImportOptions& options) {
  if (!device_->sees_peers) return absl::UnimplementedError("the peer's GPU is hidden from this process");
  return std::make_unique<Peer>(this, fd, facts.allocation_bytes, options.force_staged || !device_->reaches_peers);
}

}  // namespace agentserve::kvstore
