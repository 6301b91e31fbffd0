// One step's chain of kernels: embedding, layers, LM head. Only launches; everything it reads and writes is named here.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "engine/kv_layout.h"
#include "kernels/attention/paged_kv.h"
#include "kernels/cuda/launch.h"
#include "kernels/decode_step/decode_step_cuda.h"
#include "kernels/gemm/linear_cuda.h"
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
  std::byte* whole_step = nullptr;  // null if no step runs as one kernel
  size_t linear_bytes = 0, decode_bytes = 0, prefill_bytes = 0, sample_bytes = 0;

  // Rows are rounded up to whole buckets, so that padding has a place.
  static Buffers Carve(const ModelConfig& config, const ExecutorLimits& limits, const StepOptions& options,
                       Arena* arena);
};

// Padded batch sizes for which graphs are captured, ascending.
inline constexpr int kBuckets[] = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
// The smallest bucket for `rows`, or `rows` if it is beyond all.
int BucketOf(int rows);
// Contexts for which attention of decodes is laid out: 1024, 4096, and so on. The smallest at least `positions`.
int ContextClass(int positions);
// The class after `context`, 0 after the first that covers `max_position`.
int NextContextClass(int context, int max_position);

// Parts of a step that a measurement leaves out, to place time by differences (the results are then wrong).
enum SkipPart : uint32_t {
  kSkipNorm = 1,
  kSkipQkv = 2,
  kSkipAttention = 4,
  kSkipO = 8,
  kSkipGateUp = 16,
  kSkipDown = 32,
  kSkipHead = 64,
};

struct ForwardOptions {
  StepOptions step;
  // RMSNorm inside the following product for at most this many rows (never in the batch-invariant mode). 0: measured
  // slower inside at one row, 17 to 50 us of a step of the 1B shape, and equal at eight.
  int fuse_norm_rows = 0;
  // Bytes of the weights after attention that are brought to the L2 while attention, which reads little, runs; for
  // steps of few rows. 0: none.
  size_t prefetch_bytes = 0;
  // Steps of at most so many decodes and nothing else run as one kernel, where there is one for the model; never in the
  // batch-invariant mode. 0: none.
  int whole_step_rows = kernels::cuda::DecodeStep::kMaxRows;
  uint32_t skip = 0;  // SkipPart; of the chain of kernels
};

// Where the LM head's choice goes. `tokens` null: logits only.
struct HeadOutput {
  int32_t* tokens = nullptr;
  __nv_bfloat16* best = nullptr;
  bool logits = true;
};

class Forward {
 public:
  // `side` and `fork` are for prefetches: a stream that runs beside, and an event to fork and join it.
  Forward(const ModelConfig& config, const DeviceWeights& weights, const engine::KvPoolView& pool,
          const Buffers& buffers, const ForwardOptions& options, cudaStream_t side, cudaEvent_t fork)
      : config_(config),
        weights_(weights),
        pool_(pool),
        buffers_(buffers),
        options_(options),
        side_(side),
        fork_(fork) {}
  // From now on small steps run as this one kernel. May be null.
  void set_whole_step(std::unique_ptr<kernels::cuda::DecodeStep> step) { whole_step_ = std::move(step); }

  // Launches the step. `arrays` are device pointers; `tiles` of the prefill plan are in use. `sampled`: tokens of the
  // step before, may be null. `after_kv(layer)` is called once all of the layer's KV writes are in the stream; may be
  // empty.
  absl::Status Launch(const StepShape& shape, const StepArrays& arrays, int tiles, const int32_t* sampled,
                      const HeadOutput& head, const std::function<absl::Status(uint32_t)>& after_kv,
                      const kernels::cuda::LaunchContext& context) const;

 private:
  struct Pass;  // one step being launched
  bool RunsWhole(const StepShape& shape, bool observed) const;
  absl::Status LaunchWhole(const StepShape& shape, const StepArrays& arrays, const int32_t* sampled,
                           const HeadOutput& head, const kernels::cuda::LaunchContext& context) const;
  absl::Status Normed(const __nv_bfloat16* weight, kernels::cuda::LinearParams* p,
                      const kernels::cuda::LaunchContext& context) const;
  absl::Status Linear(const kernels::cuda::LinearParams& p, uint32_t part,
                      const kernels::cuda::LaunchContext& context) const;
  bool NormsAhead(const Pass& pass) const;
  absl::Status ResidualNorm(const kernels::cuda::LinearParams& p, const __nv_bfloat16* weight, uint32_t part,
                            const kernels::cuda::LaunchContext& context) const;
  bool Prefetches(const StepShape& shape) const;
  absl::Status Prefetch(const Pass& pass, uint32_t layer) const;
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
  const cudaStream_t side_;
  const cudaEvent_t fork_;
  std::unique_ptr<kernels::cuda::DecodeStep> whole_step_;
};

}  // namespace agentserve::model::cuda
