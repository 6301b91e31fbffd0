// What a hand-off between two processes costs: the owner writes progress words as a prefill of a given speed would, the
// reader pulls behind it, layer by layer, as a decode worker does.
//
//   kv_handoff_bench [reader's GPU] [tries]      the owner is on GPU 0
//
// exposed: from the owner's last layer to the end of the reader's validation, i.e. what the overlap did not hide; it
// contains the owner's digests of the last chunk and one message between the processes. whole: everything at once, when
// nothing was pulled before.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "kvstore/transport/cuda/owner_process_for_test.h"
#include "kvstore/transport/device_memory.h"
#include "kvstore/transport/peer_pool_impl.h"

namespace agentserve::kvstore::cuda {
namespace {

using engine::BlockId;

uint64_t NowUs() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

struct Shape {
  const char* name;
  engine::KvLayout layout;
  double prefill_ms[3];  // of 1k, 8k and 32k tokens: what the kernels aim at
};
constexpr uint32_t kPrompts[3] = {1024, 8192, 32768};
constexpr uint32_t kChunk = 8192;

struct Result {
  uint64_t exposed_us = 0, copy_us = 0, validate_us = 0, seal_us = 0;
  uint32_t reads = 0;
};

class Reader {
 public:
  Reader(OwnerProcess* owner, PeerPool* peer, BlockMemory* memory, uint32_t blocks)
      : owner_(*owner), peer_(*peer), memory_(*memory) {
    for (uint32_t i = 0; i < blocks; ++i) to_.emplace_back((i * 7919) % blocks);  // blocks is a power of two
  }

