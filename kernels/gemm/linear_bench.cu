// Times Linear's candidates per shape against cublasLt with a separate epilogue, in one run: a table, and JSON with
// --json.
//
// Each timing replays a graph of calls that rotate through weights and activations beyond the L2 cache; random data. Up
// to 512 rows our kernels are launched with PDL, as the executor does in decode.
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

  // A graph of calls of `run(params, context)`; null if it fails.
  template <typename Run>
  cudaGraphExec_t Capture(const Layer& layer, int m, int calls, bool pdl, Run run) {
    const LaunchContext context{stream_, pdl, 132};
    if (!run(Params(layer, m, 0), context).ok()) return nullptr;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    bool good = true;
    for (int i = 0; i < calls; ++i) good = good && run(Params(layer, m, i), context).ok();
    Must(cudaStreamEndCapture(stream_, &graph));
    if (!good) return nullptr;
    Must(cudaGraphInstantiate(&exec, graph, 0));
    Must(cudaGraphDestroy(graph));
    return exec;
  }

  double Replay(cudaGraphExec_t exec) {
    Must(cudaEventRecord(begin_, stream_));
    Must(cudaGraphLaunch(exec, stream_));
    Must(cudaEventRecord(end_, stream_));
    Must(cudaEventSynchronize(end_));
    float ms = 0;
    Must(cudaEventElapsedTime(&ms, begin_, end_));
    return ms * 1e3;
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

// A candidate: its graph and times in microseconds a call.
struct Row {
  std::string plan;
  cudaGraphExec_t exec = nullptr;
  std::vector<double> times;
  double us = -1;
};

class ShapeBench {
 public:
  ShapeBench(Bench* bench, const Layer& layer, int m) : bench_(*bench), layer_(layer), m_(m) {
    flops_ = 2.0 * m * layer.n * layer.k;
    calls_ = std::clamp(static_cast<int>(1500 / std::max(4.0, flops_ / 600e6)), 2, 60);
    const bool few = m <= 512;
    Add("cublasLt", false, PlainProduct);
    Add("+epilogue", few, LibraryLinear);
    Add("shipped", few, Linear);
    Add("invariant", few, [](LinearParams p, const LaunchContext& context) {
      p.mode = LinearMode::kInvariant;
      return Linear(p, context);
    });
    for (int tile = 0; tile < static_cast<int>(TileShape::kCount); ++tile) {
      for (int splits : {1, 2, 4}) AddTile({static_cast<TileShape>(tile), splits}, few);
    }
  }
  ~ShapeBench() {
    for (Row& row : rows_) Must(cudaGraphExecDestroy(row.exec));
  }

  // Candidates take turns, so that clocks and temperature are shared; medians of three, after one turn to warm up.
  void Run() {
    for (int turn = 0; turn < 4; ++turn) {
      for (Row& row : rows_) {
        const double us = bench_.Replay(row.exec) / calls_;
        if (turn > 0) row.times.push_back(us);
      }
    }
    for (Row& row : rows_) {
      std::sort(row.times.begin(), row.times.end());
      row.us = row.times[1];
    }
  }

  void Print(bool json) {
    const char* name = LinearPlanName(bench_.Params(layer_, m_, 0), {});
    if (json) {
      std::printf("{\"layer\": \"%s\", \"m\": %d, \"n\": %d, \"k\": %d, \"plan\": \"%s\", \"us\": {", layer_.name, m_,
                  layer_.n, layer_.k, name);
      for (size_t i = 0; i < rows_.size(); ++i) {
        std::printf("%s\"%s\": %.2f", i == 0 ? "" : ", ", rows_[i].plan.c_str(), rows_[i].us);
      }
      std::printf("}}\n");
      return;
    }
    std::printf("%-10s %5d | lt %.1f +ep %.1f | shipped %.1f (%.2fx) %s | inv %.1f |", layer_.name, m_, rows_[0].us,
                rows_[1].us, rows_[2].us, rows_[1].us / rows_[2].us, name, rows_[3].us);
    std::sort(rows_.begin() + 4, rows_.end(), [](const Row& a, const Row& b) { return a.us < b.us; });
    for (size_t i = 4; i < rows_.size() && i < 11; ++i) std::printf(" %s %.1f,", rows_[i].plan.c_str(), rows_[i].us);
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  template <typename Run>
  void Add(const char* plan, bool pdl, Run run) {
    Row row;
    row.plan = plan;
    row.exec = bench_.Capture(layer_, m_, calls_, pdl, run);
    if (row.exec == nullptr) std::printf("%s fails on %s m %d\n", plan, layer_.name, m_), std::exit(1);
    rows_.push_back(row);
  }
  void AddTile(const TilePlan& plan, bool pdl) {
    if (!TileSupports(bench_.Params(layer_, m_, 0), plan) || (plan.splits > 1 && m_ > 512)) return;
    const bool narrow = plan.shape == TileShape::k64x128 || plan.shape >= TileShape::k64x256Deferred;
    if (narrow && m_ > 1024) return;
    const std::string name = TileShapeName(plan.shape) + 5 + (plan.splits > 1 ? "/" + std::to_string(plan.splits) : "");
    Add(name.c_str(), pdl,
        [plan](const LinearParams& p, const LaunchContext& context) { return TileLinear(p, plan, context); });
  }

  Bench& bench_;
  Layer layer_;
  int m_, calls_;
  double flops_;
  std::vector<Row> rows_;
};

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
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  Bench bench;
  for (int m : rows) {
    for (const Layer& layer : kLayers) {
      ShapeBench shape(&bench, layer, m);
      shape.Run();
      shape.Print(json);
    }
  }
  return 0;
}
