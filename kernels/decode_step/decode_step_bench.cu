// Times of whole decode steps: this kernel against the separate ones, and what each operation of the kernel takes.
#include <cstring>

#include "kernels/cuda/bench_timer.h"
#include "kernels/decode_step/decode_step_fixture.cuh"

namespace agentserve::kernels::cuda {
namespace {

using testing::DeviceArray;
using testing::Must;
using testing::StepProblem;
using testing::StepShapeOptions;

void Trace(const DecodeStep& step, DecodeStepParams p, int layers) {
  constexpr int kGrid = 132, kEvents = 10;
  static const char* const kNames[kEvents] = {"x of qkv", "qkv",          "wait for q", "attention", "x of o",
                                              "o",        "x of gate-up", "gate-up",    "x of down", "down"};
  const int events = 1 + layers * kEvents + 2;
  DeviceArray<unsigned long long> trace(static_cast<size_t>(events) * kGrid);
  p.trace = trace.get();
  for (int i = 0; i < 3; ++i) {
    if (!step.Launch(p, nullptr).ok()) std::abort();
  }
  Must(cudaDeviceSynchronize());
  std::vector<unsigned long long> t(trace.size());
  Must(cudaMemcpy(t.data(), trace.get(), t.size() * 8, cudaMemcpyDeviceToHost));
  const auto at = [&](int event, int block) {
    return static_cast<double>(t[static_cast<size_t>(event) * kGrid + block]);
  };
  const auto spread = [&](int event, double* mean, double* first, double* last) {
    *mean = 0, *first = 1e30, *last = 0;
    for (int b = 0; b < kGrid; ++b) {
      *mean += at(event, b) / kGrid;
      *first = std::min(*first, at(event, b));
      *last = std::max(*last, at(event, b));
    }
  };
  double sums[kEvents] = {}, spreads[kEvents] = {}, before, mean, first, last;
  spread(0, &before, &first, &last);
  const double start = first;
  for (int layer = 0; layer < layers; ++layer) {
    for (int e = 0; e < kEvents; ++e) {
      spread(1 + layer * kEvents + e, &mean, &first, &last);
      sums[e] += mean - before;
      spreads[e] += last - first;
      before = mean;
    }
  }
  std::printf("  mean us a layer (last block - first block):");
  for (int e = 0; e < kEvents; ++e) {
    std::printf(" %s %.2f (%.2f)", kNames[e], sums[e] / layers * 1e-3, spreads[e] / layers * 1e-3);
  }
  double head;
  spread(events - 1, &head, &first, &last);
  std::printf("; head %.2f; from first event %.1f us\n", (head - before) * 1e-3, (last - start) * 1e-3);
}

void Bench(const StepShapeOptions& o, bool separate, const std::vector<int>& in_flight) {
  StepProblem problem(o);
  DeviceArray<int32_t> tokens(16);
  testing::DeviceBf16 best(16);
  auto step = DecodeStep::Create(problem.Model(), problem.workspace(), 132, nullptr);
  if (!step.ok()) std::abort();
  Must(cudaDeviceSynchronize());
  DecodeStepParams p = problem.Params(tokens.get(), best.get(), nullptr);
  for (const int stages : in_flight) {
    p.in_flight = stages;
    const BenchTime t = TimeGraph(2, 12, false, [&](int, const LaunchContext& context) {
      if (!(*step)->Launch(p, context.stream).ok()) std::abort();
    });
    std::printf("%s B=%zu ctx %d in flight %d: %.1f us (p95 %.1f) = %.3f TB/s", o.is_3b ? "3b" : "1b",
                o.positions.size(), o.positions[0] + 1, stages, t.median_us, t.p95_us,
                problem.Bytes() / t.median_us * 1e-6);
    if (separate) {
      const BenchTime s =
          TimeGraph(2, 8, true, [&](int, const LaunchContext& context) { problem.RunSeparate(p, context); });
      std::printf("; separate kernels %.1f us", s.median_us);
    }
    std::printf("\n");
    Trace(**step, p, o.layers);
    separate = false;
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main(int argc, char** argv) {
  using agentserve::kernels::cuda::Bench;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  for (const bool is_3b : {false, true}) {
    for (const int context : {1024, 8192, 32768}) {
      for (const int rows : {1, 2, 4}) {
        if (context > 1024 && (rows > 1 || quick)) continue;
        Bench({is_3b, is_3b ? 28 : 16, 128256, 16, std::vector<int>(rows, context - 1)}, context == 1024 && !quick,
              rows == 1 && context == 1024 ? std::vector<int>{0, 3, 4} : std::vector<int>{0});
      }
    }
  }
  return 0;
}
