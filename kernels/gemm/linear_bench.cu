// Times Linear's candidates per shape against cublasLt with a separate epilogue, in one run: a table, and JSON with
// --json.
//
// Each timing replays a graph of calls that rotate through weights and activations beyond the L2 cache; random data.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/gemm/cublaslt.h"
#include "kernels/gemm/linear_cuda.h"
#include "kernels/gemm/linear_elementwise.h"
#include "kernels/gemm/linear_test_util.cuh"
#include "kernels/gemm/tile_gemm.h"

namespace agentserve::kernels::cuda {
namespace {

using testing::DeviceArray;
using testing::DeviceBf16;
using testing::Must;

constexpr size_t kRotateBytes = size_t{160} << 20;
constexpr int kPositions = 4096, kBlockTokens = 16;

struct Layer {
  const char* name;
  int n, k;
  LinearEpilogue epilogue;
  int head_dim, q_heads, kv_heads;
};
constexpr Layer kLayers[] = {
    {"1B qkv", 3072, 2048, LinearEpilogue::kQkv, 64, 32, 8},
    {"1B o", 2048, 2048, LinearEpilogue::kResidual, 0, 0, 0},
    {"1B gate-up", 16384, 2048, LinearEpilogue::kSwiglu, 0, 0, 0},
    {"1B down", 2048, 8192, LinearEpilogue::kResidual, 0, 0, 0},
    {"3B qkv", 5120, 3072, LinearEpilogue::kQkv, 128, 24, 8},
    {"3B o", 3072, 3072, LinearEpilogue::kResidual, 0, 0, 0},
    {"3B gate-up", 16384, 3072, LinearEpilogue::kSwiglu, 0, 0, 0},
    {"3B down", 3072, 8192, LinearEpilogue::kResidual, 0, 0, 0},
};

class Bench {
 public:
  Bench()
      : w_(Count(kRotateBytes)),
        x_(size_t{16384} * 8192 * 2),
        y_(size_t{16384} * 8192 * 2),
        residual_(size_t{16384} * 3072),
        angles_(size_t{kPositions} * 64),
        pool_(size_t{16384} * 2 * 8 * 128 * 2),
        positions_(16384),
        slots_(16384),
        workspace_(LinearWorkspaceBytes(16384, 16384, 8192)) {
    testing::FillRandom(w_, 1, 0.03f);
    testing::FillRandom(x_, 2, 1.0f);
    testing::FillRandom(residual_, 3, 1.0f);
    testing::FillRandom(angles_, 4, 0.7f);
    std::vector<int32_t> positions(16384), slots(16384);
    for (int i = 0; i < 16384; ++i) positions[i] = i % kPositions, slots[i] = i;
    positions_.CopyFrom(positions);
    slots_.CopyFrom(slots);
    workspace_.FillBytes(0);
    Must(cudaStreamCreate(&stream_));
    Must(cudaEventCreate(&begin_));
    Must(cudaEventCreate(&end_));
  }

  LinearParams Params(const Layer& layer, int m, int turn) const {
    LinearParams p;
    const size_t w_count = size_t(layer.n) * layer.k, x_count = size_t(m) * layer.k, y_count = size_t(m) * layer.n;
    p.w = w_.get() + w_count * (turn % std::max<size_t>(1, w_.size() / w_count));
    p.x = x_.get() + x_count * (turn % std::max<size_t>(1, std::min<size_t>(16, x_.size() / x_count)));
    p.y = y_.get() + y_count * (turn % std::max<size_t>(1, std::min<size_t>(16, y_.size() / y_count)));
    p.residual = residual_.get();
    p.m = m;
    p.n = layer.n;
    p.k = layer.k;
    p.epilogue = layer.epilogue;
    p.workspace = workspace_.get();
    p.workspace_bytes = workspace_.size();
    if (layer.epilogue == LinearEpilogue::kQkv) {
      PagedKv& kv = p.qkv.kv;
      kv.head_dim = layer.head_dim;
      kv.kv_heads = layer.kv_heads;
      kv.block_tokens = kBlockTokens;
      kv.head_bytes = size_t{kBlockTokens} * kv.head_dim * 2;
      kv.block_bytes = 2 * kv.kv_heads * kv.head_bytes;
      kv.v_offset = kv.kv_heads * kv.head_bytes;
      kv.base = reinterpret_cast<std::byte*>(pool_.get());
      p.qkv.cos = p.qkv.sin = angles_.get();
      p.qkv.positions = positions_.get();
      p.qkv.slots = slots_.get();
      p.qkv.q_heads = layer.q_heads;
    }
    return p;
  }

