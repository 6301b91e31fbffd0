// Runs planned steps on one GPU.
//
// A step is packed into pinned memory, copied by one asynchronous copy, run as kernels of one stream (decode-only steps
// as a captured graph), and its tokens come back by one copy on another stream. Two steps may be in flight: the second
// takes the first one's tokens on the device.
//
// Invariants:
//   1. Steps alternate between two slots; a slot's host and device arrays are touched only by the step in flight that
//      holds it, so nothing is overwritten before Wait has returned it.
//   2. Everything on compute_ runs in launch order; activations are shared by all steps.
//   3. After a CUDA error the executor is broken: every call returns that error (INTERNAL).
#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "engine/batch.h"
#include "model/config.h"
#include "model/cuda/device.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/edits.h"
#include "model/cuda/forward.h"
#include "model/cuda/step.h"
#include "model/model.h"

namespace agentserve::model::cuda {

struct ExecutorOptions {
  ExecutorLimits limits;
  ForwardOptions forward;
  bool graphs = true;        // capture decode-only steps
  bool warm_up = true;       // load kernels and capture graphs in Create
  bool pdl = true;           // programmatic dependent launch
  bool keep_logits = false;  // logits of every step stay readable (no fused greedy choice)
};

class CudaExecutor final : public engine::Executor {
 public:
  // `config` and `weights` must outlive it. RESOURCE_EXHAUSTED if the device's memory does not suffice.
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(int device, const ModelConfig& config,
                                                              const DeviceWeights& weights, engine::KvPoolView pool,
                                                              const ExecutorOptions& options);
  // Device bytes that Create will take.
  static uint64_t DeviceBytes(const ModelConfig& config, const ExecutorOptions& options);
  ~CudaExecutor() override;

  absl::Status Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) override;
  int depth() const override { return kSlots; }
  absl::Status Launch(const engine::StepPlan& plan) override;
  absl::Status Wait(engine::StepOutput* out) override;
  // Layers of prompt chunks are told by Wait, on its thread, as the GPU writes them.
  void ObserveLaunches(engine::LayerObserver* observer) override;

  size_t in_flight() const { return in_flight_.size(); }
  // Logits of the last step's sampling rows as raw bf16, [row][vocab]; only with keep_logits and nothing in flight.
  absl::StatusOr<std::vector<uint16_t>> CopyLogits();
  // Milliseconds the GPU took for the last step that was waited for, from its first kernel to its last.
  float last_gpu_ms() const { return last_gpu_ms_; }

 private:
  static constexpr int kSlots = 2;

  // Buffers of one step in flight.
  struct Slot {
    PinnedBuffer host_arrays, host_edits, host_results;
    DeviceBuffer edits;
    std::byte* arrays = nullptr;   // device, of arrays_bytes_
    std::byte* results = nullptr;  // device, of ResultBytes
    // Block tables of decodes, kept from step to step: on the host, and their copy on the device.
    PinnedBuffer host_tables;
    int32_t* tables = nullptr;
    size_t table_rows = 0;  // in use at some time
    int table_columns = 0;
    bool tables_dirty = false;
    Event uploaded, computed, returned;
    cudaEvent_t began = nullptr, ended = nullptr;  // with timing
    ~Slot();
  };
  // Results of a step, at fixed places of a slot's result buffers.
  struct Results {
    int32_t* tokens = nullptr;                  // [sequences]
    __nv_bfloat16* best = nullptr;              // [sequences] only of fused greedy steps
    kernels::cuda::SampledRow* rows = nullptr;  // [sequences] only of sampled steps
    size_t greedy_bytes = 0;                    // tokens and best
    static Results Carve(size_t sequences, Arena* arena);
  };
  struct InFlight {
    int slot = 0;
    bool sampled = false;  // by the sampler; else fused greedy
    std::vector<engine::SeqId> seqs;
    std::vector<bool> logprobs;
    std::vector<int> top_logprobs;
    engine::StepPlan observed;  // empty if nobody is told; spans are good for their sizes only
  };
  struct GraphKey {
    int rows, max_units, cluster, slot;
    bool greedy;
    auto operator<=>(const GraphKey&) const = default;
  };
  struct Graph {
    int uses = 0;
    cudaGraphExec_t exec = nullptr;
  };

  CudaExecutor(int device, const ModelConfig& config, engine::KvPoolView pool, const ExecutorOptions& options);
  absl::Status Allocate(const DeviceWeights& weights);
  absl::Status Start(const engine::StepPlan& plan, engine::LayerObserver* observer);
  enum class WriteKv { kYes, kNo };
  absl::Status Upload(const engine::StepPlan& plan, const StepLayout& layout, const StepShape& shape, Slot& slot,
                      WriteKv write, PackedStep* packed);
  absl::Status UploadTables(Slot& slot);
  absl::Status WarmUp();
  absl::Status RunDry(const engine::StepPlan& plan, StepShape shape, const StepLayout& layout, int slot, bool greedy);
  static GraphKey KeyOf(const StepShape& shape, int slot, bool greedy);
  absl::Status UploadEdits(const engine::StepPlan& plan, const StepLayout& layout, const StepArrays& host, Slot& slot);
  absl::Status LaunchForward(const StepShape& shape, const PackedStep& packed, int slot, bool greedy,
                             const engine::StepPlan& plan, engine::LayerObserver* observer);
  absl::Status LaunchGraph(const StepShape& shape, int slot, bool greedy, bool* done);
  absl::Status ForwardOnce(const StepShape& shape, int tiles, int slot, bool greedy,
                           const std::function<absl::Status(uint32_t)>& after_kv);
  absl::Status LaunchSampler(const StepLayout& layout, const StepShape& shape, Slot& slot);
  absl::Status ReturnResults(size_t samples, bool sampled, Slot& slot);
  absl::Status TellWritten(const engine::StepPlan& plan, engine::LayerObserver* observer, uint32_t launched, bool wait);
  absl::Status Collect(const InFlight& step, engine::StepOutput* out);
  bool Observed(const StepShape& shape) const;
  StepShape PadShape(const StepLayout& layout, int longest, bool graph) const;
  absl::Status Broken(absl::Status status);
  kernels::cuda::LaunchContext context() const;

  const int device_;
  const ModelConfig& config_;
  const engine::KvPoolView pool_;
  const ExecutorOptions options_;
  const size_t sequences_;  // rows of per-sequence buffers: limits.max_sequences rounded up to a bucket
  size_t arrays_bytes_ = 0;
  int decode_stride_ = 0;
  DeviceBuffer memory_;
  Buffers buffers_;
  std::unique_ptr<Forward> forward_;
  Slot slots_[kSlots];
  Stream compute_, upload_, return_, side_;
  Event fork_;
  std::vector<Event> layer_written_;
  engine::LayerObserver* launch_observer_ = nullptr;
  std::vector<Event> launched_layers_[kSlots];  // per slot, as layer_written_; only if somebody observes launches
  uint32_t told_ = 0;                           // layers of the running step that the observer knows of
  std::map<GraphKey, Graph> graphs_;
  EditBuilder edit_builder_;
  std::vector<kernels::cuda::LogitEdit> edits_;
  std::deque<InFlight> in_flight_;
  PendingRows pending_;  // of the last step launched
  int next_slot_ = 0;
  size_t last_samples_ = 0;
  float last_gpu_ms_ = 0;
  absl::Status broken_;
};

}  // namespace agentserve::model::cuda
