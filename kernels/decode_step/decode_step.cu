#include <algorithm>
#include <cmath>

#include "kernels/decode_step/decode_step_launch.h"
#include "kernels/decode_step/step_shared.cuh"
#include "kernels/tile/tensor_map.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSharedLimit = 227 * 1024;
constexpr size_t kStateBytes = 4096;
constexpr size_t kZeroBytes = kStateBytes + 2 * kStepCounters * kStepCounterBytes;

size_t Aligned(size_t bytes) { return (bytes + 127) / 128 * 128; }
int QkvRows(const DecodeStepModel& m) { return (m.q_heads + 2 * m.kv_heads) * m.head_dim; }
size_t HeadKvBytes(const DecodeStepModel& m) { return size_t{m.block_tokens} * static_cast<size_t>(m.head_dim) * 2; }
size_t LayerKvBytes(const DecodeStepModel& m) { return 2 * static_cast<size_t>(m.kv_heads) * HeadKvBytes(m); }
// Blocks that share a KV head: one warp merges their parts, a lane each.
int GroupBlocks(const DecodeStepModel& m, int num_sms) { return std::min(num_sms / m.kv_heads, 32); }
bool Is1B(const DecodeStepModel& m) { return m.hidden == 2048 && m.ffn == 8192 && m.head_dim == 64; }
bool Is3B(const DecodeStepModel& m) { return m.hidden == 3072 && m.ffn == 8192 && m.head_dim == 128; }

DecodeStepBuffers BuffersOf(const DecodeStepModel& m, int num_sms) {
  DecodeStepBuffers b = {};
  const auto take = [&](size_t bytes) {
    const size_t at = b.bytes;
    b.bytes += Aligned(bytes);
    return at;
  };
  const auto rows = [&](int values) {
    return take(size_t{2} * DecodeStep::kMaxRows * static_cast<size_t>(values) * 2);
  };
  b.qkv = rows(QkvRows(m));
  b.attention = rows(m.hidden);
  b.middle = rows(m.hidden);
  b.ffn = rows(m.ffn);
  b.out = rows(m.hidden);
  b.part_bytes = Aligned(static_cast<size_t>(m.q_heads / m.kv_heads * (m.head_dim + 2)) * 4);
  b.segments = GroupBlocks(m, num_sms) + DecodeStep::kMaxRows - 1;
  b.parts = take(size_t{2} * static_cast<size_t>(m.kv_heads * b.segments) * b.part_bytes);
  b.best = take(static_cast<size_t>(DecodeStep::kMaxRows * num_sms) * 8);
  return b;
}

// The pool as rows of head_dim, in boxes of 16 rows.
absl::Status EncodePool(const DecodeStepModel& m, CUtensorMap* map) {
  const uint64_t rows = m.num_blocks * (LayerKvBytes(m) * m.layers.size() / static_cast<size_t>(2 * m.head_dim));
  return EncodeMatrix(m.pool, rows, static_cast<uint64_t>(m.head_dim), 16, 64, map);
}

}  // namespace

StepShape StepShapeOf(int rows, int group, int head_dim) {
  const int shared = rows == 1 ? sizeof(StepShared<1>) : rows == 2 ? sizeof(StepShared<2>) : sizeof(StepShared<4>);
  StepShape s;
  for (s.stages = kStepMaxStages; s.stages > 2; --s.stages) {
    s.shared_bytes =
        1024 + StepLayout(s.stages, StepConfig<1, 0, 0, 0>::kSlotBytes * rows, group, head_dim, shared).bytes;
    if (s.shared_bytes <= kSharedLimit) break;
  }
  return s;
}

struct DecodeStep::Impl {
  DecodeStepModel model;
  int num_sms = 0;
  DecodeStepArgs args;
};

