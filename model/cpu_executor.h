// Runs planned steps on the CPU. See kernels/README.md for what is guaranteed about bits.
#pragma once

#include <memory>
#include <vector>

#include "engine/batch.h"
#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"
#include "kernels/parallel/thread_pool.h"
#include "model/config.h"
#include "model/sampler.h"
#include "model/weights.h"

namespace agentserve::model {

// Most tokens of one step, over all slices. Bounds the activation buffers: about 4 * (3 * hidden + 2 * intermediate)
// bytes a row, 1.4 GB for the 1B shape at this limit; planners use far smaller budgets.
inline constexpr size_t kMaxStepRows = 16384;

// Single-threaded by itself; executors of one model may run at the same time and share the thread pool. `config`,
// `weights` and `threads` must outlive it.
class CpuExecutor final : public engine::Executor {
 public:
  CpuExecutor(const ModelConfig& config, const Weights& weights, std::vector<float> rope_frequencies,
              kernels::ThreadPool& threads, engine::KvPoolView pool);

  // INVALID_ARGUMENT names the slice and what is wrong with it; nothing has run then. DATA_LOSS if the weights give no
  // finite logit. `observer` is called on this thread.
  absl::Status Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) override;

  // Logits of the sampling rows of the last Run, [row][vocab]; for tests and tools.
  const std::vector<float>& logits() const { return logits_; }

 private:
  // Rows [row, row + rows) of the step's buffers belong to a slice; `start` is the position of the first.
  struct Rows {
    size_t row = 0, rows = 0;
    uint32_t start = 0;
    const uint32_t* blocks = nullptr;
    bool sample = false;
  };

  absl::Status Validate(const engine::StepPlan& plan) const;
  void Prepare(const engine::StepPlan& plan);
  void ProjectQkv(const LayerWeights& w);
  void WriteKv(uint32_t layer);
  void KeepSampledRows();
  void Attend(uint32_t layer, const LayerWeights& w);
  void Mlp(const LayerWeights& w);
  void ComputeLogits();
  absl::Status SampleTokens(const engine::StepPlan& plan, engine::StepOutput* out);
  kernels::PagedKv LayerKv(uint32_t layer) const;
  // Calls fn(first row, rows) over pieces of all rows, on several threads when there are many.
  template <typename Fn>
  void ForRows(Fn&& fn);
  void Norm(const uint16_t* weight);
  size_t qkv_width() const { return config_.q_size() + 2 * size_t{config_.kv_size()}; }

  const ModelConfig& config_;
  const Weights& weights_;
  const std::vector<float> rope_frequencies_;
  kernels::ThreadPool& threads_;
  const engine::KvPoolView pool_;
  Sampler sampler_;

  // Of the running step.
  std::vector<Rows> slices_;
  size_t rows_ = 0;
  std::vector<uint32_t> ids_, blocks_;
  std::vector<float> cos_, sin_;  // [rows][head_dim / 2]
  std::vector<float> hidden_;     // [rows][hidden], the residual stream
  std::vector<float> normed_;     // [rows][hidden]
  std::vector<float> qkv_;        // [rows][q | k | v]; attention's result replaces q
  std::vector<float> gate_, up_;  // [rows][intermediate]
  std::vector<float> logits_;     // [sampling rows][vocab]
  kernels::GemmWorkspace gemm_;
  kernels::AttentionWorkspace attention_;
  std::vector<kernels::AttentionSeq> attention_seqs_;
};

}  // namespace agentserve::model
