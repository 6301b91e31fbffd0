// A random model, pool and batch for the test and the bench of the decode step, and the same step by separate kernels.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "kernels/decode_step/decode_step_cuda.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/gemm/linear_cuda.h"
#include "kernels/gemm/linear_test_util.cuh"
#include "kernels/rmsnorm/rmsnorm_cuda.h"

namespace agentserve::kernels::cuda::testing {

struct StepShapeOptions {
  bool is_3b = false;
  int layers = 2;
  int vocab = 4112;
  int block_tokens = 16;
  std::vector<int> positions = {100};
  int max_positions = 65536;  // of the RoPE table
};

// Random K and V at positions [0, position) of every row; the rest of the pool stays NaN.
__global__ void FillKv(__nv_bfloat16* pool, size_t block_values, const int32_t* tables, int stride,
                       const int32_t* positions, int block_tokens, int head_dim) {
  const int row = blockIdx.y, position = blockIdx.x;
  if (position >= positions[row]) return;
  const size_t pieces = block_values / (static_cast<size_t>(block_tokens) * head_dim);
  __nv_bfloat16* block = pool + tables[row * stride + position / block_tokens] * block_values;
  for (size_t i = threadIdx.x; i < pieces * head_dim; i += blockDim.x) {
    const size_t at = (i / head_dim * block_tokens + position % block_tokens) * head_dim + i % head_dim;
    const uint32_t bits = Mix((row * 100003ULL + position) * 0x9e3779b97f4a7c15ULL + i);
    block[at] = __float2bfloat16_rn((static_cast<float>(bits & 0xffff) / 32768.0f - 1.0f) * 1.5f);
  }
}

class StepProblem {
 public:
  explicit StepProblem(const StepShapeOptions& o)
      : options_(o),
        hidden_(o.is_3b ? 3072 : 2048),
        q_heads_(o.is_3b ? 24 : 32),
        head_dim_(o.is_3b ? 128 : 64),
        rows_(static_cast<int>(o.positions.size())),
        stride_(*std::max_element(o.positions.begin(), o.positions.end()) / o.block_tokens + 1),
        blocks_(rows_ * stride_ + 3),
        weights_(LayerValues() * o.layers + Values(o.vocab, hidden_)),
        norms_(Values(2 * o.layers + 1, hidden_)),
        cos_(Values(o.max_positions, head_dim_ / 2)),
        sin_(Values(o.max_positions, head_dim_ / 2)),
        pool_(static_cast<size_t>(blocks_) * BlockValues()),
        hidden_rows_(Values(16, 8192)),
        normed_(Values(16, 8192)),
        q_(Values(16, 8192)),
        attention_(Values(16, 8192)),
        ffn_(Values(16, 8192)),
        integers_(320),
        tables_(static_cast<size_t>(rows_) * stride_),
        linear_(LinearWorkspaceBytes(16, 128256, 8192)),
        decode_(64 << 20),
        plan_(1 << 20),
        workspace_(DecodeStep::WorkspaceBytes(Model(), 132)) {
    linear_.FillBytes(0);
    decode_.FillBytes(0);
    FillRandom(weights_, 11, 0.02f);
    FillRandom(norms_, 12, 0.2f, 1.0f);
    FillRandom(cos_, 13, 0.6f);
    FillRandom(sin_, 14, 0.6f);
    FillBatch();
    PlanSeparate();
  }

  DecodeStepModel Model() const {
    DecodeStepModel m;
    m.hidden = hidden_;
    m.ffn = kFfn;
    m.q_heads = q_heads_;
    m.kv_heads = kKvHeads;
    m.head_dim = head_dim_;
    m.vocab = options_.vocab;
    m.norm_eps = 1e-5f;
    m.embedding = m.lm_head = weights_.get() + LayerValues() * options_.layers;
    m.final_norm = norms_.get() + Values(2 * options_.layers, hidden_);
    m.cos = cos_.get();
    m.sin = sin_.get();
    for (int i = 0; i < options_.layers; ++i) m.layers.push_back(Layer(i));
    m.pool = reinterpret_cast<std::byte*>(pool_.get());
    m.num_blocks = static_cast<uint32_t>(blocks_);
    m.block_tokens = static_cast<uint32_t>(options_.block_tokens);
    return m;
  }
  DecodeStepParams Params(int32_t* tokens, __nv_bfloat16* best, __nv_bfloat16* logits) const {
    DecodeStepParams p;
    p.rows = rows_;
    p.ids = integers_.get();
    p.from = integers_.get() + 64;
    p.sampled = integers_.get() + 128;
    p.positions = integers_.get() + 192;
    p.slots = integers_.get() + 256;
    p.tables = tables_.get();
    p.table_stride = stride_;
    p.tokens = tokens;
    p.best = best;
    p.logits = logits;
    return p;
  }