DecodeStep::DecodeStep(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecodeStep::~DecodeStep() = default;

bool DecodeStep::Supports(const DecodeStepModel& m, int num_sms) {
  if (!Is1B(m) && !Is3B(m)) return false;
  if (m.kv_heads < 1 || m.q_heads % m.kv_heads != 0 || m.q_heads / m.kv_heads > 8) return false;
  if (m.q_heads * m.head_dim != m.hidden || m.kv_heads > std::min(num_sms, kStepMaxHeads)) return false;
  if (m.vocab % kStepUnit != 0 || m.layers.empty() || m.layers.size() > kStepMaxLayers) return false;
  if (m.block_tokens == 0 || m.block_tokens % 16 != 0 || m.num_blocks == 0) return false;
  return (m.hidden / kStepUnit + num_sms - 1) / num_sms <= kStepMaxUnits && num_sms * sizeof(uint32_t) <= kStateBytes;
}

bool DecodeStep::SupportsRows(int rows) { return rows == 1 || rows == 2 || rows == 4; }

size_t DecodeStep::WorkspaceBytes(const DecodeStepModel& model, int num_sms) {
  return kZeroBytes + BuffersOf(model, num_sms).bytes;
}

absl::StatusOr<std::unique_ptr<DecodeStep>> DecodeStep::Create(const DecodeStepModel& m, void* workspace, int num_sms,
                                                               cudaStream_t stream) {
  if (!Supports(m, num_sms)) return absl::InvalidArgumentError("decode step: unsupported shape");
  auto impl = std::make_unique<Impl>();
  impl->model = m;
  impl->num_sms = num_sms;
  DecodeStepArgs& a = impl->args;
  a = {};
  for (size_t i = 0; i < m.layers.size(); ++i) a.layers[i].weights = m.layers[i];
  if (absl::Status s = EncodePool(m, &a.kv); !s.ok()) return s;
  a.at = BuffersOf(m, num_sms);
  a.state = static_cast<uint32_t*>(workspace);
  a.counters = static_cast<std::byte*>(workspace) + kStateBytes;
  a.buffers = static_cast<std::byte*>(workspace) + kZeroBytes;
  a.embedding = m.embedding;
  a.lm_head = m.lm_head;
  a.final_norm = m.final_norm;
  a.cos = m.cos;
  a.sin = m.sin;
  a.pool = m.pool;
  a.layer_bytes = LayerKvBytes(m);
  a.block_bytes = a.layer_bytes * m.layers.size();
  a.head_bytes = HeadKvBytes(m);
  a.block_tokens = m.block_tokens;
  a.rows_per_block = static_cast<uint32_t>(a.block_bytes / static_cast<size_t>(2 * m.head_dim));
  a.num_layers = static_cast<int>(m.layers.size());
  a.q_heads = m.q_heads;
  a.kv_heads = m.kv_heads;
  a.vocab = m.vocab;
  a.group_blocks = GroupBlocks(m, num_sms);
  a.norm_eps = m.norm_eps;
  a.scale_log2 = 1.44269504088896340736f / std::sqrt(static_cast<float>(m.head_dim));
  const cudaError_t error = cudaMemsetAsync(workspace, 0, kZeroBytes, stream);
  if (error != cudaSuccess) return ToStatus(error, "decode step");
  return std::unique_ptr<DecodeStep>(new DecodeStep(std::move(impl)));
}

absl::Status DecodeStep::Launch(const DecodeStepParams& params, cudaStream_t stream) const {
  if (!SupportsRows(params.rows)) return absl::InvalidArgumentError("decode step: unsupported number of rows");
  const DecodeStepModel& m = impl_->model;
  const StepShape shape = StepShapeOf(params.rows, m.q_heads / m.kv_heads, m.head_dim);
  DecodeStepArgs args = impl_->args;
  args.step = params;
  args.stages = shape.stages;
  return ToStatus((Is1B(m) ? LaunchStep1B : LaunchStep3B)(args, impl_->num_sms, shape.shared_bytes, stream),
                  "decode step");
}

}  // namespace agentserve::kernels::cuda
