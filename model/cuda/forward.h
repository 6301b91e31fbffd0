// One step's chain of kernels: embedding, layers, LM head. Only launches; everything it reads and writes is named here.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "engine/kv_layout.h"
#include "kernels/attention/paged_kv.h"
#include "kernels/cuda/launch.h"
#include "model/config.h"
#include "model/cuda/device.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/step.h"
#include "model/model.h"

namespace agentserve::model::cuda {

// Activations and scratch memory of an executor; all steps of its stream share them.
struct Buffers {
  __nv_bfloat16* hidden = nullptr;          // [tokens][hidden] the residual stream
  __nv_bfloat16* normed = nullptr;          // [tokens][hidden]
  __nv_bfloat16* q = nullptr;               // [tokens][q_size]
  __nv_bfloat16* attention = nullptr;       // [tokens][q_size]
  __nv_bfloat16* ffn = nullptr;             // [tokens][intermediate]
  __nv_bfloat16* last_hidden = nullptr;     // [sequences][hidden] rows that sample
  __nv_bfloat16* last_attention = nullptr;  // [sequences][q_size]
  __nv_bfloat16* logits = nullptr;          // [sequences][vocab]
  std::byte* linear = nullptr;              // scratch of Linear and LmHead
  std::byte* decode = nullptr;
  std::byte* prefill = nullptr;
  std::byte* sample = nullptr;
  size_t linear_bytes = 0, decode_bytes = 0, prefill_bytes = 0, sample_bytes = 0;

  // Rows are rounded up to whole buckets, so that padding has a place.
  static Buffers Carve(const ModelConfig& config, const ExecutorLimits& limits, const StepOptions& options,
                       Arena* arena);
};

// Padded batch sizes for which graphs are captured, ascending.
inline constexpr int kBuckets[] = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
// The smallest bucket for `rows`, or `rows` if it is beyond all.
int BucketOf(int rows);

struct ForwardOptions {
  StepOptions step;
  // RMSNorm inside the following product where there are few rows.
  bool fuse_norm = true;
};

// Where the LM head's choice goes. `tokens` null: logits only.
struct HeadOutput {
  int32_t* tokens = nullptr;
  __nv_bfloat16* best = nullptr;
  bool logits = true;
};

class Forward {
 public:
  Forward(const ModelConfig& config, const DeviceWeights& weights, const engine::KvPoolView& pool,
          const Buffers& buffers, const ForwardOptions& options)
      : config_(config), weights_(weights), pool_(pool), buffers_(buffers), options_(options) {}

  // Launches the step. `arrays` are device pointers; `tiles` of the prefill plan are in use. `sampled`: tokens of the
  // step before, may be null. `after_kv(layer)` is called once all of the layer's KV writes are in the stream; may be
  // empty.
  absl::Status Launch(const StepShape& shape, const StepArrays& arrays, int tiles, const int32_t* sampled,
                      const HeadOutput& head, const std::function<absl::Status(uint32_t)>& after_kv,
                      const kernels::cuda::LaunchContext& context) const;

 private:
  struct Pass;  // one step being launched
  absl::Status Qkv(const Pass& pass, uint32_t layer) const;
  absl::Status Attend(const Pass& pass, uint32_t layer) const;
  absl::Status OutputAndMlp(const Pass& pass, uint32_t layer) const;
  absl::Status Head(const Pass& pass, const HeadOutput& head) const;
  kernels::PagedKv LayerKv(uint32_t layer) const;

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  const engine::KvPoolView pool_;
  const Buffers buffers_;
  const ForwardOptions options_;
};

}  // namespace agentserve::model::cuda