  // Microseconds per call of `run(params, context)`; negative if it fails.
  template <typename Run>
  double Time(const Layer& layer, int m, double guess_us, Run run) {
    const LaunchContext context{stream_, false, 132};
    if (!run(Params(layer, m, 0), context).ok()) return -1;
    const int calls = std::clamp(static_cast<int>(2000 / guess_us), 3, 60);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls; ++i) {
      if (!run(Params(layer, m, i), context).ok()) return -1;
    }
    Must(cudaStreamEndCapture(stream_, &graph));
    Must(cudaGraphInstantiate(&exec, graph, 0));
    double best[3];
    for (int i = 0; i < 4; ++i) {
      Must(cudaEventRecord(begin_, stream_));
      Must(cudaGraphLaunch(exec, stream_));
      Must(cudaEventRecord(end_, stream_));
      Must(cudaEventSynchronize(end_));
      float ms = 0;
      Must(cudaEventElapsedTime(&ms, begin_, end_));
      if (i > 0) best[i - 1] = ms * 1e3 / calls;
    }
    Must(cudaGraphExecDestroy(exec));
    Must(cudaGraphDestroy(graph));
    std::sort(best, best + 3);
    return best[1];
  }

 private:
  static size_t Count(size_t bytes) { return bytes / 2; }
  DeviceBf16 w_, x_, y_, residual_, angles_, pool_;
  DeviceArray<int32_t> positions_, slots_;
  DeviceArray<std::byte> workspace_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

absl::Status PlainProduct(const LinearParams& p, const LaunchContext& context) {
  CublasLtGemmParams gemm;
  gemm.x = p.x, gemm.w = p.w, gemm.y = p.y;
  gemm.m = p.m, gemm.n = p.n, gemm.k = p.k;
  gemm.workspace = static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes;
  gemm.workspace_bytes = kCublasLtWorkspaceBytes;
  return CublasLtGemm(gemm, context.stream);
}

struct Row {
  std::string plan;
  double us;
};

void RunShape(Bench* bench, const Layer& layer, int m, bool json) {
  const double flops = 2.0 * m * layer.n * layer.k, guess = std::max(4.0, flops / 600e6);
  const double plain = bench->Time(layer, m, guess, PlainProduct);
  const double library = bench->Time(layer, m, guess, LibraryLinear);
  const double shipped = bench->Time(layer, m, guess, Linear);
  std::vector<Row> rows;
  for (int tile = 0; tile < static_cast<int>(TileShape::kCount); ++tile) {
    for (int splits : {1, 2, 3, 4}) {
      const TilePlan plan{static_cast<TileShape>(tile), splits};
      if (!TileSupports(bench->Params(layer, m, 0), plan) || (splits > 1 && m > 512)) continue;
      const double us = bench->Time(layer, m, guess, [&](const LinearParams& p, const LaunchContext& context) {
        return TileLinear(p, plan, context);
      });
      rows.push_back({std::string(TileShapeName(plan.shape)) + (splits > 1 ? "/" + std::to_string(splits) : ""), us});
    }
  }
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.us < b.us; });
  const char* name = LinearPlanName(bench->Params(layer, m, 0), {});
  if (json) {
    std::printf(
        "{\"layer\": \"%s\", \"m\": %d, \"n\": %d, \"k\": %d, \"cublaslt_us\": %.2f, \"cublaslt_epilogue_us\": %.2f, "
        "\"shipped\": \"%s\", \"shipped_us\": %.2f, \"tiles\": {",
        layer.name, m, layer.n, layer.k, plain, library, name, shipped);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::printf("%s\"%s\": %.2f", i == 0 ? "" : ", ", rows[i].plan.c_str(), rows[i].us);
    }
    std::printf("}}\n");
    return;
  }
  std::printf("%-10s %5d | lt %7.1f (%3.0f T) +ep %7.1f | shipped %7.1f %.2fx %s |", layer.name, m, plain,
              flops / plain / 1e6, library, shipped, library / shipped, name);
  for (const Row& row : rows) std::printf(" %s %.1f (%.0f T)", row.plan.c_str(), row.us, flops / row.us / 1e6);
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace agentserve::kernels::cuda

// linear_bench [--json] [m ...]
int main(int argc, char** argv) {
  using namespace agentserve::kernels::cuda;
  bool json = false;
  std::vector<int> rows;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else {
      rows.push_back(std::atoi(argv[i]));
    }
  }
  if (rows.empty()) rows = {65, 128, 256, 512, 1024, 2048, 8192, 16384};
  if (*std::max_element(rows.begin(), rows.end()) > 16384) return 2;
  Bench bench;
  for (int m : rows) {
    for (const Layer& layer : kLayers) RunShape(&bench, layer, m, json);
  }
  return 0;
}
