// GB/s of pulling blocks: plain memcpy between two buffers of this process, mapped pulls and streamed pulls, all in one
// run over the same shapes; and the cost of digests. Arguments: blocks per pull.
#include <benchmark/benchmark.h>

#include "base/log.h"
#include "kvstore/transport/device_memory.h"
#include "kvstore/transport/digest.h"
#include "kvstore/transport/transport_test_util.h"

namespace agentserve::kvstore {
namespace {

// Pools well above the last-level cache, so that pulls come from memory: 256 MiB each.
constexpr size_t kPoolBytes = 256 << 20;

engine::KvLayout LayoutOf(int64_t shape) { return shape == 0 ? TinyLayout() : OneBLayout(); }

// One owner per shape for the whole run, filled once.
Owner& OwnerOf(int64_t shape) {
  static std::map<int64_t, std::unique_ptr<Owner>> owners;
  auto& owner = owners[shape];
  if (owner == nullptr) {
    base::InitLog("bench", base::LogLevel::kWarn, false);
    const engine::KvLayout l = LayoutOf(shape);
    owner = std::make_unique<Owner>(l, static_cast<uint32_t>(kPoolBytes / l.BlockBytes()));
    std::memset(owner->pool().view().base, 1, kPoolBytes);
    for (uint32_t b = 0; b < owner->pool().view().num_blocks; ++b) {
      owner->pool().SetBlockEpoch(engine::BlockId(b), engine::Epoch(1));
    }
  }
  return *owner;
}

// Walks over the pool in pulls of range(1) blocks, which are scattered as a prompt's blocks are after some churn.
class Walk {
 public:
  Walk(const Owner& owner, benchmark::State& state, bool scattered)
      : layout_(LayoutOf(state.range(0))),
        count_(static_cast<uint32_t>(state.range(1))),
        total_(owner.endpoint().num_blocks),
        scattered_(scattered),
        local_(layout_, count_) {}
  std::span<const BlockRef> Next() {
    refs_.clear();
    for (uint32_t i = 0; i < count_; ++i) {
      refs_.push_back({scattered_ ? (next_ * 2654435761u) % total_ : next_ % total_, 1, layout_.block_tokens, 1});
      ++next_;
    }
    return refs_;
  }
  const engine::KvPoolView& dst() const { return local_.view(); }
  std::vector<engine::BlockId> ids() const { return BlockIds(0, count_); }
  int64_t bytes() const { return static_cast<int64_t>(count_ * layout_.BlockBytes()); }
  const engine::KvLayout& layout() const { return layout_; }