  // The same step by the separate kernels.
  void RunSeparate(const DecodeStepParams& step, const LaunchContext& context) const;

  double Bytes() const {
    double kv = 0;
    for (const int position : options_.positions) kv += 4.0 * options_.layers * kKvHeads * head_dim_ * (position + 1);
    return 2.0 * static_cast<double>(weights_.size()) + kv;
  }
  int rows() const { return rows_; }
  int vocab() const { return options_.vocab; }
  void* workspace() const { return workspace_.get(); }
  const DeviceBf16& pool() const { return pool_; }
  // Forgets the K and V of the newest positions.
  void FillBatch();

 private:
  static constexpr int kFfn = 8192, kKvHeads = 8;
  void PlanSeparate();
  static size_t Values(int rows, int columns) { return static_cast<size_t>(rows) * static_cast<size_t>(columns); }
  int QkvRows() const { return (q_heads_ + 2 * kKvHeads) * head_dim_; }
  size_t LayerValues() const { return Values(QkvRows() + hidden_ + 3 * kFfn, hidden_); }
  size_t BlockValues() const { return Values(2 * options_.layers * kKvHeads * options_.block_tokens, head_dim_); }
  DecodeStepLayerWeights Layer(int i) const {
    DecodeStepLayerWeights l;
    l.input_norm = norms_.get() + Values(2 * i, hidden_);
    l.post_norm = norms_.get() + Values(2 * i + 1, hidden_);
    l.qkv = weights_.get() + LayerValues() * i;
    l.o = l.qkv + Values(QkvRows(), hidden_);
    l.gate_up = l.o + Values(hidden_, hidden_);
    l.down = l.gate_up + Values(2 * kFfn, hidden_);
    return l;
  }

