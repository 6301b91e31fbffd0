// Sampling on the GPU at the vocabulary of Llama 3: time per launch over batch and settings. The logits lie in L2, as
// they do right after the LM head. One table, and one JSON line per measurement.
#include <cstdio>
#include <cstring>

#include "kernels/cuda/bench_timer.h"
#include "kernels/sampling/sampling_cuda.h"
#include "kernels/test_util.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kVocab = 128256;

struct Setting {
  const char* name;
  SamplingRow row;
  int edits;
};

SamplingRow Row(float temperature, uint32_t top_k, float top_p, float min_p) {
  SamplingRow row = {};
  row.temperature = temperature;
  row.top_k = top_k;
  row.top_p = top_p;
  row.min_p = min_p;
  row.repetition_penalty = 1.1f;
  row.top_logprobs = -1;
  row.seed = 42;
  return row;
}

void Measure(const Setting& setting, int rows, bool pdl) {
  const size_t size = static_cast<size_t>(rows) * kVocab;
  const std::vector<uint16_t> some = RandomBf16(size_t{kVocab} * 4, 1, 2.5f);
  DeviceVector<uint16_t> logits(size);
  for (int r = 0; r < rows; ++r) {
    CheckCuda(cudaMemcpy(logits.data() + static_cast<size_t>(r) * kVocab, &some[static_cast<size_t>(r % 4) * kVocab],
                         size_t{kVocab} * 2, cudaMemcpyHostToDevice),
              "fill");
  }
  std::vector<SamplingRow> settings(static_cast<size_t>(rows), setting.row);
  std::vector<LogitEdit> edits(static_cast<size_t>(setting.edits));
  for (size_t e = 0; e < edits.size(); ++e) {
    edits[e] = {static_cast<int32_t>(e * (kVocab / edits.size())), 0, static_cast<uint32_t>(e % 3), kEditSeen};
  }
  for (size_t r = 0; r < settings.size(); ++r) {
    settings[r].position = r;
    settings[r].edits_end = setting.edits;
  }
  DeviceVector<SamplingRow> d_settings{std::span<const SamplingRow>(settings)};
  DeviceVector<LogitEdit> d_edits{std::span<const LogitEdit>(edits)};
  DeviceVector<SampledRow> out(settings.size());
  DeviceVector<int32_t> tokens(settings.size());
  DeviceVector<std::byte> workspace(SampleWorkspaceBytes(rows, kVocab));
  SampleParams p;
  p.logits = reinterpret_cast<const __nv_bfloat16*>(logits.data());
  p.rows = rows;
  p.vocab = kVocab;
  p.settings = d_settings.data();
  p.edits = d_edits.data();
  p.out = out.data();
  p.tokens = tokens.data();
  p.workspace = workspace.data();
  p.workspace_bytes = workspace.size();
  const BenchTime t = TimeGraph(20, 15, pdl, [&](int, const LaunchContext& context) {
    if (!Sample(p, context).ok()) std::abort();
  });
  std::printf("%-24s %5d %4s %10.2f %10.2f\n", setting.name, rows, pdl ? "pdl" : "", t.median_us, t.p95_us);
  std::printf("{\"bench\":\"sampling\",\"setting\":\"%s\",\"rows\":%d,\"pdl\":%d,\"us\":%.3f,\"us_p95\":%.3f}\n",
              setting.name, rows, pdl ? 1 : 0, t.median_us, t.p95_us);
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main() {
  using namespace agentserve::kernels::cuda;
  std::printf("%-24s %5s %4s %10s %10s\n", "setting", "rows", "", "us", "us p95");
  SamplingRow logprobs = Row(1.0f, 50, 0.9f, 0);
  logprobs.top_logprobs = 20;
  const Setting settings[] = {{"greedy", Row(0, 0, 1, 0), 0},
                              {"temperature", Row(0.7f, 0, 1, 0), 0},
                              {"top-k 50, top-p 0.9", Row(1.0f, 50, 0.9f, 0), 0},
                              {"top-p 0.9", Row(1.0f, 0, 0.9f, 0), 0},
                              {"min-p 0.05", Row(1.0f, 0, 1, 0.05f), 0},
                              {"top-k, top-p, 500 edits", Row(1.0f, 50, 0.9f, 0), 500},
                              {"top-k, top-p, logprobs", logprobs, 0}};
  for (const Setting& setting : settings) {
    for (const int rows : {1, 16, 64, 256}) Measure(setting, rows, false);
  }
  Measure(settings[2], 1, true);
  for (const int rows : {8, 15, 32, 33, 48, 66, 128}) Measure(settings[2], rows, false);
}