 private:
  const engine::KvLayout layout_;
  const uint32_t count_, total_;
  const bool scattered_;
  uint32_t next_ = 0;
  LocalPool local_;
  std::vector<BlockRef> refs_;
};

void Memcpy(benchmark::State& state) {
  Owner& owner = OwnerOf(state.range(0));
  static std::vector<std::byte> source(kPoolBytes, std::byte{1});
  Walk walk(owner, state, true);
  const size_t block = walk.layout().BlockBytes();
  for (auto _ : state) {
    uint32_t i = 0;
    for (const BlockRef& r : walk.Next()) std::memcpy(walk.dst().Block(i++), source.data() + r.index * block, block);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * walk.bytes());
}

void Pull(benchmark::State& state, TransportMode mode, bool scattered, bool layers) {
  Owner& owner = OwnerOf(state.range(0));
  auto peer = PeerPool::Connect(owner.endpoint(), {.layout = LayoutOf(state.range(0)), .mode = mode});
  AS_CHECK(peer.ok()) << peer.status().message();
  Walk walk(owner, state, scattered);
  const auto ids = walk.ids();
  for (auto _ : state) {
    const auto refs = walk.Next();
    if (!layers) {
      AS_CHECK((*peer)->ReadBlocks(refs, walk.dst(), ids).ok());
      continue;
    }
    for (uint32_t l = 0; l < walk.layout().num_layers; ++l) {
      AS_CHECK((*peer)->ReadLayers(refs, l, 1, walk.dst(), ids).ok());
    }
  }
  state.SetBytesProcessed(state.iterations() * walk.bytes());
  state.counters["probe_GB/s"] = (*peer)->gb_per_s();
}

void Mapped(benchmark::State& state) { Pull(state, TransportMode::kMapped, true, false); }
void MappedContiguous(benchmark::State& state) { Pull(state, TransportMode::kMapped, false, false); }
void MappedByLayer(benchmark::State& state) { Pull(state, TransportMode::kMapped, true, true); }
void Stream(benchmark::State& state) { Pull(state, TransportMode::kStream, true, false); }
void StreamByLayer(benchmark::State& state) { Pull(state, TransportMode::kStream, true, true); }

void Digest(benchmark::State& state) {
  Owner& owner = OwnerOf(state.range(0));
  Walk walk(owner, state, true);
  for (auto _ : state) {
    for (const BlockRef& r : walk.Next()) {
      benchmark::DoNotOptimize(BlockDigest(walk.layout(), owner.pool().view().Block(r.index), r.tokens));
    }
  }
  state.SetBytesProcessed(state.iterations() * walk.bytes());
}

// Streams between pools in GPU memory (of two GPUs if there are), as between hosts; sums included.
void StreamGpu(benchmark::State& state, bool layers) {
  const engine::KvLayout layout = OneBLayout();
  const auto blocks = static_cast<uint32_t>(state.range(0)), total = blocks * 2;
  const auto memory = [&](int device) {
    auto made = NewDeviceMemory(device, layout, total);
    AS_CHECK(made.ok()) << made.status().message();
    return *std::move(made);
  };
  Owner owner(layout, total, 11, "prefill-0", 8, memory(0));
  const auto local = memory(static_cast<int>(ListDevices().size()) - 1);
  std::vector<BlockRef> refs;
  for (uint32_t i = 0; i < blocks; ++i) refs.push_back(owner.Write((i * 7919) % total, 1, i));
  auto peer = PeerPool::Connect(owner.endpoint(), {.layout = layout,
                                                   .memory = local.get(),
                                                   .mode = TransportMode::kStream,
                                                   .stream_connections = static_cast<int>(state.range(1))});
  AS_CHECK(peer.ok()) << peer.status().message();
  for (auto _ : state) {
    std::vector<uint64_t> sums(blocks, 0);
    const uint32_t step = layers ? 1 : layout.num_layers;
    for (uint32_t l = 0; l < layout.num_layers; l += step) {
      AS_CHECK((*peer)->ReadLayers(refs, l, step, local->view(), BlockIds(0, blocks), sums).ok());
    }
    AS_CHECK((*peer)->Validate(refs, local->view(), BlockIds(0, blocks), sums).ok());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(blocks * layout.BlockBytes()));
  state.counters["probe_GB/s"] = (*peer)->gb_per_s();
}
[[maybe_unused]] const bool kGpuBenches = [] {
  if (ListDevices().empty()) return false;
  for (const bool layers : {false, true}) {
    benchmark::RegisterBenchmark(layers ? "StreamGpuByLayer" : "StreamGpu", StreamGpu, layers)
        ->ArgNames({"blocks", "connections"})
        ->ArgsProduct({{64, 512}, {1, 4, 8}})
        ->UseRealTime();
  }
  return true;
}();

// {shape: 0 = tiny 16 KiB blocks, 1 = Llama 3.2 1B 512 KiB blocks; blocks per pull}
void Shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"1B", "blocks"})->Args({0, 8})->Args({0, 64})->Args({1, 8})->Args({1, 64})->UseRealTime();
}
BENCHMARK(Memcpy)->Apply(Shapes);
BENCHMARK(Mapped)->Apply(Shapes);
BENCHMARK(MappedContiguous)->Apply(Shapes);
BENCHMARK(MappedByLayer)->Apply(Shapes);
BENCHMARK(Stream)->Apply(Shapes);
BENCHMARK(StreamByLayer)->Apply(Shapes);
BENCHMARK(Digest)->Apply(Shapes);

// From StoreProgress in the owner to the return of WaitProgress in a reader thread, both in this process.
void ProgressLatency(benchmark::State& state, TransportMode mode) {
  Owner& owner = OwnerOf(0);
  auto peer = PeerPool::Connect(owner.endpoint(), {.layout = TinyLayout(), .mode = mode});
  AS_CHECK(peer.ok()) << peer.status().message();
  const ProgressRef ref = *owner.pool().AcquireProgress();
  (void)(*peer)->LoadProgress(ref.slot, ref.tag);
  std::atomic<uint32_t> seen{0};
  std::thread reader([&] {
    engine::PrefillProgress last;
    for (;;) {
      const auto p = (*peer)->WaitProgress(ref.slot, ref.tag, last, std::chrono::seconds(1));
      if (absl::IsDeadlineExceeded(p.status())) continue;
      if (!p.ok()) return;
      last = *p;
      seen.store(last.complete);
      seen.notify_all();
    }
  });
  uint32_t word = 0;
  for (auto _ : state) {
    ++word;
    owner.pool().StoreProgress(ref, {word, 0, 0});
    for (uint32_t s = seen.load(); s != word; s = seen.load()) seen.wait(s);
  }
  owner.pool().ReleaseProgress(ref);
  reader.join();
}
BENCHMARK_CAPTURE(ProgressLatency, mapped, TransportMode::kMapped)->UseRealTime();
BENCHMARK_CAPTURE(ProgressLatency, stream, TransportMode::kStream)->UseRealTime();

}  // namespace
}  // namespace agentserve::kvstore
