// Decode attention timed in a captured graph over a pool with the model's real layout: every node is another layer or
// another set of sequences, so that nothing is found in L2. Beside it a kernel that only reads as many bytes.
//   decode_attention_bench [--quick] [--clusters] [--json FILE]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/decode_attention_fixture.h"
#include "kernels/attention/decode_kernel.cuh"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSms = 132;

struct Model {
  const char* name;
  int layers, q_heads, kv_heads, head_dim;
};
constexpr Model kModels[] = {{"1B", 16, 32, 8, 64}, {"3B", 28, 24, 8, 128}};

using Launcher = cudaError_t (*)(const DecodeAttentionParams&, const LaunchContext&);
struct Variant {
  const char* name;
  int head_dim;
  Launcher launch;
};
constexpr Variant kVariants[] = {
    {"8 warps x 3", 64, LaunchDecodeAttention<DecodeConfig<64, 8, 3>>},
    {"8 warps x 2", 64, LaunchDecodeAttention<DecodeConfig<64, 8, 2>>},
    {"4 warps x 3", 128, LaunchDecodeAttention<DecodeConfig<128, 4, 3>>},
    {"4 warps x 2", 128, LaunchDecodeAttention<DecodeConfig<128, 4, 2>>},
};

// Random bf16 of magnitude around 1.
__global__ void FillKernel(uint4* data, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t words[4];
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;
    for (uint32_t& word : words) {
      x ^= x >> 29;
      x *= 0xbf58476d1ce4e5b9ull;
      // Sign and mantissa random, exponent 2^-3 .. 2^0.
      const uint32_t r = static_cast<uint32_t>(x >> 32);
      word = (r & 0x80ff80ffu) | 0x3e003e00u | ((r >> 1) & 0x01800180u);
    }
    data[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__global__ void __launch_bounds__(512) ReadKernel(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = LoadStream16(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += stride) sum ^= data[i].x;
  if (sum == 0x12345678) *sink = sum;
}

// Microseconds a node, median and 95th percentile over replays of the graph.
struct Timing {
  double median = 0, p95 = 0;
};
Timing TimeGraph(int nodes, int replays, const std::function<void(int, cudaStream_t)>& launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t start, stop;
  CheckCuda(cudaStreamCreate(&stream), "stream");
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < nodes; ++i) launch(i, stream);
  CheckCuda(cudaStreamEndCapture(stream, &graph), "capture");
  CheckCuda(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  CheckCuda(cudaEventCreate(&start), "event");
  CheckCuda(cudaEventCreate(&stop), "event");
  for (int i = 0; i < 2; ++i) CheckCuda(cudaGraphLaunch(exec, stream), "launch");
  std::vector<double> times;
  for (int i = 0; i < replays; ++i) {
    CheckCuda(cudaEventRecord(start, stream), "record");
    CheckCuda(cudaGraphLaunch(exec, stream), "launch");
    CheckCuda(cudaEventRecord(stop, stream), "record");
    CheckCuda(cudaEventSynchronize(stop), "graph");
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, start, stop), "elapsed");
    times.push_back(ms * 1e3 / nodes);
  }
  std::sort(times.begin(), times.end());
  CheckCuda(cudaGraphExecDestroy(exec), "destroy");
  CheckCuda(cudaGraphDestroy(graph), "destroy");
  CheckCuda(cudaEventDestroy(start), "destroy");
  CheckCuda(cudaEventDestroy(stop), "destroy");
  CheckCuda(cudaStreamDestroy(stream), "destroy");
  return {times[times.size() / 2], times[static_cast<size_t>(static_cast<double>(times.size() - 1) * 0.95)]};
}

