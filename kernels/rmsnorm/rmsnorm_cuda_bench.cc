// RMSNorm with residual on the GPU: bytes per second over rows, beside the driver's copy of as many bytes. Below about
// 4k rows everything stays in L2. One table, and one JSON line per measurement.
#include <cstdio>

#include "kernels/cuda/bench_timer.h"
#include "kernels/rmsnorm/rmsnorm_cuda.h"
#include "kernels/test_util.h"

namespace agentserve::kernels::cuda {
namespace {

void Fill(const DeviceVector<uint16_t>& to, uint32_t seed) {
  const std::vector<uint16_t> some = RandomBf16(size_t{1} << 20, seed);
  for (size_t at = 0; at < to.size(); at += some.size()) {
    const size_t n = std::min(some.size(), to.size() - at);
    CheckCuda(cudaMemcpy(to.data() + at, some.data(), n * 2, cudaMemcpyHostToDevice), "fill");
  }
}

void Measure(int rows, int n, bool pdl) {
  const size_t size = static_cast<size_t>(rows) * static_cast<size_t>(n);
  DeviceVector<uint16_t> x(size), delta(size), sum(size), y(size), weight(static_cast<size_t>(n));
  Fill(x, 1);
  Fill(delta, 2);
  Fill(weight, 3);
  RmsNormParams p;
  const auto bf16 = [](const DeviceVector<uint16_t>& v) { return reinterpret_cast<__nv_bfloat16*>(v.data()); };
  p.x = bf16(x);
  p.delta = bf16(delta);
  p.sum = bf16(sum);
  p.weight = bf16(weight);
  p.y = bf16(y);
  p.rows = rows;
  p.n = n;
  p.eps = 1e-5f;
  const double bytes = 8.0 * static_cast<double>(size);  // x, delta, sum, y
  const int launches = bytes < 50e6 ? 50 : 4;
  const BenchTime t = TimeGraph(launches, 15, pdl, [&](int, const LaunchContext& context) {
    if (!RmsNorm(p, context).ok()) std::abort();
  });
  const double copy = bytes > 200e6 ? CopyTerabytesPerSecond(size * 4) : 0;
  std::printf("%7d %6d %4s %10.2f %10.2f %8.3f %6.1f%% %8.3f\n", rows, n, pdl ? "pdl" : "", t.median_us, t.p95_us,
              bytes / t.median_us * 1e-6, bytes / t.median_us * 1e-6 / 4.8 * 100, copy);
  std::printf(
      "{\"bench\":\"rmsnorm\",\"rows\":%d,\"n\":%d,\"pdl\":%d,\"us\":%.3f,\"us_p95\":%.3f,\"tb_s\":%.4f,"
      "\"copy_tb_s\":%.4f}\n",
      rows, n, pdl ? 1 : 0, t.median_us, t.p95_us, bytes / t.median_us * 1e-6, copy);
}

// Reads x, delta and the weight from a file, writes the sum and y to another: for comparing bits with other programs.
int Apply(int rows, int n, const char* in, const char* out) {
  const size_t size = static_cast<size_t>(rows) * static_cast<size_t>(n);
  std::vector<uint16_t> values(2 * size + static_cast<size_t>(n)), results(2 * size);
  std::FILE* file = std::fopen(in, "rb");
  if (file == nullptr || std::fread(values.data(), 2, values.size(), file) != values.size()) return 1;
  std::fclose(file);
  DeviceVector<uint16_t> from{std::span<const uint16_t>(values)}, to(results.size());
  RmsNormParams p;
  p.x = reinterpret_cast<__nv_bfloat16*>(from.data());
  p.delta = p.x + size;
  p.weight = p.delta + size;
  p.sum = reinterpret_cast<__nv_bfloat16*>(to.data());
  p.y = p.sum + size;
  p.rows = rows;
  p.n = n;
  p.eps = 1e-5f;
  if (!RmsNorm(p, {}).ok()) return 1;
  results = to.Download();
  file = std::fopen(out, "wb");
  if (file == nullptr || std::fwrite(results.data(), 2, results.size(), file) != results.size()) return 1;
  return std::fclose(file);
}

}  // namespace
}  // namespace agentserve::kernels::cuda

// rmsnorm_bench [--apply ROWS N IN OUT]
int main(int argc, char** argv) {
  using namespace agentserve::kernels::cuda;
  if (argc == 6) return Apply(std::atoi(argv[2]), std::atoi(argv[3]), argv[4], argv[5]);
  std::printf("%7s %6s %4s %10s %10s %8s %7s %8s\n", "rows", "n", "", "us", "us p95", "TB/s", "of 4.8", "copy TB/s");
  for (const int n : {2048, 3072}) {
    for (const int rows : {1, 64, 256}) {
      Measure(rows, n, false);
      Measure(rows, n, true);
    }
    for (const int rows : {512, 1024, 2048, 8192, 32768, 65536}) Measure(rows, n, false);
  }
}
