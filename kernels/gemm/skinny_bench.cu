// Times the few-rows kernels where it counts: all linear layers and the LM head of a decode step in one CUDA graph,
// distinct weights per layer (so nothing is found in L2), attention left out or replaced by an empty kernel; and each
// operation alone over all layers' weights, beside cublasLt and a kernel that only reads.
//   skinny_bench chain|alone [1b|3b] [m...]
//   skinny_bench sweep [1b|3b] [m...]     chain, with the tuning knobs varied
//   skinny_bench fused [1b|3b] [m...]     chain, the layers between two attentions as one kernel
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/cublaslt.h"
#include "kernels/gemm/linear_chain_tuning.h"
#include "kernels/gemm/linear_test_util.cuh"
#include "kernels/gemm/skinny.h"
#include "kernels/gemm/skinny_args.h"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

using testing::DeviceArray;
using testing::DeviceBf16;
using testing::Must;

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::printf("%s\n", status.ToString().c_str());
  std::exit(1);
}

struct ModelShape {
  const char* name;
  int hidden, layers, q_heads, kv_heads, head_dim, ffn, vocab;
};
constexpr ModelShape k1B = {"1B", 2048, 16, 32, 8, 64, 8192, 128256};
constexpr ModelShape k3B = {"3B", 3072, 28, 24, 8, 128, 8192, 128256};

__global__ __launch_bounds__(512) void ReadKernel(const uint4* from, size_t count, uint32_t* out) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = LoadStream16(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345) *out = sum;
}

__global__ void EmptyKernel() {
  PdlWait();
  PdlTrigger();
}

