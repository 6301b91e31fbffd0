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

struct Gather {
  const char* where;
  uint32_t count;
  size_t bytes;
  int sms;
};

void MeasureGather(const Gather& g, const std::byte* src, std::byte* dst) {
  const std::vector<uint32_t> from = Scattered(g.count, 1021), to = Scattered(g.count, 769);
  DeviceVector<uint32_t> d_from{std::span<const uint32_t>(from)}, d_to{std::span<const uint32_t>(to)};
  KvGatherParams p;
  p.src = src;
  p.dst = dst;
  p.src_blocks = d_from.data();
  p.dst_blocks = d_to.data();
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
  std::printf("gather %-6s %5u x %4zu KiB %4d blocks %10.2f us %9.1f GB/s\n", g.where, g.count, g.bytes >> 10, g.sms,
              t.median_us, bytes / t.median_us * 1e-3);
  std::printf(
      "{\"bench\":\"kv_gather\",\"where\":\"%s\",\"count\":%u,\"bytes\":%zu,\"sms\":%d,\"us\":%.3f,\"gb_s\":%.1f}\n",
      g.where, g.count, g.bytes, g.sms, t.median_us, bytes / t.median_us * 1e-3);
}

void MeasureDigest(uint32_t count, uint32_t tokens_each, const std::byte* pool) {
  const std::vector<uint32_t> blocks = Scattered(count, 1021), tokens(count, tokens_each);
  DeviceVector<uint32_t> d_blocks{std::span<const uint32_t>(blocks)}, d_tokens{std::span<const uint32_t>(tokens)};
  DeviceVector<uint64_t> digests(count);
  KvDigestParams p;
  p.pool = pool;
  p.block_bytes = kBlockBytes;
  p.piece_bytes = kPieceBytes;
  p.row_bytes = kRowBytes;
  p.blocks = d_blocks.data();
  p.tokens = d_tokens.data();
  p.digests = digests.data();
  p.count = static_cast<int>(count);
  const BenchTime t = TimeGraph(count > 200 ? 2 : 16, 7, false, [&](int, const LaunchContext& context) {
    if (!KvDigest(p, context).ok()) std::abort();
  });
  const double bytes = static_cast<double>(count) * static_cast<double>(kBlockBytes) * tokens_each / 16;
  std::printf("digest %5u blocks, %2u tokens %10.2f us %9.1f GB/s\n", count, tokens_each, t.median_us,
              bytes / t.median_us * 1e-3);
  std::printf("{\"bench\":\"kv_digest\",\"count\":%u,\"tokens\":%u,\"us\":%.3f,\"gb_s\":%.1f}\n", count, tokens_each,
              t.median_us, bytes / t.median_us * 1e-3);
}

void MeasureGathers(const char* where, const std::byte* src, std::byte* dst) {
  for (const int sms : {8, 16, 32, 132}) {
    MeasureGather({where, 1, 32768, sms}, src, dst);
    MeasureGather({where, 64, 32768, sms}, src, dst);
    MeasureGather({where, 64, kBlockBytes, sms}, src, dst);
    MeasureGather({where, 1024, 32768, sms}, src, dst);
    MeasureGather({where, 1024, kBlockBytes, sms}, src, dst);
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
    for (const uint32_t count : {1u, 8u, 64u, 256u, 1024u, 2048u}) MeasureDigest(count, 16, src.data());
    MeasureDigest(2048, 9, src.data());
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
