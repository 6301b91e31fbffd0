// GEMV and GEMM at the shapes of Llama 3.2 1B, over weights far larger than the caches, beside plain reading.
//
// Rates are per second of this thread's CPU time, so that a busy machine disturbs them less.
#include <benchmark/benchmark.h>

#include "kernels/gemm/gemm.h"
#include "kernels/read_words/read_words.h"
#include "kernels/test_util.h"

namespace agentserve::kernels {
namespace {

constexpr size_t kWeights = size_t{256} << 20;  // elements, 512 MiB

const std::vector<uint16_t>& Weights() {
  static const std::vector<uint16_t> w = [] {
    std::vector<uint16_t> out(kWeights);
    uint32_t x = 1;
    for (uint16_t& v : out) {
      x = x * 1664525u + 1013904223u;
      v = static_cast<uint16_t>(0x3c00u | ((x >> 16) & 0x83ffu));
    }
    return out;
  }();
  return w;
}

void BM_ReadWords(benchmark::State& state) {
  const auto* words = reinterpret_cast<const uint64_t*>(Weights().data());
  for (auto _ : state) benchmark::DoNotOptimize(SumWords(words, kWeights / 4));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kWeights * 2));
}
BENCHMARK(BM_ReadWords)->MinTime(1.0);

// Arguments: rows, columns, k. One iteration walks all weights, matrix after matrix.
void BM_Gemm(benchmark::State& state) {
  const auto m = static_cast<size_t>(state.range(0)), n = static_cast<size_t>(state.range(1)),
             k = static_cast<size_t>(state.range(2));
  const std::vector<float> x = RandomFloats(m * k, 1);
  std::vector<float> y(m * n);
  ThreadPool pool(1);
  GemmWorkspace ws;
  const size_t matrices = m >= 64 ? 1 : kWeights / (n * k);
  for (auto _ : state) {
    for (size_t i = 0; i < matrices; ++i) {
      const GemmOutput out = {Weights().data() + i * n * k, n, y.data(), n, false};
      Gemm({x.data(), k, m, k, {&out, 1}}, pool, ws);
    }
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * matrices * n * k * 2));
  state.counters["flops"] = benchmark::Counter(static_cast<double>(state.iterations() * matrices * m * n * k * 2),
                                               benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Gemm)
    ->ArgNames({"m", "n", "k"})
    ->MinTime(0.7)
    ->Args({1, 2048, 2048})
    ->Args({1, 8192, 2048})
    ->Args({1, 2048, 8192})
    ->Args({2, 8192, 2048})
    ->Args({4, 8192, 2048})
    ->Args({8, 8192, 2048})
    ->Args({16, 8192, 2048})
    ->Args({128, 8192, 2048})
    ->Args({512, 2048, 2048})
    ->Args({512, 2048, 8192});

}  // namespace
}  // namespace agentserve::kernels
