// Making an executor: memory, warm-up, captured graphs.
#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "model/cuda/executor.h"
#include "model/cuda/whole_step.h"

namespace agentserve::model::cuda {
namespace {

using kernels::cuda::SampledRow;
using kernels::cuda::ToStatus;

int RoundUp(int n, int to) { return (n + to - 1) / to * to; }

// Blocks of one sequence at full context.
int MostBlocks(const ModelConfig& c, uint32_t block_tokens) {
  return RoundUp(static_cast<int>((c.max_position + block_tokens - 1) / block_tokens), 4);
}

// Bounds each part of a step's arrays by itself: the chunks of a step share its tokens and sequences with the decodes.
size_t ArraysBytes(const ModelConfig& c, const ExecutorOptions& o, uint32_t block_tokens, size_t sequences) {
  StepShape s;
  s.decodes = s.samples = s.chunks = static_cast<int>(sequences);
  s.chunk_tokens = static_cast<int>(o.limits.max_step_tokens);
  s.max_tiles = kernels::cuda::MaxPrefillTiles(s.chunk_tokens, s.chunks, static_cast<int>(c.head_dim));
  s.table_stride = MostBlocks(c, block_tokens);
  for (int context = ContextClass(1); context > 0;
       context = NextContextClass(context, static_cast<int>(c.max_position))) {
    const auto limits = DecodeLimitsOf(s.decodes, context, c, o.forward.step);
    if (limits.max_units > s.decode_limits.max_units) s.decode_limits = limits;
  }
  return StepArrays::Bytes(s);
}

}  // namespace

CudaExecutor::Slot::~Slot() {
  if (began != nullptr) cudaEventDestroy(began);
  if (ended != nullptr) cudaEventDestroy(ended);
}

CudaExecutor::Results CudaExecutor::Results::Carve(size_t sequences, Arena* arena) {
  Results r;
  r.tokens = arena->Take<int32_t>(sequences);
  r.best = arena->Take<__nv_bfloat16>(sequences);
  r.greedy_bytes = arena->used();
  r.rows = arena->Take<SampledRow>(sequences);
  return r;
}

CudaExecutor::CudaExecutor(int device, const ModelConfig& config, engine::KvPoolView pool,
                           const ExecutorOptions& options)
    : device_(device),
      config_(config),
      pool_(pool),
      options_(options),
      sequences_(static_cast<size_t>(BucketOf(static_cast<int>(options.limits.max_sequences)))),
      edit_builder_(config.vocab_size, sequences_) {}

CudaExecutor::~CudaExecutor() {
  cudaSetDevice(device_);
  cudaDeviceSynchronize();
  for (auto& [key, graph] : graphs_) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
  }
}

uint64_t CudaExecutor::DeviceBytes(const ModelConfig& config, const ExecutorOptions& options) {
  // Graphs take about 64 KiB of device memory each; a few dozen are usual.
  constexpr uint64_t kGraphs = uint64_t{64} << 20;
  constexpr uint32_t kSmallestBlock = 16;
  const auto sequences = static_cast<size_t>(BucketOf(static_cast<int>(options.limits.max_sequences)));
  Arena arena(nullptr);
  Buffers::Carve(config, options.limits, options.forward.step, &arena);
  for (int i = 0; i < kSlots; ++i) {
    arena.Take<std::byte>(ArraysBytes(config, options, kSmallestBlock, sequences));
    arena.Take<int32_t>(sequences * static_cast<size_t>(MostBlocks(config, kSmallestBlock)));
    Arena results(nullptr);
    Results::Carve(sequences, &results);
    arena.Take<std::byte>(results.used());
  }
  return arena.used() + kGraphs;
}

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::Create(int device, const ModelConfig& config,
                                                                   const DeviceWeights& weights,
                                                                   engine::KvPoolView pool,
                                                                   const ExecutorOptions& options) {
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "choosing the GPU"));
  std::unique_ptr<CudaExecutor> executor(new CudaExecutor(device, config, pool, options));
  AS_RETURN_IF_ERROR(executor->Allocate(weights));
  return executor;
}