  Result Follow(const std::vector<BlockRef>& refs, uint32_t chunks, uint32_t layer_us) {
    const uint32_t n = static_cast<uint32_t>(refs.size()), layers = memory_.view().layout.num_layers;
    Result r;
    std::vector<uint32_t> copied(n, 0);
    std::vector<uint64_t> digests(n, 0);
    const ProgressRef slot = owner_.Prefill(0, n, chunks, layer_us);
    const auto ready_of = [&](const engine::PrefillProgress& p, uint32_t i) {
      const uint32_t end = (i + 1) * memory_.view().layout.block_tokens;
      return end <= p.complete ? layers : end <= p.chunk_end ? p.layers : 0;
    };
    while (copied.back() < layers) {
      const auto progress = peer_.LoadProgress(slot.slot, slot.tag);
      AS_CHECK(progress.ok()) << progress.status().message();
      bool any = false;
      for (uint32_t i = 0; i < n;) {
        const uint32_t ready = ready_of(*progress, i), from = copied[i];
        uint32_t end = i + 1;
        if (ready > from) {
          const size_t most =
              std::max<size_t>(1, peer_.bytes_per_read() / ((ready - from) * memory_.view().layout.LayerBytes()));
          while (end < n && end - i < most && copied[end] == from && ready_of(*progress, end) == ready) ++end;
          const uint64_t begin = NowUs();
          AS_CHECK(peer_
                       .ReadLayers(std::span(refs).subspan(i, end - i), from, ready - from, memory_.view(),
                                   std::span<const BlockId>(to_).subspan(i, end - i))
                       .ok());
          r.copy_us += NowUs() - begin;
          ++r.reads;
          std::fill(copied.begin() + i, copied.begin() + end, ready);
          any = true;
        }
        i = end;
      }
      Digest(refs, copied, &digests);
      if (!any) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    Digest(refs, copied, &digests);  // while the owner computes its own
    const auto [last_layer, sealed] = owner_.PrefillEnd();
    const uint64_t begin = NowUs();
    const ValidateResult valid = peer_.Validate(refs, memory_.view(), std::span<const BlockId>(to_).first(n), digests);
    AS_CHECK(valid.ok()) << valid.detail;
    r.validate_us = NowUs() - begin;
    r.exposed_us = NowUs() - last_layer;
    r.seal_us = sealed;
    return r;
  }

  // Of the blocks that are complete and have none yet, from the first such on.
  void Digest(const std::vector<BlockRef>& refs, const std::vector<uint32_t>& copied, std::vector<uint64_t>* digests) {
    const size_t begin = static_cast<size_t>(std::find(digests->begin(), digests->end(), 0) - digests->begin());
    size_t end = begin;
    while (end < refs.size() && copied[end] == memory_.view().layout.num_layers) ++end;
    if (begin == end) return;
    AS_CHECK(peer_
                 .DigestCopies(std::span(refs).subspan(begin, end - begin), memory_.view(),
                               std::span<const BlockId>(to_).subspan(begin, end - begin),
                               std::span(*digests).subspan(begin, end - begin))
                 .ok());
  }

  uint64_t Whole(const std::vector<BlockRef>& refs) {
    const uint64_t begin = NowUs();
    AS_CHECK(peer_.ReadBlocks(refs, memory_.view(), std::span<const BlockId>(to_).first(refs.size())).ok());
    return NowUs() - begin;
  }

 private:
  OwnerProcess& owner_;
  PeerPool& peer_;
  BlockMemory& memory_;
  std::vector<BlockId> to_;
};

void Run(const Shape& shape, int device, TransportMode mode, int tries) {
  constexpr uint32_t kBlocks = 2048;
  OwnerProcess owner({0, shape.layout, kBlocks});
  auto memory = NewDeviceMemory(device, shape.layout, kBlocks);
  AS_CHECK(memory.ok()) << memory.status().message();
  PeerOptions options;
  options.layout = shape.layout;
  options.memory = memory->get();
  options.mode = mode;
  options.probe_bytes = 64 << 20;
  auto peer = ConnectMapped(owner.endpoint(), options);
  AS_CHECK(peer.ok()) << peer.status().message();
  const std::vector<BlockRef> all = owner.Write(0, kBlocks, 1, 0, 16);
  Reader reader(&owner, peer->get(), memory->get(), kBlocks);
  for (int k = 0; k < 3; ++k) {
    const uint32_t tokens = kPrompts[k], chunks = std::max(1u, tokens / kChunk);
    const std::vector<BlockRef> refs(all.begin(), all.begin() + tokens / 16);
    const double bytes = static_cast<double>(refs.size() * shape.layout.BlockBytes());
    const auto layer_us = static_cast<uint32_t>(shape.prefill_ms[k] * 1000 / (chunks * shape.layout.num_layers));
    std::vector<Result> results;
    std::vector<uint64_t> whole;
    for (int t = 0; t < tries; ++t) {
      results.push_back(reader.Follow(refs, chunks, layer_us));
      whole.push_back(reader.Whole(refs));
    }
    std::sort(results.begin(), results.end(),
              [](const Result& a, const Result& b) { return a.exposed_us < b.exposed_us; });
    std::sort(whole.begin(), whole.end());
    const Result& r = results[results.size() / 2];
    const double prefill_us = shape.prefill_ms[k] * 1000;
    std::printf("| %s %5u | %s | %6.0f | %7.1f | %5lu (%5lu) | %5.2f | %5lu | %5lu | %4u | %6.1f | %6.1f |\n",
                shape.name, tokens, std::string((*peer)->transport()).c_str(), bytes / 1e6, shape.prefill_ms[k],
                r.exposed_us, results.back().exposed_us, 100.0 * static_cast<double>(r.exposed_us) / prefill_us,
                r.seal_us, r.validate_us, r.reads, bytes / 1e3 / static_cast<double>(r.copy_us),
                bytes / 1e3 / static_cast<double>(whole[whole.size() / 2]));
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  base::InitLog("bench", base::LogLevel::kWarn, false);
  const int device = argc > 1 ? std::atoi(argv[1]) : 0, tries = argc > 2 ? std::atoi(argv[2]) : 3;
  std::string why;
  const size_t devices = ListDevices(&why).size();
  if (static_cast<size_t>(device) >= devices) {
    std::printf("SKIPPED: %s\n", devices == 0 ? why.c_str() : "no such GPU");
    return 77;
  }
  const Shape shapes[] = {{"1B", {16, 8, 64, 16, engine::KvDtype::kBf16, 1}, {3.2, 33, 200}},
                          {"3B", {28, 8, 128, 16, engine::KvDtype::kBf16, 2}, {8.8, 86, 480}}};
  std::printf("owner GPU 0, reader GPU %d\n", device);
  std::printf(
      "| shape, tokens | path | MB | prefill ms | exposed us (max) | %% of prefill | of it seal us | validate us | "
      "reads | GB/s behind | GB/s whole |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : shapes) Run(shape, device, TransportMode::kAuto, tries);
  Run(shapes[0], device, TransportMode::kStaged, 1);
  return 0;
}

}  // namespace
}  // namespace agentserve::kvstore::cuda

int main(int argc, char** argv) {
  agentserve::kvstore::cuda::RunOwnerIfAsked();
  return agentserve::kvstore::cuda::Main(argc, argv);
}