  StepShapeOptions options_;
  int hidden_, q_heads_, head_dim_, rows_, stride_, blocks_;
  DecodePlanLimits limits_;
  DeviceBf16 weights_, norms_, cos_, sin_, pool_;
  DeviceBf16 hidden_rows_, normed_, q_, attention_, ffn_;  // of the separate kernels
  DeviceArray<int32_t> integers_, tables_;
  DeviceArray<std::byte> linear_, decode_, plan_, workspace_;
};

inline void StepProblem::FillBatch() {
  std::vector<int32_t> values(320, -1), tables(tables_.size());
  for (size_t i = 0; i < tables.size(); ++i) {  // every block once, in a scattered order
    tables[i] = static_cast<int32_t>((i * 7 + 3) % tables.size() + 2);
    if (tables.size() % 7 == 0) tables[i] = static_cast<int32_t>(tables.size() - i);
  }
  for (int r = 0; r < rows_; ++r) {
    const int position = options_.positions[r], block = tables[r * stride_ + position / options_.block_tokens];
    values[r] = (r * 977 + 5) % options_.vocab;
    values[64 + r] = r % 2 == 1 ? rows_ - 1 - r : -1;
    values[128 + r] = (r * 331 + 17) % options_.vocab;
    values[192 + r] = position;
    values[256 + r] = block * options_.block_tokens + position % options_.block_tokens;
  }
  Must(cudaMemcpy(integers_.get(), values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  tables_.CopyFrom(tables);
  pool_.FillBytes(0xff);
  int longest = 1;
  for (const int position : options_.positions) longest = std::max(longest, position);
  FillKv<<<dim3(longest, rows_), 128>>>(pool_.get(), BlockValues(), tables_.get(), stride_, integers_.get() + 192,
                                        options_.block_tokens, head_dim_);
  Must(cudaDeviceSynchronize());
}

inline void StepProblem::PlanSeparate() {
  limits_ = DecodeLimits(rows_, *std::max_element(options_.positions.begin(), options_.positions.end()) + 1, 132, 0,
                         kKvHeads, head_dim_);
  std::vector<DecodeUnit> units(static_cast<size_t>(limits_.max_units));
  std::vector<int32_t> splits(static_cast<size_t>(rows_) + 1), lengths;
  for (const int position : options_.positions) lengths.push_back(position + 1);
  if (PlanDecode(lengths.data(), rows_, options_.block_tokens, 132, 0, limits_, units.data(), splits.data()) < 0) {
    std::_Exit(2);
  }
  Must(cudaMemcpy(plan_.get(), splits.data(), splits.size() * 4, cudaMemcpyHostToDevice));
  Must(cudaMemcpy(plan_.get() + 4096, units.data(), units.size() * sizeof(DecodeUnit), cudaMemcpyHostToDevice));
}

inline void StepProblem::RunSeparate(const DecodeStepParams& step, const LaunchContext& context) const {
  const auto must = [](const absl::Status& status) {
    if (status.ok()) return;
    std::printf("%s\n", std::string(status.message()).c_str());
    std::fflush(stdout);
    std::_Exit(1);
  };
  const DecodeStepModel m = Model();
  must(Embedding({m.embedding, step.ids, step.sampled, step.from, hidden_rows_.get(), rows_, hidden_}, context));
  const auto linear_of = [&](const __nv_bfloat16* x, const __nv_bfloat16* w, __nv_bfloat16* y, int n, int k,
                             LinearEpilogue epilogue) {
    LinearParams p;
    p.x = x, p.w = w, p.y = y, p.m = rows_, p.n = n, p.k = k, p.epilogue = epilogue;
    p.residual = hidden_rows_.get();
    p.workspace = linear_.get();
    p.workspace_bytes = linear_.size();
    return p;
  };
  const auto norm = [&](const __nv_bfloat16* weight) {
    RmsNormParams p;
    p.x = hidden_rows_.get(), p.weight = weight, p.y = normed_.get(), p.rows = rows_, p.n = hidden_, p.eps = m.norm_eps;
    must(RmsNorm(p, context));
  };
  const size_t head_bytes = static_cast<size_t>(options_.block_tokens * head_dim_) * 2;
  for (int i = 0; i < options_.layers; ++i) {
    const DecodeStepLayerWeights& l = m.layers[i];
    norm(l.input_norm);
    LinearParams p = linear_of(normed_.get(), l.qkv, q_.get(), QkvRows(), hidden_, LinearEpilogue::kQkv);
    PagedKv& kv = p.qkv.kv;
    kv = {m.pool,     BlockValues() * 2, 2 * i * kKvHeads * head_bytes,   (2 * i + 1) * kKvHeads * head_bytes,
          head_bytes, m.block_tokens,    static_cast<uint32_t>(kKvHeads), static_cast<uint32_t>(head_dim_)};
    p.qkv.cos = m.cos, p.qkv.sin = m.sin, p.qkv.positions = step.positions, p.qkv.slots = step.slots;
    p.qkv.q_heads = q_heads_;
    must(Linear(p, context));
    DecodeAttentionParams a;
    a.q = q_.get(), a.out = attention_.get(), a.kv = kv, a.q_heads = q_heads_;
    a.scale = 1.0f / sqrtf(static_cast<float>(head_dim_));
    a.rows = rows_, a.block_tables = step.tables, a.table_stride = step.table_stride;
    a.units = reinterpret_cast<const DecodeUnit*>(plan_.get() + 4096);
    a.splits = reinterpret_cast<const int32_t*>(plan_.get());
    a.max_units = limits_.max_units, a.cluster = limits_.cluster, a.combine_kernel = limits_.combine_kernel;
    a.workspace = decode_.get(), a.workspace_bytes = decode_.size();
    must(DecodeAttention(a, context));
    must(Linear(linear_of(attention_.get(), l.o, hidden_rows_.get(), hidden_, hidden_, LinearEpilogue::kResidual),
                context));
    norm(l.post_norm);
    must(Linear(linear_of(normed_.get(), l.gate_up, ffn_.get(), 2 * kFfn, hidden_, LinearEpilogue::kSwiglu), context));
    must(Linear(linear_of(ffn_.get(), l.down, hidden_rows_.get(), hidden_, kFfn, LinearEpilogue::kResidual), context));
  }
  norm(m.final_norm);
  LmHeadParams head;
  head.linear = linear_of(normed_.get(), m.lm_head, step.logits, options_.vocab, hidden_, LinearEpilogue::kNone);
  head.argmax = step.tokens;
  head.best = step.best;
  must(LmHead(head, context));
}

}  // namespace agentserve::kernels::cuda::testing
