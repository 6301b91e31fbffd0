// Gather and digest of KV blocks: rates over block counts and thread blocks, beside the driver's copy. With a second
// GPU that can be reached directly, the gather also reads that one's memory. One table, and one JSON line per
// measurement.
#include <cstdio>
#include <numeric>

#include "kernels/cuda/bench_timer.h"
#include "kernels/kv_copy/kv_copy_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr size_t kBlockBytes = size_t{512} << 10, kPieceBytes = 2048, kRowBytes = 128;  // Llama 3.2 1B
constexpr uint32_t kPoolBlocks = 2048;                                                  // 1 GiB

// Blocks in an order that jumps through the pool.
std::vector<uint32_t> Scattered(uint32_t n, uint32_t factor) {
  std::vector<uint32_t> out(n);
  for (uint32_t i = 0; i < n; ++i) out[i] = (i * factor + 5) % kPoolBlocks;
  return out;
}

std::vector<KvMove> MovesOf(uint32_t n, uint32_t tokens) {
  const std::vector<uint32_t> from = Scattered(n, 1021), to = Scattered(n, 769);
  std::vector<KvMove> moves(n);
  for (uint32_t i = 0; i < n; ++i) moves[i] = {from[i], to[i], tokens};
  return moves;
}

// Zeroed device memory for the sums of `count` blocks, and where they go.
struct Place {
  explicit Place(uint32_t count) : sums(count), out(count), arrived(1) {
    CheckCuda(cudaMemset(sums.data(), 0, count * sizeof(uint64_t)), "zero");
    CheckCuda(cudaMemset(arrived.data(), 0, sizeof(uint32_t)), "zero");
  }
  void Attach(KvGatherParams* p) {
    p->sums = {kPieceBytes, kRowBytes, sums.data(), out.data()};
    p->done.arrived = arrived.data();
  }
  DeviceVector<uint64_t> sums, out;
  DeviceVector<uint32_t> arrived;
};

struct Gather {
  const char* where;
  uint32_t count;
  size_t bytes;
  int sms;
  bool digest = false;
};

void MeasureGather(const Gather& g, const std::byte* src, std::byte* dst) {
  const std::vector<KvMove> moves = MovesOf(g.count, 16);
  DeviceVector<KvMove> blocks{std::span<const KvMove>(moves)};
  Place place(g.count);
  KvGatherParams p;
  p.src = src;
  p.dst = dst;
  p.blocks = blocks.data();
  if (g.digest) place.Attach(&p);
  p.count = static_cast<int>(g.count);
  p.block_bytes = kBlockBytes;
  p.bytes = g.bytes;
  p.sms = g.sms;
  const double bytes = static_cast<double>(g.count) * static_cast<double>(g.bytes);
  const int layers = static_cast<int>(kBlockBytes / g.bytes);
  const BenchTime t = TimeGraph(bytes > 20e6 ? 2 : 16, 7, false, [&](int i, const LaunchContext& context) {
    p.offset = static_cast<size_t>(i % layers) * g.bytes;
    if (!KvGather(p, context).ok()) std::abort();
  });
  std::printf("gather%s %-6s %5u x %4zu KiB %4d blocks %10.2f us %9.1f GB/s\n", g.digest ? "+sum" : "    ", g.where,
              g.count, g.bytes >> 10, g.sms, t.median_us, bytes / t.median_us * 1e-3);
  std::printf(
      "{\"bench\":\"kv_gather\",\"where\":\"%s\",\"digest\":%d,\"count\":%u,\"bytes\":%zu,\"sms\":%d,\"us\":%.3f,\"gb_"
      "s\":%.1f}\n",
      g.where, g.digest ? 1 : 0, g.count, g.bytes, g.sms, t.median_us, bytes / t.median_us * 1e-3);
}

// `bytes` of each block, the first tokens_each rows of them.
void MeasureSums(uint32_t count, size_t bytes_each, uint32_t tokens_each, int sms, const std::byte* pool) {
  const std::vector<KvMove> moves = MovesOf(count, tokens_each);
  DeviceVector<KvMove> blocks{std::span<const KvMove>(moves)};
  Place place(count);
  KvGatherParams p;
  p.src = pool;
  p.blocks = blocks.data();
  p.count = static_cast<int>(count);
  p.block_bytes = kBlockBytes;
  p.bytes = bytes_each;
  p.sms = sms;
  place.Attach(&p);
  const int layers = static_cast<int>(kBlockBytes / bytes_each);
  const BenchTime t = TimeGraph(count > 200 ? 2 : 16, 7, false, [&](int i, const LaunchContext& context) {
    p.offset = static_cast<size_t>(i % layers) * bytes_each;
    if (!KvSums(p, context).ok()) std::abort();
  });
  const double bytes = static_cast<double>(count) * static_cast<double>(bytes_each);
  std::printf("sums %5u x %4zu KiB, %2u tokens %4d blocks %10.2f us %9.1f GB/s\n", count, bytes_each >> 10, tokens_each,
              sms, t.median_us, bytes / t.median_us * 1e-3);
  std::printf("{\"bench\":\"kv_sums\",\"count\":%u,\"bytes\":%zu,\"tokens\":%u,\"sms\":%d,\"us\":%.3f,\"gb_s\":%.1f}\n",
              count, bytes_each, tokens_each, sms, t.median_us, bytes / t.median_us * 1e-3);
}

void MeasureGathers(const char* where, const std::byte* src, std::byte* dst) {
  for (const bool digest : {false, true}) {
    for (const int sms : {8, 16, 32, 132}) {
      MeasureGather({where, 1, 32768, sms, digest}, src, dst);
      MeasureGather({where, 64, 32768, sms, digest}, src, dst);
      MeasureGather({where, 64, kBlockBytes, sms, digest}, src, dst);
      MeasureGather({where, 1024, 32768, sms, digest}, src, dst);
      MeasureGather({where, 1024, kBlockBytes, sms, digest}, src, dst);
    }
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main() {
  using namespace agentserve::kernels::cuda;
  {
    DeviceVector<std::byte> src(kPoolBlocks * kBlockBytes), dst(kPoolBlocks * kBlockBytes);
    std::printf("driver copy %.3f TB/s, read and written bytes\n", CopyTerabytesPerSecond(size_t{512} << 20));
    MeasureGathers("local", src.data(), dst.data());
    for (const int sms : {32, 132, 264}) {
      for (const uint32_t count : {1u, 8u, 64u, 2048u}) MeasureSums(count, kBlockBytes, 16, sms, src.data());
      for (const uint32_t count : {64u, 512u}) MeasureSums(count, 32768, 16, sms, src.data());
    }
    MeasureSums(2048, kBlockBytes, 9, 132, src.data());
  }
  int devices = 0, reachable = 0;
  CheckCuda(cudaGetDeviceCount(&devices), "devices");
  if (devices > 1) CheckCuda(cudaDeviceCanAccessPeer(&reachable, 0, 1), "peer");
  if (reachable == 0) return 0;
  CheckCuda(cudaSetDevice(1), "device 1");
  DeviceVector<std::byte> peer(kPoolBlocks * kBlockBytes);
  CheckCuda(cudaSetDevice(0), "device 0");
  CheckCuda(cudaDeviceEnablePeerAccess(1, 0), "peer access");
  DeviceVector<std::byte> dst(kPoolBlocks * kBlockBytes);
  MeasureGathers("peer", peer.data(), dst.data());
}
