#include "model/cuda/forward.h"

#include <algorithm>
#include <cmath>

#include "base/status_macros.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/gemm/linear_cuda.h"
#include "kernels/rmsnorm/rmsnorm_cuda.h"
#include "kernels/sampling/sampling_cuda.h"
#include "model/cuda/init_kernels.h"
#include "model/cuda/whole_step.h"

namespace agentserve::model::cuda {
namespace {

using kernels::cuda::LaunchContext;
using kernels::cuda::LinearEpilogue;
using kernels::cuda::LinearParams;

}  // namespace

int BucketOf(int rows) {
  const auto* it = std::lower_bound(std::begin(kBuckets), std::end(kBuckets), rows);
  return it == std::end(kBuckets) ? rows : *it;
}

int ContextClass(int positions) {
  int context = 1024;
  while (context < positions) context *= 4;
  return context;
}

int NextContextClass(int context, int max_position) { return context < max_position ? 4 * context : 0; }

Buffers Buffers::Carve(const ModelConfig& c, const ExecutorLimits& limits, const StepOptions& options, Arena* arena) {
  using T = __nv_bfloat16;
  const auto sequences = static_cast<size_t>(BucketOf(static_cast<int>(limits.max_sequences)));
  const size_t tokens = std::max<size_t>(limits.max_step_tokens, sequences);
  Buffers b;
  b.hidden = arena->Take<T>(tokens * c.hidden_size);
  b.normed = arena->Take<T>(tokens * c.hidden_size);
  b.q = arena->Take<T>(tokens * c.q_size());
  b.attention = arena->Take<T>(tokens * c.q_size());
  b.ffn = arena->Take<T>(tokens * c.intermediate_size);
  b.last_hidden = arena->Take<T>(sequences * c.hidden_size);
  b.last_attention = arena->Take<T>(sequences * c.q_size());
  b.logits = arena->Take<T>(sequences * c.vocab_size);
  const auto n = [](uint32_t v) { return static_cast<int>(v); };
  const int widest = std::max({n(c.vocab_size), n(2 * c.intermediate_size), n(c.q_size() + 2 * c.kv_size())});
  const int deepest = std::max({n(c.hidden_size), n(c.intermediate_size), n(c.q_size())});
  // The widest product of all is the LM head's, which has few rows.
  b.linear_bytes = std::max(
      kernels::cuda::LinearWorkspaceBytes(static_cast<int>(sequences), widest, deepest),
      kernels::cuda::LinearWorkspaceBytes(
          static_cast<int>(tokens), std::max(n(2 * c.intermediate_size), n(c.q_size() + 2 * c.kv_size())), deepest));
  for (int rows = 1; rows <= static_cast<int>(sequences); rows = BucketOf(rows + 1)) {
    for (int context = ContextClass(1); context > 0; context = NextContextClass(context, n(c.max_position))) {
      const auto decode = DecodeLimitsOf(rows, context, c, options);
      b.decode_bytes =
          std::max(b.decode_bytes, kernels::cuda::DecodeWorkspaceBytes(decode, n(c.num_heads), n(c.head_dim)));
    }
  }
  b.prefill_bytes = kernels::cuda::PrefillWorkspaceBytes();
  b.sample_bytes = kernels::cuda::SampleWorkspaceBytes(static_cast<int>(sequences), n(c.vocab_size));
  b.linear = arena->Take<std::byte>(b.linear_bytes);
  b.decode = arena->Take<std::byte>(b.decode_bytes);
  b.prefill = arena->Take<std::byte>(b.prefill_bytes);
  b.sample = arena->Take<std::byte>(b.sample_bytes);
  if (const size_t bytes = options.batch_invariant ? 0 : WholeStepBytes(c, options.num_sms); bytes > 0) {
    b.whole_step = arena->Take<std::byte>(bytes);
  }
  return b;
}

struct Forward::Pass {
  const StepShape& shape;
  const StepArrays& arrays;
  int tiles;
  LaunchContext context;
  // Rows that go on; after the last layer's attention only those that sample.
  int rows;
  const __nv_bfloat16* attention;
  __nv_bfloat16* hidden;
};

kernels::PagedKv Forward::LayerKv(uint32_t layer) const {
  const engine::KvLayout& l = pool_.layout;
  return {pool_.base,    l.BlockBytes(), l.Offset(layer, 0, 0), l.Offset(layer, 1, 0),
          l.HeadBytes(), l.block_tokens, l.num_kv_heads,        l.head_dim};
}

namespace {

LinearParams MakeLinear(const __nv_bfloat16* x, const __nv_bfloat16* w, __nv_bfloat16* y, int m, uint32_t n, uint32_t k,
                        const Buffers& buffers, bool invariant) {
  LinearParams p;
  p.x = x;
  p.w = w;
  p.y = y;
  p.m = m;
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.mode = invariant ? kernels::cuda::LinearMode::kInvariant : kernels::cuda::LinearMode::kFast;
  p.workspace = buffers.linear;
  p.workspace_bytes = buffers.linear_bytes;
  return p;
}

}  // namespace

// The norm before a product, inside it where that is chosen.
absl::Status Forward::Normed(const __nv_bfloat16* weight, LinearParams* p, const LaunchContext& context) const {
  if (!options_.step.batch_invariant && p->m <= options_.fuse_norm_rows) {
    p->norm_weight = weight;
    p->norm_eps = config_.rms_norm_eps;
    return absl::OkStatus();
  }
  kernels::cuda::RmsNormParams norm;
  norm.x = p->x;
  norm.weight = weight;
  norm.y = buffers_.normed;
  norm.rows = p->m;
  norm.n = p->k;
  norm.eps = config_.rms_norm_eps;
  norm.invariant = options_.step.batch_invariant;
  p->x = buffers_.normed;
  return (options_.skip & kSkipNorm) != 0 ? absl::OkStatus() : kernels::cuda::RmsNorm(norm, context);
}

absl::Status Forward::Linear(const LinearParams& p, uint32_t part, const LaunchContext& context) const {
  return (options_.skip & part) != 0 ? absl::OkStatus() : kernels::cuda::Linear(p, context);
}

// Rows of the residual stream come out of the product before normed already; few rows have kernels that norm x.
bool Forward::NormsAhead(const Pass& pass) const { return pass.rows > kernels::cuda::kMaxFusedNormRows; }

absl::Status Forward::ResidualNorm(const LinearParams& p, const __nv_bfloat16* weight, uint32_t part,
                                   const LaunchContext& context) const {
  if ((options_.skip & part) != 0) return absl::OkStatus();
  kernels::cuda::ResidualNormParams both;
  both.linear = p;
  both.norm_weight = weight;
  both.norm_eps = config_.rms_norm_eps;
  both.normed = buffers_.normed;
  return kernels::cuda::LinearResidualNorm(both, context);
}

// Few rows over short contexts: attention leaves the memory idle.
bool Forward::Prefetches(const StepShape& shape) const {
  constexpr int kMostRows = 16;
  return options_.prefetch_bytes > 0 && shape.chunks == 0 && shape.decodes <= kMostRows;
}

// What follows attention: O, then gate and up. Forked beside attention, joined at the end of the step.
absl::Status Forward::Prefetch(const Pass& pass, uint32_t layer) const {
  const DeviceLayer& w = weights_.layers[layer];
  const auto check = [](cudaError_t error) { return kernels::cuda::ToStatus(error, "forking a prefetch"); };
  AS_RETURN_IF_ERROR(check(cudaEventRecord(fork_, pass.context.stream)));
  AS_RETURN_IF_ERROR(check(cudaStreamWaitEvent(side_, fork_, 0)));
  const size_t o = size_t{config_.hidden_size} * config_.q_size() * 2;
  const size_t gate_up = size_t{2} * config_.intermediate_size * config_.hidden_size * 2;
  LaunchContext context = pass.context;
  context.stream = side_;
  context.pdl = false;
  const size_t first = std::min(o, options_.prefetch_bytes);
  return PrefetchToL2(reinterpret_cast<const std::byte*>(w.o), first, reinterpret_cast<const std::byte*>(w.gate_up),
                      std::min(gate_up, options_.prefetch_bytes - first), context);
}

absl::Status Forward::Qkv(const Pass& pass, uint32_t layer) const {
  const DeviceLayer& w = weights_.layers[layer];
  const bool invariant = options_.step.batch_invariant;
  LinearParams p = MakeLinear(buffers_.hidden, w.qkv, buffers_.q, pass.shape.rows(),
                              config_.q_size() + 2 * config_.kv_size(), config_.hidden_size, buffers_, invariant);
  p.epilogue = LinearEpilogue::kQkv;
  p.qkv.kv = LayerKv(layer);
  p.qkv.cos = weights_.cos;
  p.qkv.sin = weights_.sin;
  p.qkv.positions = pass.arrays.positions;
  p.qkv.slots = pass.arrays.slots;
  p.qkv.q_heads = static_cast<int>(config_.num_heads);
  if (layer > 0 && NormsAhead(pass)) {
    p.x = buffers_.normed;
  } else {
    AS_RETURN_IF_ERROR(Normed(w.input_norm, &p, pass.context));
  }
  return Linear(p, kSkipQkv, pass.context);
}

absl::Status Forward::Attend(const Pass& pass, uint32_t layer) const {
  const StepShape& s = pass.shape;
  const StepArrays& a = pass.arrays;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  if ((options_.skip & kSkipAttention) != 0) return absl::OkStatus();
  if (s.decodes > 0) {
    kernels::cuda::DecodeAttentionParams p;
    p.q = buffers_.q;
    p.out = buffers_.attention;
    p.kv = LayerKv(layer);
    p.q_heads = static_cast<int>(config_.num_heads);
    p.scale = scale;
    p.rows = s.decodes;
    p.block_tables = a.decode_tables;
    p.table_stride = s.decode_stride;
    p.units = a.units;
    p.splits = a.splits;
    p.max_units = s.decode_limits.max_units;
    p.cluster = s.decode_limits.cluster;
    p.heads = s.decode_limits.heads;
    p.combine_kernel = s.decode_limits.combine_kernel;
    p.workspace = buffers_.decode;
    p.workspace_bytes = buffers_.decode_bytes;
    AS_RETURN_IF_ERROR(kernels::cuda::DecodeAttention(p, pass.context));
  }
  if (s.chunks > 0) {
    const size_t skip = static_cast<size_t>(s.decodes) * config_.q_size();
    kernels::cuda::PrefillAttentionParams p;
    p.q = buffers_.q + skip;
    p.out = buffers_.attention + skip;
    p.kv = LayerKv(layer);
    p.q_heads = static_cast<int>(config_.num_heads);
    p.scale = scale;
    p.sequences = s.chunks;
    p.tokens = s.chunk_tokens;
    p.max_new = s.max_new;
    p.cu_tokens = a.cu_tokens;
    p.starts = a.starts;
    p.block_tables = a.chunk_tables;
    p.table_stride = s.table_stride;
    p.tiles = a.tiles;
    p.num_tiles = pass.tiles;
    p.workspace = buffers_.prefill;
    p.workspace_bytes = buffers_.prefill_bytes;
    AS_RETURN_IF_ERROR(kernels::cuda::PrefillAttention(p, pass.context));
  }
  return absl::OkStatus();
}

absl::Status Forward::OutputAndMlp(const Pass& pass, uint32_t layer) const {
  const DeviceLayer& w = weights_.layers[layer];
  const bool invariant = options_.step.batch_invariant;
  const uint32_t h = config_.hidden_size, f = config_.intermediate_size;
  LinearParams o = MakeLinear(pass.attention, w.o, pass.hidden, pass.rows, h, config_.q_size(), buffers_, invariant);
  o.epilogue = LinearEpilogue::kResidual;
  o.residual = pass.hidden;
  LinearParams up = MakeLinear(pass.hidden, w.gate_up, buffers_.ffn, pass.rows, 2 * f, h, buffers_, invariant);
  up.epilogue = LinearEpilogue::kSwiglu;
  if (NormsAhead(pass)) {
    AS_RETURN_IF_ERROR(ResidualNorm(o, w.post_norm, kSkipO, pass.context));
    up.x = buffers_.normed;
  } else {
    AS_RETURN_IF_ERROR(Linear(o, kSkipO, pass.context));
    AS_RETURN_IF_ERROR(Normed(w.post_norm, &up, pass.context));
  }
  AS_RETURN_IF_ERROR(Linear(up, kSkipGateUp, pass.context));
  LinearParams down = MakeLinear(buffers_.ffn, w.down, pass.hidden, pass.rows, h, f, buffers_, invariant);
  down.epilogue = LinearEpilogue::kResidual;
  down.residual = pass.hidden;
  if (!NormsAhead(pass)) return Linear(down, kSkipDown, pass.context);
  const __nv_bfloat16* norm =
      layer + 1 < config_.num_layers ? weights_.layers[layer + 1].input_norm : weights_.final_norm;
  return ResidualNorm(down, norm, kSkipDown, pass.context);
}

absl::Status Forward::Head(const Pass& pass, const HeadOutput& head) const {
  const bool invariant = options_.step.batch_invariant;
  kernels::cuda::LmHeadParams p;
  p.linear = MakeLinear(pass.hidden, weights_.lm_head, head.logits ? buffers_.logits : nullptr, pass.rows,
                        config_.vocab_size, config_.hidden_size, buffers_, invariant);
  p.argmax = head.tokens;
  p.best = head.best;
  if ((options_.skip & kSkipHead) != 0) return absl::OkStatus();
  if (NormsAhead(pass)) {
    p.linear.x = buffers_.normed;
  } else {
    AS_RETURN_IF_ERROR(Normed(weights_.final_norm, &p.linear, pass.context));
  }
  return kernels::cuda::LmHead(p, pass.context);
}

bool Forward::RunsWhole(const StepShape& shape, bool observed) const {
  return whole_step_ != nullptr && !observed && options_.skip == 0 && shape.all_sample() &&
         shape.decodes <= options_.whole_step_rows && kernels::cuda::DecodeStep::SupportsRows(shape.decodes);
}

absl::Status Forward::LaunchWhole(const StepShape& shape, const StepArrays& arrays, const int32_t* sampled,
                                  const HeadOutput& head, const LaunchContext& context) const {
  kernels::cuda::DecodeStepParams p;
  p.rows = shape.decodes;
  p.ids = arrays.ids;
  p.from = sampled == nullptr ? nullptr : arrays.from;
  p.sampled = sampled;
  p.positions = arrays.positions;
  p.slots = arrays.slots;
  p.tables = arrays.decode_tables;
  p.table_stride = shape.decode_stride;
  p.tokens = head.tokens;
  p.best = head.best;
  p.logits = head.logits ? buffers_.logits : nullptr;
  return whole_step_->Launch(p, context.stream);
}

absl::Status Forward::Launch(const StepShape& shape, const StepArrays& arrays, int tiles, const int32_t* sampled,
                             const HeadOutput& head, const std::function<absl::Status(uint32_t)>& after_kv,
                             const LaunchContext& context) const {
  if (RunsWhole(shape, after_kv != nullptr)) return LaunchWhole(shape, arrays, sampled, head, context);
  const bool prefetches = Prefetches(shape);
  Pass pass{shape, arrays, tiles, context, shape.rows(), buffers_.attention, buffers_.hidden};
  kernels::cuda::EmbeddingParams e;
  e.table = weights_.embedding;
  e.ids = arrays.ids;
  e.sampled = sampled;
  e.from = sampled == nullptr ? nullptr : arrays.from;
  e.out = buffers_.hidden;
  e.rows = shape.rows();
  e.n = static_cast<int>(config_.hidden_size);
  AS_RETURN_IF_ERROR(kernels::cuda::Embedding(e, context));
  for (uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    AS_RETURN_IF_ERROR(Qkv(pass, layer));
    if (after_kv) AS_RETURN_IF_ERROR(after_kv(layer));
    const bool last = layer + 1 == config_.num_layers;
    if (last && shape.samples == 0) return absl::OkStatus();
    if (prefetches) AS_RETURN_IF_ERROR(Prefetch(pass, layer));
    AS_RETURN_IF_ERROR(Attend(pass, layer));
    if (last && !shape.all_sample()) {  // all KV is written: only the rows whose logits are wanted go on
      const int q = static_cast<int>(config_.q_size()), h = static_cast<int>(config_.hidden_size);
      AS_RETURN_IF_ERROR(kernels::cuda::GatherRows(buffers_.attention, arrays.sample_rows, shape.samples, q,
                                                   buffers_.last_attention, context));
      AS_RETURN_IF_ERROR(kernels::cuda::GatherRows(buffers_.hidden, arrays.sample_rows, shape.samples, h,
                                                   buffers_.last_hidden, context));
      pass.rows = shape.samples;
      pass.attention = buffers_.last_attention;
      pass.hidden = buffers_.last_hidden;
    }
    AS_RETURN_IF_ERROR(OutputAndMlp(pass, layer));
  }
  if (prefetches) {  // a captured step must end in one stream
    AS_RETURN_IF_ERROR(kernels::cuda::ToStatus(cudaEventRecord(fork_, side_), "joining a prefetch"));
    AS_RETURN_IF_ERROR(kernels::cuda::ToStatus(cudaStreamWaitEvent(context.stream, fork_, 0), "joining a prefetch"));
  }
  return Head(pass, head);
}

}  // namespace agentserve::model::cuda