// Median time in microseconds of one replay of what `record` launches.
double TimeGraph(const std::function<void(const LaunchContext&)>& record, bool pdl, int replays = 15) {
  LaunchContext context;
  context.pdl = pdl;
  Must(cudaStreamCreate(&context.stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  Must(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  record(context);
  Must(cudaStreamEndCapture(context.stream, &graph));
  Must(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<cudaEvent_t> events(replays + 1);
  for (cudaEvent_t& event : events) Must(cudaEventCreate(&event));
  for (int i = 0; i < 3; ++i) Must(cudaGraphLaunch(exec, context.stream));
  for (int i = 0; i < replays; ++i) {
    Must(cudaEventRecord(events[i], context.stream));
    Must(cudaGraphLaunch(exec, context.stream));
  }
  Must(cudaEventRecord(events[replays], context.stream));
  Must(cudaStreamSynchronize(context.stream));
  std::vector<float> times(replays);
  for (int i = 0; i < replays; ++i) Must(cudaEventElapsedTime(&times[i], events[i], events[i + 1]));
  std::sort(times.begin(), times.end());
  for (cudaEvent_t event : events) Must(cudaEventDestroy(event));
  Must(cudaGraphExecDestroy(exec));
  Must(cudaGraphDestroy(graph));
  Must(cudaStreamDestroy(context.stream));
  return times[replays / 2] * 1e3;
}

class Model {
 public:
  static constexpr int kMaxRows = 64;
  enum Op { kQkv, kO, kUp, kDown, kHead, kOps };

  explicit Model(const ModelShape& shape)
      : shape_(shape),
        weights_(shape.layers * LayerSize() + size_t(shape.vocab) * shape.hidden),
        norm_(shape.hidden),
        hidden_(size_t{kMaxRows} * shape.hidden),
        q_(size_t{kMaxRows} * shape.q_heads * shape.head_dim),
        middle_(size_t{kMaxRows} * shape.ffn),
        logits_(size_t{kMaxRows} * shape.vocab),
        pool_(size_t{kMaxRows} * 2 * shape.kv_heads * 16 * shape.head_dim),
        table_(size_t{4096} * shape.head_dim / 2),
        index_(kMaxRows),
        token_(kMaxRows),
        workspace_(size_t{64} << 20) {
    FillRandom(weights_, 1, 0.02f);
    FillRandom(norm_, 2, 0.1f, 1.0f);
    FillRandom(hidden_, 3, 1.0f);
    FillRandom(q_, 4, 1.0f);
    FillRandom(middle_, 5, 1.0f);
    FillRandom(table_, 6, 0.5f);
    workspace_.FillBytes(0);
    std::vector<int32_t> index(kMaxRows);
    for (int i = 0; i < kMaxRows; ++i) index[i] = i * 16;
    index_.CopyFrom(index);
    Must(cudaDeviceSynchronize());
  }

  double Bytes() const { return static_cast<double>(weights_.size()) * 2; }
  int Layers() const { return shape_.layers; }
  const DeviceBf16& weights() const { return weights_; }

  LinearParams Params(Op op, int layer, int m) const {
    LinearParams p;
    p.m = m;
    p.k = shape_.hidden;
    p.norm_eps = 1e-5f;
    p.workspace = workspace_.get();
    p.workspace_bytes = workspace_.size();
    const int q_size = shape_.q_heads * shape_.head_dim;
    const __nv_bfloat16* w = weights_.get() + layer * LayerSize();
    p.x = p.residual = hidden_.get();
    p.y = hidden_.get();
    const size_t h = static_cast<size_t>(shape_.hidden);
    const size_t o_at = QkvRows() * h, up_at = o_at + q_size * h, down_at = up_at + 2 * shape_.ffn * h;
    switch (op) {
      case kQkv:
        p.w = w;
        p.n = static_cast<int>(QkvRows());
        p.epilogue = LinearEpilogue::kQkv;
        p.norm_weight = norm_.get();
        p.y = q_.get();
        p.qkv = Output();
        break;
      case kO:
        p.w = w + o_at;
        p.n = shape_.hidden;
        p.k = q_size;
        p.x = q_.get();
        p.epilogue = LinearEpilogue::kResidual;
        break;
      case kUp:
        p.w = w + up_at;
        p.n = 2 * shape_.ffn;
        p.epilogue = LinearEpilogue::kSwiglu;
        p.norm_weight = norm_.get();
        p.y = middle_.get();
        break;
      case kDown:
        p.w = w + down_at;
        p.n = shape_.hidden;
        p.k = shape_.ffn;
        p.x = middle_.get();
        p.epilogue = LinearEpilogue::kResidual;
        break;
      default:
        p.w = weights_.get() + shape_.layers * LayerSize();
        p.n = shape_.vocab;
        p.norm_weight = norm_.get();
        p.y = logits_.get();
    }
    return p;
  }

  // `tuning` null: the default of each call.
  void Run(Op op, int layer, int m, const LinearChainTuning* tuning, const LaunchContext& context) const {
    const LinearParams p = Params(op, layer, m);
    LmHeadParams head;
    head.linear = p;
    head.argmax = token_.get();
    if (op == kHead) {
      return MustBeOk(tuning == nullptr ? SkinnyLmHead(head, context)
                                        : LaunchLinearChain({nullptr, 0, &head}, *tuning, context));
    }
    MustBeOk(tuning == nullptr ? SkinnyLinear(p, context) : LaunchLinearChain({&p, 1, nullptr}, *tuning, context));
  }

  // A step with one kernel between two attentions (of which empty kernels stand here).
  void FusedStep(int m, const LinearChainTuning& tuning, int prefetch, const LaunchContext& context) const {
    Run(kQkv, 0, m, nullptr, context);
    for (int layer = 0; layer < shape_.layers; ++layer) {
      Must(Launch(context, EmptyKernel, dim3(132), dim3(128), 0, 1));
      const bool end = layer + 1 == shape_.layers;
      const LinearParams ops[4] = {Params(kO, layer, m), Params(kUp, layer, m), Params(kDown, layer, m),
                                   Params(kQkv, end ? 0 : layer + 1, m)};
      LmHeadParams head;
      head.linear = Params(kHead, 0, m);
      head.argmax = token_.get();
      LinearChainParams chain{ops, end ? 3 : 4, end ? &head : nullptr};
      if (prefetch && !end) {
        const LinearParams o = Params(kO, layer + 1, m);
        chain.next_weights = o.w;  // gate-up follows it in memory
        chain.next_bytes = prefetch * 2 * size_t(o.n) * o.k;
      }
      MustBeOk(LaunchLinearChain(chain, tuning, context));
    }
  }

  void Step(int m, const LinearChainTuning* tuning, bool gap, const LaunchContext& context) const {
    for (int layer = 0; layer < shape_.layers; ++layer) {
      Run(kQkv, layer, m, tuning, context);
      if (gap) Must(Launch(context, EmptyKernel, dim3(132), dim3(128), 0, 1));
      for (Op op : {kO, kUp, kDown}) Run(op, layer, m, tuning, context);
    }
    Run(kHead, 0, m, tuning, context);
  }

 private:
  size_t QkvRows() const { return static_cast<size_t>((shape_.q_heads + 2 * shape_.kv_heads) * shape_.head_dim); }
  size_t LayerSize() const {
    return (QkvRows() + shape_.q_heads * shape_.head_dim + 3 * shape_.ffn) * static_cast<size_t>(shape_.hidden);
  }
  QkvOutput Output() const {
    QkvOutput out;
    out.kv.base = reinterpret_cast<std::byte*>(pool_.get());
    out.kv.head_dim = static_cast<uint32_t>(shape_.head_dim);
    out.kv.kv_heads = static_cast<uint32_t>(shape_.kv_heads);
    out.kv.block_tokens = 16;
    out.kv.head_bytes = size_t{16} * shape_.head_dim * 2;
    out.kv.v_offset = shape_.kv_heads * out.kv.head_bytes;
    out.kv.block_bytes = 2 * out.kv.v_offset;
    out.cos = out.sin = table_.get();
    out.positions = out.slots = index_.get();
    out.q_heads = shape_.q_heads;
    return out;
  }

  ModelShape shape_;
  DeviceBf16 weights_, norm_, hidden_, q_, middle_, logits_, pool_, table_;
  DeviceArray<int32_t> index_, token_;
  DeviceArray<std::byte> workspace_;
};

double ReadRate(const Model& model) {
  DeviceArray<uint32_t> out(1);
  const double us = TimeGraph(
      [&](const LaunchContext& context) {
        ReadKernel<<<264, 512, 0, context.stream>>>(reinterpret_cast<const uint4*>(model.weights().get()),
                                                    model.weights().size() / 8, out.get());
      },
      false, 5);
  return model.Bytes() / us * 1e-6;
}

void Chain(const Model& model, const ModelShape& shape, const std::vector<int>& rows) {
  const double rate = ReadRate(model), floor = model.Bytes() / rate * 1e-6;
  std::printf("%s chain: %.3f GB of weights, read-only kernel %.3f TB/s, floor %.1f us\n", shape.name,
              model.Bytes() * 1e-9, rate, floor);
  for (int m : rows) {
    for (const bool gap : {false, true}) {
      double us[2];
      for (const bool pdl : {false, true}) {
        us[pdl] = TimeGraph([&](const LaunchContext& c) { model.Step(m, nullptr, gap, c); }, pdl);
      }
      std::printf("  m %2d%s: graph %.1f us, graph + PDL %.1f us = %.3f TB/s, %.1f %% of the floor's rate\n", m,
                  gap ? " with an empty kernel for attention" : "", us[0], us[1], model.Bytes() / us[1] * 1e-6,
                  100 * floor / us[1]);
    }
  }
}

void Fused(const Model& model, const ModelShape& shape, const std::vector<int>& rows) {
  const double rate = ReadRate(model), floor = model.Bytes() / rate * 1e-6;
  std::printf("%s fused chain: read-only kernel %.3f TB/s, floor %.1f us\n", shape.name, rate, floor);
  for (int m : rows) {
    std::printf(
        "  m %d, graph + PDL, us by shared memory, stages prefetched ahead, op weights prefetched for the next chain:",
        m);
    for (int shared : {224, 110}) {
      for (int ahead : {0, 2, 4, 8}) {
        for (int next : {0, 1, 3}) {
          const LinearChainTuning tuning{6, shared * 1024, ahead, 1};
          const double us = TimeGraph([&](const LaunchContext& c) { model.FusedStep(m, tuning, next, c); }, true, 9);
          std::printf("  %d KiB ahead %d next %d: %.1f (%.1f %%)", shared, ahead, next, us, 100 * floor / us);
        }
      }
    }
    std::printf("  without PDL: %.1f\n",
                TimeGraph([&](const LaunchContext& c) { model.FusedStep(m, {}, 0, c); }, false));
  }
}

void Sweep(const Model& model, const ModelShape& shape, const std::vector<int>& rows) {
  for (int m : rows) {
    std::printf("%s m %d separate kernels, us:", shape.name, m);
    for (int ahead : {0, 1, 2, 4}) {
      for (int lead : {0, 1, 2, 4, 1000}) {
        const LinearChainTuning tuning{6, 112 * 1024, ahead, lead};
        const double us = TimeGraph([&](const LaunchContext& c) { model.Step(m, &tuning, true, c); }, true, 7);
        std::printf("  ahead %d lead %d %.1f", ahead, lead, us);
      }
    }
    std::printf("\n");
  }
}

void Alone(const Model& model, const ModelShape& shape, const std::vector<int>& rows) {
  const char* const names[] = {"qkv", "o", "gate-up", "down", "lm head"};
  if (CublasLtAvailable()) {  // makes the library's handle before any capture
    const LinearParams p = model.Params(Model::kO, 0, 1);
    MustBeOk(CublasLtGemm({p.x, p.w, p.y, 1, p.n, p.k, static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes,
                           kCublasLtWorkspaceBytes},
                          nullptr));
  }
  for (int m : rows) {
    for (int op = 0; op < Model::kOps; ++op) {
      const int calls = op == Model::kHead ? 1 : model.Layers();
      const LinearParams p = model.Params(static_cast<Model::Op>(op), 0, m);
      const double bytes = 2.0 * p.n * p.k;
      double us[3] = {};
      for (const bool pdl : {false, true}) {
        if (!SkinnySupports(p)) continue;
        us[pdl] = TimeGraph(
                      [&](const LaunchContext& c) {
                        for (int i = 0; i < calls; ++i) model.Run(static_cast<Model::Op>(op), i, m, nullptr, c);
                      },
                      pdl) /
                  calls;
      }
      if (CublasLtAvailable()) {
        us[2] =
            TimeGraph(
                [&](const LaunchContext& c) {
                  for (int i = 0; i < calls; ++i) {
                    const LinearParams q = model.Params(static_cast<Model::Op>(op), i, m);
                    const auto scratch = static_cast<std::byte*>(q.workspace) + kWorkspaceZeroBytes;
                    __nv_bfloat16* y =
                        op == Model::kHead ? q.y : reinterpret_cast<__nv_bfloat16*>(scratch + kCublasLtWorkspaceBytes);
                    MustBeOk(CublasLtGemm({q.x, q.w, y, q.m, q.n, q.k, scratch, kCublasLtWorkspaceBytes}, c.stream));
                  }
                },
                false) /
            calls;
      }
      std::printf("  %s m %2d %-8s %6d x %4d: %7.2f us (%.2f TB/s), PDL %7.2f us (%.2f TB/s), cublasLt %7.2f us\n",
                  shape.name, m, names[op], p.n, p.k, us[0], bytes / us[0] * 1e-6, us[1], bytes / us[1] * 1e-6, us[2]);
    }
  }
}

int Main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  const std::string mode = argc > 1 ? argv[1] : "chain";
  const ModelShape& shape = argc > 2 && std::strcmp(argv[2], "3b") == 0 ? k3B : k1B;
  std::vector<int> rows;
  for (int i = 3; i < argc; ++i) rows.push_back(std::atoi(argv[i]));
  if (rows.empty()) rows = {1, 8, 16};
  const Model model(shape);
  if (mode == "alone") {
    Alone(model, shape, rows);
  } else if (mode == "fused") {
    Fused(model, shape, rows);
  } else if (mode == "sweep") {
    Sweep(model, shape, rows);
  } else {
    Chain(model, shape, rows);
  }
  return 0;
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main(int argc, char** argv) { return agentserve::kernels::cuda::Main(argc, argv); }
