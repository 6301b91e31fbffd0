// Times prefill attention; buffers rotate past the L2 cache.
//   prefill_attention_bench [--quick] [--json]     a table, or one JSON line per row
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/prefill_attention_mma.h"
#include "kernels/attention/prefill_attention_testing.h"

namespace agentserve::kernels::cuda {
namespace {

using testing::PrefillProblem;
using testing::PrefillShape;
using testing::SmClock;

struct Row {
  std::string name;
  double median_us, p95_us, tflops, mhz;
};

template <typename Function>
Row Time(const std::string& name, const PrefillShape& shape, int runs, Function function) {
  // Two sets of K, V, Q and output are beyond twice the L2 for the long shapes.
  std::vector<std::unique_ptr<PrefillProblem>> problems;
  for (uint32_t i = 0; i < 2; ++i) problems.push_back(std::make_unique<PrefillProblem>(shape, 900 + i));
  LaunchContext context;
  cudaDeviceGetAttribute(&context.num_sms, cudaDevAttrMultiProcessorCount, 0);
  std::vector<cudaEvent_t> events(runs + 1);
  for (cudaEvent_t& event : events) cudaEventCreate(&event);
  SmClock clock;
  for (int i = 0; i < 4; ++i) (void)function(problems[i % 2]->params(), context);
  clock.Begin();
  cudaEventRecord(events[0]);
  for (int i = 0; i < runs; ++i) {
    const absl::Status status = function(problems[i % 2]->params(), context);
    if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    cudaEventRecord(events[i + 1]);
  }
  clock.End();
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) std::fprintf(stderr, "%s: %s\n", name.c_str(), cudaGetErrorString(error));
  std::vector<float> us(runs);
  for (int i = 0; i < runs; ++i) {
    cudaEventElapsedTime(&us[i], events[i], events[i + 1]);
    us[i] *= 1000;
  }
  for (cudaEvent_t& event : events) cudaEventDestroy(event);
  std::sort(us.begin(), us.end());
  const double median = us[us.size() / 2];
  return {name, median, us[us.size() * 95 / 100], problems[0]->Flops() / median * 1e-6, clock.Mhz()};
}

void Print(const Row& row, bool json) {
  if (json) {
    std::printf(
        "{\"bench\":\"prefill_attention\",\"name\":\"%s\",\"median_us\":%.2f,\"p95_us\":%.2f,\"tflops\":%.1f,"
        "\"sm_mhz\":%.0f}\n",
        row.name.c_str(), row.median_us, row.p95_us, row.tflops, row.mhz);
  } else {
    std::printf("%-40s %9.1f us  p95 %9.1f  %6.1f TFLOP/s  SM %4.0f MHz\n", row.name.c_str(), row.median_us, row.p95_us,
                row.tflops, row.mhz);
  }
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  bool quick = false, json = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--json") == 0) json = true;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  const auto add = [&](const std::string& name, const PrefillShape& shape, int runs) {
    Print(Time(name, shape, runs, PrefillAttention), json);
  };
  const int runs = quick ? 30 : 200;
  for (const int d : {64, 128}) {
    const int heads = d == 64 ? 32 : 24;
    const std::string name = d == 64 ? "1B " : "3B ";
    for (const int tokens : {512, 1024, 2048, 4096, 8192, 16384}) {
      add(name + "causal " + std::to_string(tokens), {heads, 8, d, 16, {{0, tokens}}}, tokens > 4096 ? runs / 2 : runs);
    }
    for (const int tokens : {8192, 16384}) {
      const std::string causal = name + "causal " + std::to_string(tokens);
      add(causal + ", neighbouring blocks", {heads, 8, d, 16, {{0, tokens}}, false}, runs / 2);
      add(causal + ", blocks of 64", {heads, 8, d, 64, {{0, tokens}}}, runs / 2);
    }
    add(name + "chunk of 512 after 7680", {heads, 8, d, 16, {{7680, 512}}}, runs);
    add(name + "8 ragged of 100..2000",
        {heads, 8, d, 16, {{0, 100}, {0, 2000}, {0, 700}, {0, 1300}, {0, 513}, {0, 1024}, {0, 60}, {0, 1700}}}, runs);
  }
  if (!quick) {
    Print(Time("1B plain kernel 4096", {32, 8, 64, 16, {{0, 4096}}}, 20, PrefillAttentionMma), json);
    Print(Time("3B plain kernel 4096", {24, 8, 128, 16, {{0, 4096}}}, 20, PrefillAttentionMma), json);
  }
  return 0;
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main(int argc, char** argv) { return agentserve::kernels::cuda::Main(argc, argv); }