template <typename T>
T* Device(size_t count) {
  void* p = nullptr;
  CheckCuda(cudaMalloc(&p, count * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(p);
}
template <typename T>
void Put(T* to, const std::vector<T>& from) {
  CheckCuda(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
}

struct Pool {
  char* data;
  size_t bytes;
};

// One shape: `batch` sequences of `context` tokens.
struct Shape {
  Model model;
  int batch, context, block_tokens, fixed_chunk;
  int cluster = 0;          // 0: the plan's
  int combine_kernel = -1;  // -1: the plan's
};

class Case {
 public:
  Case(const Shape& shape, const Pool& pool) : shape_(shape) {
    const Model& m = shape.model;
    const size_t block_bytes = size_t{2} * m.layers * m.kv_heads * shape.block_tokens * m.head_dim * 2;
    const int blocks = (shape.context + shape.block_tokens - 1) / shape.block_tokens;
    const size_t available = pool.bytes / block_bytes;
    const size_t one_set = static_cast<size_t>(blocks) * shape.batch;
    sets_ = static_cast<int>(
        std::min<size_t>(available / one_set, std::max<size_t>(1, size_t{400} << 20) / (one_set * block_bytes) + 1));
    std::vector<int32_t> ids(available);
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 random(5);
    std::shuffle(ids.begin(), ids.end(), random);
    ids.resize(one_set * sets_);
    tables_ = Device<int32_t>(ids.size());
    Put(tables_, ids);
    const std::vector<int32_t> lengths(static_cast<size_t>(shape.batch), shape.context);
    limits_ = DecodeLimits(shape.batch, shape.context, kSms, shape.fixed_chunk, m.kv_heads, m.head_dim);
    if (shape.cluster > 0) limits_.cluster = shape.cluster, limits_.heads = 1;
    if (shape.combine_kernel >= 0) limits_.combine_kernel = shape.combine_kernel != 0;
    std::vector<DecodeUnit> units(static_cast<size_t>(limits_.max_units));
    std::vector<int32_t> splits(lengths.size() + 1);
    unit_count_ = PlanDecode(lengths.data(), shape.batch, shape.block_tokens, kSms, shape.fixed_chunk, limits_,
                             units.data(), splits.data());
    units_ = Device<DecodeUnit>(units.size());
    Put(units_, units);
    splits_ = Device<int32_t>(splits.size());
    Put(splits_, splits);
    const size_t q_elements = static_cast<size_t>(shape.batch) * m.q_heads * m.head_dim;
    q_ = Device<__nv_bfloat16>(q_elements);
    out_ = Device<__nv_bfloat16>(q_elements);
    CheckCuda(cudaMemcpy(q_, pool.data, q_elements * 2, cudaMemcpyDeviceToDevice), "cudaMemcpy");
    workspace_bytes_ = DecodeWorkspaceBytes(limits_, m.q_heads, m.head_dim);
    workspace_ = Device<char>(workspace_bytes_);
    CheckCuda(cudaMemset(workspace_, 0, workspace_bytes_), "cudaMemset");
    base_.q = q_;
    base_.out = out_;
    base_.kv.base = reinterpret_cast<std::byte*>(pool.data);
    base_.kv.block_bytes = block_bytes;
    base_.kv.head_bytes = static_cast<size_t>(shape.block_tokens) * m.head_dim * 2;
    base_.kv.block_tokens = static_cast<uint32_t>(shape.block_tokens);
    base_.kv.kv_heads = static_cast<uint32_t>(m.kv_heads);
    base_.kv.head_dim = static_cast<uint32_t>(m.head_dim);
    base_.q_heads = m.q_heads;
    base_.scale = m.head_dim == 64 ? 0.125f : 0.08838834764f;
    base_.rows = shape.batch;
    base_.table_stride = blocks;
    base_.units = units_;
    base_.splits = splits_;
    base_.max_units = limits_.max_units;
    base_.cluster = limits_.cluster;
    base_.heads = limits_.heads;
    base_.combine_kernel = limits_.combine_kernel;
    base_.workspace = workspace_;
    base_.workspace_bytes = workspace_bytes_;
  }
  ~Case() {
    for (void* p : {static_cast<void*>(tables_), static_cast<void*>(units_), static_cast<void*>(splits_),
                    static_cast<void*>(q_), static_cast<void*>(out_), static_cast<void*>(workspace_)}) {
      cudaFree(p);
    }
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  DecodeAttentionParams Node(int i) const {
    DecodeAttentionParams p = base_;
    const size_t layer_bytes = 2 * p.kv.head_bytes * p.kv.kv_heads;
    p.kv.k_offset = static_cast<size_t>(i % shape_.model.layers) * layer_bytes;
    p.kv.v_offset = p.kv.k_offset + layer_bytes / 2;
    p.block_tables = tables_ + static_cast<size_t>(i / shape_.model.layers % sets_) * shape_.batch * p.table_stride;
    return p;
  }
  int nodes() const { return std::max(shape_.model.layers, std::min(sets_ * shape_.model.layers, 200)); }
  int units() const { return unit_count_; }
  int cluster() const { return limits_.cluster; }
  double bytes() const { return 4.0 * shape_.model.kv_heads * shape_.model.head_dim * shape_.context * shape_.batch; }

 private:
  Shape shape_;
  DecodePlanLimits limits_;
  int sets_ = 1, unit_count_ = 0;
  int32_t *tables_, *splits_;
  DecodeUnit* units_;
  __nv_bfloat16 *q_, *out_;
  char* workspace_;
  size_t workspace_bytes_ = 0;
  DecodeAttentionParams base_;
};

FILE* json = nullptr;

void Report(const Shape& s, const char* name, int units, int cluster, double bytes, const Timing& t, double read_us) {
  std::printf(
      "%s B %3d ctx %5d page %3d chunk %4d  %-14s cluster %d units %4d  %8.2f us (p95 %8.2f)  %.2f TB/s  read-only "
      "%.2f\n",
      s.model.name, s.batch, s.context, s.block_tokens, s.fixed_chunk, name, cluster, units, t.median, t.p95,
      bytes / t.median * 1e-6, bytes / read_us * 1e-6);
  if (json != nullptr) {
    std::fprintf(json,
                 "{\"bench\": \"decode_attention\", \"model\": \"%s\", \"batch\": %d, \"context\": %d, "
                 "\"block_tokens\": %d, \"fixed_chunk\": %d, \"variant\": \"%s\", \"cluster\": %d, \"units\": %d, "
                 "\"median_us\": %.3f, "
                 "\"p95_us\": %.3f, \"kv_bytes\": %.0f, \"read_only_us\": %.3f}\n",
                 s.model.name, s.batch, s.context, s.block_tokens, s.fixed_chunk, name, cluster, units, t.median, t.p95,
                 bytes, read_us);
  }
}

void RunShape(const Shape& shape, const Pool& pool, uint32_t* sink, bool all_variants) {
  const Case c(shape, pool);
  const bool brief = shape.cluster > 0;
  const int replays = brief ? 7 : c.bytes() * c.nodes() > 4e9 ? 11 : 25;
  const size_t vectors = static_cast<size_t>(c.bytes()) / 16;
  const size_t pieces = pool.bytes / 16 / vectors;
  const Timing read =
      TimeGraph(brief ? 1 : std::min(c.nodes(), 48), brief ? 1 : replays, [&](int i, cudaStream_t stream) {
        ReadKernel<<<2 * kSms, 512, 0, stream>>>(reinterpret_cast<const uint4*>(pool.data) + i % pieces * vectors,
                                                 vectors, sink);
      });
  const auto time = [&](const char* name, Launcher launch, bool pdl) {
    LaunchContext context;
    context.pdl = pdl;
    const Timing t = TimeGraph(c.nodes(), replays, [&](int i, cudaStream_t stream) {
      context.stream = stream;
      CheckCuda(launch(c.Node(i), context), "decode attention");
    });
    Report(shape, name, c.units(), c.cluster(), c.bytes(), t, read.median);
  };
  bool first = true;
  for (const Variant& v : kVariants) {
    if (v.head_dim != shape.model.head_dim) continue;
    if (first && shape.cluster == 0) time((std::string(v.name) + " nopdl").c_str(), v.launch, false);
    if (first || all_variants) time(v.name, v.launch, true);
    first = false;
  }
}

// Which cluster and chunk are best for small batches.
void SweepClusters(const Model& model, const Pool& pool, uint32_t* sink) {
  for (const auto& [batch, context] :
       {std::pair(1, 1024), std::pair(1, 2048), std::pair(1, 16384), std::pair(2, 8192), std::pair(2, 1024),
        std::pair(4, 1024), std::pair(4, 4096), std::pair(8, 1024)}) {
    for (int cluster : {1, 2, 4, 8}) {
      for (int units : {1, 2, 3, 4, 6, 8, 16}) {
        const int chunk = (context / units + 15) / 16 * 16;
        const int blocks = batch * units * cluster * model.kv_heads;
        if (chunk < 128 * cluster || blocks > 264 || blocks < 64) continue;
        RunShape({model, batch, context, 16, chunk, cluster, 0}, pool, sink, false);
      }
    }
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main(int argc, char** argv) {
  using namespace agentserve::kernels::cuda;
  bool quick = false, clusters = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--clusters") == 0) clusters = true;
    if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) json = std::fopen(argv[++i], "w");
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no CUDA device\n");
    return 77;
  }
  Pool pool{nullptr, size_t{64} << 30};
  pool.data = Device<char>(pool.bytes);
  uint32_t* sink = Device<uint32_t>(1);
  FillKernel<<<1056, 512>>>(reinterpret_cast<uint4*>(pool.data), pool.bytes / 16);
  CheckCuda(cudaDeviceSynchronize(), "fill");
  for (const Model& model : kModels) {
    if (clusters) {
      SweepClusters(model, pool, sink);
      continue;
    }
    const int long_batch = model.head_dim == 64 ? 128 : 64;
    RunShape({model, 64, 4096, 16, 0}, pool, sink, true);
    RunShape({model, 1, 1024, 16, 0}, pool, sink, true);
    RunShape({model, 1, 32768, 16, 0}, pool, sink, true);
    RunShape({model, 1, 4096, 16, 0}, pool, sink, false);
    RunShape({model, 1, 8192, 16, 0}, pool, sink, false);
    RunShape({model, 2, 1024, 16, 0}, pool, sink, false);
    RunShape({model, 4, 1024, 16, 0}, pool, sink, false);
    RunShape({model, 4, 8192, 16, 0}, pool, sink, false);
    RunShape({model, 8, 1024, 16, 0}, pool, sink, false);
    RunShape({model, 16, 1024, 16, 0}, pool, sink, false);
    RunShape({model, 32, 2048, 16, 0}, pool, sink, false);
    RunShape({model, 64, 1024, 16, 0}, pool, sink, false);
    RunShape({model, 256, 1024, 16, 0}, pool, sink, false);
    RunShape({model, long_batch, 4096, 16, 0}, pool, sink, false);
    RunShape({model, 64, 4096, 16, 512}, pool, sink, false);
    RunShape({model, 64, 4096, 16, 512, 0, 0}, pool, sink, false);
    RunShape({model, 64, 4096, 64, 0}, pool, sink, false);
    if (quick) continue;
    RunShape({model, 16, 8192, 16, 0}, pool, sink, false);
    RunShape({model, 64, 4096, 16, 1024}, pool, sink, false);
    RunShape({model, 64, 4096, 16, 2048}, pool, sink, false);
    RunShape({model, 1, 8192, 16, 512}, pool, sink, false);
    RunShape({model, 1, 8192, 16, 512, 0, 0}, pool, sink, false);
    RunShape({model, 1, 1024, 16, 512}, pool, sink, false);
    RunShape({model, 1, 1024, 16, 512, 0, 0}, pool, sink, false);
  }
  CheckCuda(cudaDeviceSynchronize(), "end");
  if (json != nullptr) std::fclose(json);
  return 0;
}