absl::Status CudaExecutor::Allocate(const DeviceWeights& weights) {
  arrays_bytes_ = ArraysBytes(config_, options_, pool_.layout.block_tokens, sequences_);
  decode_stride_ = MostBlocks(config_, pool_.layout.block_tokens);
  const size_t table_entries = sequences_ * static_cast<size_t>(decode_stride_);
  Arena results(nullptr);
  Results::Carve(sequences_, &results);
  const auto carve = [&](Arena* arena) {
    buffers_ = Buffers::Carve(config_, options_.limits, options_.forward.step, arena);
    for (Slot& slot : slots_) {
      slot.arrays = arena->Take<std::byte>(arrays_bytes_);
      slot.tables = arena->Take<int32_t>(table_entries);
      slot.results = arena->Take<std::byte>(results.used());
    }
  };
  Arena count(nullptr);
  carve(&count);
  AS_ASSIGN_OR_RETURN(memory_, DeviceBuffer::Allocate(count.used(), "the executor's activations"));
  // Padding rows compute on whatever is there: zeros keep them finite. Workspaces must begin as zeros too.
  AS_RETURN_IF_ERROR(ToStatus(cudaMemset(memory_.data(), 0, memory_.size()), "clearing activations"));
  Arena arena(memory_.data());
  carve(&arena);
  for (Slot& slot : slots_) {
    AS_ASSIGN_OR_RETURN(slot.host_arrays, PinnedBuffer::Allocate(arrays_bytes_, "a step's arrays"));
    AS_ASSIGN_OR_RETURN(slot.host_tables, PinnedBuffer::Allocate(table_entries * sizeof(int32_t), "block tables"));
    std::memset(slot.host_arrays.data(), 0, slot.host_arrays.size());
    std::memset(slot.host_tables.data(), 0, slot.host_tables.size());  // as on the device
    AS_ASSIGN_OR_RETURN(slot.host_results, PinnedBuffer::Allocate(results.used(), "a step's results"));
    AS_ASSIGN_OR_RETURN(slot.uploaded, Event::Create());
    AS_ASSIGN_OR_RETURN(slot.computed, Event::Create());
    AS_ASSIGN_OR_RETURN(slot.returned, Event::Create());
    AS_RETURN_IF_ERROR(ToStatus(cudaEventCreate(&slot.began), "creating an event"));
    AS_RETURN_IF_ERROR(ToStatus(cudaEventCreate(&slot.ended), "creating an event"));
  }
  AS_ASSIGN_OR_RETURN(compute_, Stream::Create());
  AS_ASSIGN_OR_RETURN(upload_, Stream::Create());
  AS_ASSIGN_OR_RETURN(side_, Stream::Create());
  AS_ASSIGN_OR_RETURN(fork_, Event::Create());
  AS_ASSIGN_OR_RETURN(return_, Stream::Create());
  for (uint32_t i = 0; i < config_.num_layers; ++i) {
    AS_ASSIGN_OR_RETURN(layer_written_.emplace_back(), Event::Create());
  }
  forward_ = std::make_unique<Forward>(config_, weights, pool_, buffers_, options_.forward, side_.get(), fork_.get());
  if (buffers_.whole_step != nullptr && options_.forward.whole_step_rows > 0) {
    AS_ASSIGN_OR_RETURN(auto step, MakeWholeStep(config_, weights, pool_, buffers_.whole_step,
                                                 options_.forward.step.num_sms, compute_.get()));
    forward_->set_whole_step(std::move(step));
  }
  AS_RETURN_IF_ERROR(ToStatus(cudaDeviceSynchronize(), "clearing activations"));
  return options_.warm_up && pool_.num_blocks > 0 ? WarmUp() : absl::OkStatus();
}

// One launch of what is not a step: nothing is sampled for anyone and no KV is written.
absl::Status CudaExecutor::RunDry(const engine::StepPlan& plan, StepShape shape, const StepLayout& layout, int slot,
                                  bool greedy) {
  PackedStep packed;
  Slot& to = slots_[slot];
  AS_RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(compute_.get()), "warming up"));  // the slot's arrays are free
  AS_RETURN_IF_ERROR(Upload(plan, layout, shape, to, WriteKv::kNo, &packed));
  AS_RETURN_IF_ERROR(LaunchForward(shape, packed, slot, greedy, plan, nullptr));
  return greedy || layout.samples.empty() ? absl::OkStatus() : LaunchSampler(layout, shape, to);
}

// Loads the kernels and captures the graphs of decode steps, so that no request pays for it.
absl::Status CudaExecutor::WarmUp() {
  const base::MonotonicClock clock;
  const base::TimeNs began = clock.Now();
  engine::SamplingParams sampling;
  sampling.temperature = 0.5f;
  sampling.top_p = 0.9f;
  const uint32_t most = std::min({options_.limits.max_step_tokens, config_.max_position, 512u});
  const std::vector<engine::TokenId> tokens(most, 0);
  const std::vector<engine::BlockId> blocks(pool_.layout.BlocksFor(most), engine::BlockId(0));
  for (const uint32_t n : {most, std::min(most, 64u)}) {
    engine::SeqSlice slice;
    slice.tokens = slice.history = std::span(tokens).first(n);
    slice.blocks = blocks;
    slice.sample = true;
    slice.sampling = &sampling;
    const engine::StepPlan plan{{slice}};
    const StepLayout layout = LayOut(plan, pool_.layout.block_tokens, options_.forward.step);
    AS_RETURN_IF_ERROR(RunDry(plan, PadShape(layout, 0, false), layout, 0, false));
  }
  // Longer contexts are captured when they are first met.
  constexpr int kWarmContext = 16384;
  for (const int bucket : kBuckets) {
    if (!options_.graphs || static_cast<size_t>(bucket) > sequences_) break;
    StepLayout layout;
    layout.shape.decodes = layout.shape.samples = bucket;
    const int longest = std::min(kWarmContext, static_cast<int>(config_.max_position));
    for (int context = ContextClass(1); context > 0; context = NextContextClass(context, longest)) {
      const StepShape shape = PadShape(layout, context, true);
      for (const bool greedy : {false, true}) {
        for (const int turn : {0, 1, 2}) {  // slot 0 directly, then captured; slot 1 captured
          if (turn == 1) graphs_[KeyOf(shape, 1, greedy)].uses = 1;
          AS_RETURN_IF_ERROR(RunDry({}, shape, {}, turn == 1 ? 1 : 0, greedy));
        }
      }
    }
  }
  AS_RETURN_IF_ERROR(ToStatus(cudaDeviceSynchronize(), "warming up"));
  AS_LOG(kInfo, "executor.ready") << base::Field("warm_up_ms", base::ToMs(clock.Now() - began))
                                  << base::Field("graphs", graphs_.size());
  return absl::OkStatus();
}

}  // namespace agentserve::model::cuda
