#include "model/cpu_executor.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/embedding/embedding.h"
#include "kernels/kv_write/kv_write.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"

namespace agentserve::model {
namespace {

using base::StrCat;
using engine::SeqSlice;
using kernels::GemmOutput;

constexpr size_t kRowsPerTask = 8;

void Grow(std::vector<float>* v, size_t n) {
  if (v->size() < n) v->resize(n);
}

}  // namespace

CpuExecutor::CpuExecutor(const ModelConfig& config, const Weights& weights, std::vector<float> rope_frequencies,
                         kernels::ThreadPool& threads, engine::KvPoolView pool)
    : config_(config),
      weights_(weights),
      rope_frequencies_(std::move(rope_frequencies)),
      threads_(threads),
      pool_(pool) {}

absl::Status CpuExecutor::Validate(const engine::StepPlan& plan) const {
  size_t rows = 0;
  for (size_t i = 0; i < plan.slices.size(); ++i) {
    const SeqSlice& s = plan.slices[i];
    const auto bad = [&](std::string_view what) {
      return absl::InvalidArgumentError(StrCat("slice ", i, " (sequence ", s.seq.value, "): ", what));
    };
    if (s.tokens.empty()) return bad("no tokens");
    const uint64_t end = uint64_t{s.start} + s.tokens.size();
    if (end > config_.max_position) {
      return bad(StrCat("ends at position ", end, ", beyond the context length ", config_.max_position));
    }
    for (const engine::TokenId id : s.tokens) {
      if (id >= config_.vocab_size) return bad(StrCat("token ", id, " is not below vocab_size ", config_.vocab_size));
    }
    const uint32_t blocks = pool_.layout.BlocksFor(end);
    if (s.blocks.size() < blocks) {
      return bad(StrCat("has ", s.blocks.size(), " blocks, but ", end, " positions need ", blocks));
    }
    for (uint32_t b = 0; b < blocks; ++b) {
      if (s.blocks[b].value >= pool_.num_blocks) {
        return bad(StrCat("block ", s.blocks[b].value, " is not in the pool of ", pool_.num_blocks));
      }
    }
    if (s.sample && (s.sampling == nullptr || s.history.size() != end || s.prompt_tokens > end)) {
      return bad(StrCat("samples, but its parameters are absent or its history of ", s.history.size(),
                        " tokens does not end with the slice at ", end));
    }
    rows += s.tokens.size();
  }
  if (rows > kMaxStepRows) {
    return absl::InvalidArgumentError(StrCat("a step of ", rows, " tokens; at most ", kMaxStepRows, " are allowed"));
  }
  return absl::OkStatus();
}

// Lays out the rows and embeds their tokens.
void CpuExecutor::Prepare(const engine::StepPlan& plan) {
  slices_.clear();
  ids_.clear();
  blocks_.clear();
  rows_ = 0;
  size_t blocks = 0;
  for (const SeqSlice& s : plan.slices) blocks += s.blocks.size();
  blocks_.reserve(blocks);  // pointers into it stay valid below
  const size_t half = config_.head_dim / 2;
  for (const SeqSlice& s : plan.slices) {
    slices_.push_back({rows_, s.tokens.size(), s.start, blocks_.data() + blocks_.size(), s.sample});
    for (const engine::BlockId b : s.blocks) blocks_.push_back(b.value);
    ids_.insert(ids_.end(), s.tokens.begin(), s.tokens.end());
    rows_ += s.tokens.size();
  }
  Grow(&cos_, rows_ * half);
  Grow(&sin_, rows_ * half);
  for (const Rows& s : slices_) {
    for (size_t i = 0; i < s.rows; ++i) {
      kernels::RopeAngles(rope_frequencies_, s.start + static_cast<uint32_t>(i), &cos_[(s.row + i) * half],
                          &sin_[(s.row + i) * half]);
    }
  }
  Grow(&hidden_, rows_ * config_.hidden_size);
  Grow(&normed_, rows_ * config_.hidden_size);
  Grow(&qkv_, rows_ * qkv_width());
  Grow(&gate_, rows_ * config_.intermediate_size);
  Grow(&up_, rows_ * config_.intermediate_size);
  kernels::Embedding({weights_.embedding, ids_.data(), hidden_.data(), rows_, config_.hidden_size});
}

template <typename Fn>
void CpuExecutor::ForRows(Fn&& fn) {
  const size_t tasks = (rows_ + kRowsPerTask - 1) / kRowsPerTask;
  threads_.Run(tasks, [&](size_t i, int) { fn(i * kRowsPerTask, std::min(kRowsPerTask, rows_ - i * kRowsPerTask)); });
}

void CpuExecutor::Norm(const uint16_t* weight) {
  const size_t h = config_.hidden_size;
  ForRows([&](size_t row, size_t rows) {
    kernels::RmsNorm({&hidden_[row * h], nullptr, weight, &normed_[row * h], rows, h, config_.rms_norm_eps});
  });
}

void CpuExecutor::ProjectQkv(const LayerWeights& w) {
  Norm(w.input_norm);
  const size_t width = qkv_width(), q = config_.q_size(), kv = config_.kv_size(), half = config_.head_dim / 2;
  const GemmOutput outputs[] = {{w.q, q, qkv_.data(), width, false},
                                {w.k, kv, qkv_.data() + q, width, false},
                                {w.v, kv, qkv_.data() + q + kv, width, false}};
  kernels::Gemm({normed_.data(), config_.hidden_size, rows_, config_.hidden_size, outputs}, threads_, gemm_);
  ForRows([&](size_t row, size_t rows) {  // q and k heads lie side by side
    kernels::Rope({&qkv_[row * width], width, rows, size_t{config_.num_heads} + config_.num_kv_heads, config_.head_dim,
                   &cos_[row * half], &sin_[row * half]});
  });
}

kernels::PagedKv CpuExecutor::LayerKv(uint32_t layer) const {
  const engine::KvLayout& l = pool_.layout;
  return {pool_.base,    l.BlockBytes(), l.Offset(layer, 0, 0), l.Offset(layer, 1, 0),
          l.HeadBytes(), l.block_tokens, l.num_kv_heads,        l.head_dim};
}

void CpuExecutor::WriteKv(uint32_t layer) {
  const float* k = qkv_.data() + config_.q_size();
  const float* v = k + config_.kv_size();
  for (const Rows& s : slices_) {
    const size_t at = s.row * qkv_width();
    kernels::KvWrite({LayerKv(layer), k + at, v + at, qkv_width(), s.rows, s.start, s.blocks});
  }
}

// After the last layer's KV is written only the rows whose logits are wanted go on.
void CpuExecutor::KeepSampledRows() {
  const size_t h = config_.hidden_size, width = qkv_width();
  std::vector<Rows> kept;
  for (const Rows& s : slices_) {
    if (!s.sample) continue;
    const size_t from = s.row + s.rows - 1, to = kept.size();
    if (from != to) {
      std::memcpy(&hidden_[to * h], &hidden_[from * h], h * sizeof(float));
      std::memcpy(&qkv_[to * width], &qkv_[from * width], width * sizeof(float));
    }
    kept.push_back({to, 1, s.start + static_cast<uint32_t>(s.rows) - 1, s.blocks, true});
  }
  slices_ = std::move(kept);
  rows_ = slices_.size();
}

void CpuExecutor::Attend(uint32_t layer, const LayerWeights& w) {
  const size_t width = qkv_width();
  attention_seqs_.clear();
  for (const Rows& s : slices_) {
    float* q = &qkv_[s.row * width];
    attention_seqs_.push_back({q, q, s.rows, s.start, s.blocks});
  }
  kernels::Attention({LayerKv(layer), config_.num_heads, width, attention_seqs_}, threads_, attention_);
  const GemmOutput output = {w.o, config_.hidden_size, hidden_.data(), config_.hidden_size, true};
  kernels::Gemm({qkv_.data(), width, rows_, config_.q_size(), {&output, 1}}, threads_, gemm_);
}

void CpuExecutor::Mlp(const LayerWeights& w) {
  Norm(w.post_norm);
  const size_t f = config_.intermediate_size, h = config_.hidden_size;
  const GemmOutput outputs[] = {{w.gate, f, gate_.data(), f, false}, {w.up, f, up_.data(), f, false}};
  kernels::Gemm({normed_.data(), h, rows_, h, outputs}, threads_, gemm_);
  ForRows([&](size_t row, size_t rows) { kernels::Swiglu({&gate_[row * f], &up_[row * f], rows * f}); });
  const GemmOutput output = {w.down, h, hidden_.data(), h, true};
  kernels::Gemm({gate_.data(), f, rows_, f, {&output, 1}}, threads_, gemm_);
}

void CpuExecutor::ComputeLogits() {
  Norm(weights_.final_norm);
  logits_.resize(rows_ * config_.vocab_size);
  const GemmOutput output = {weights_.lm_head, config_.vocab_size, logits_.data(), config_.vocab_size, false};
  kernels::Gemm({normed_.data(), config_.hidden_size, rows_, config_.hidden_size, {&output, 1}}, threads_, gemm_);
}

absl::Status CpuExecutor::SampleTokens(const engine::StepPlan& plan, engine::StepOutput* out) {
  size_t row = 0;
  for (const SeqSlice& s : plan.slices) {
    if (!s.sample) continue;
    SampleInput in;
    in.logits = std::span(logits_).subspan(row++ * config_.vocab_size, config_.vocab_size);
    in.params = s.sampling;
    in.history = s.history;
    in.prompt_tokens = s.prompt_tokens;
    in.end_tokens = config_.eos_token_ids;
    AS_ASSIGN_OR_RETURN(engine::SampledToken token, sampler_.Sample(in));
    token.seq = s.seq;
    out->tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status CpuExecutor::Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) {
  out->tokens.clear();
  AS_RETURN_IF_ERROR(Validate(plan));
  if (plan.slices.empty()) return absl::OkStatus();
  Prepare(plan);
  for (uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const LayerWeights& w = weights_.layers[layer];
    ProjectQkv(w);
    WriteKv(layer);
    if (observer != nullptr) observer->OnLayerWritten(plan, layer);
    if (layer + 1 == config_.num_layers) KeepSampledRows();
    if (rows_ == 0) return absl::OkStatus();
    Attend(layer, w);
    Mlp(w);
  }
  ComputeLogits();
  return SampleTokens(plan, out);
}

}  // namespace agentserve::model
