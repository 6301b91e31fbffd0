#include "model/cuda/executor.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/failpoint.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "model/cuda/init_kernels.h"

namespace agentserve::model::cuda {
namespace {

using base::StrCat;
using engine::SeqSlice;
using kernels::cuda::LogitEdit;
using kernels::cuda::SampledRow;
using kernels::cuda::ToStatus;

bool PlainGreedy(const engine::StepPlan& plan, const StepLayout& layout) {
  return std::all_of(layout.samples.begin(), layout.samples.end(), [&](uint32_t i) {
    const SeqSlice& s = plan.slices[i];
    return s.sampling->greedy() && s.sampling->top_logprobs < 0 && !NeedsEdits(s);
  });
}

}  // namespace

CudaExecutor::GraphKey CudaExecutor::KeyOf(const StepShape& shape, int slot, bool greedy) {
  return {shape.decodes, shape.decode_limits.max_units, shape.decode_limits.cluster, slot, greedy};
}

absl::Status CudaExecutor::Broken(absl::Status status) {
  if (status.code() == absl::StatusCode::kInvalidArgument) {  // a kernel's own check: a fault of this program
    status = absl::InternalError(base::MessageOf(status));
  }
  if (status.code() == absl::StatusCode::kInternal && broken_.ok()) broken_ = status;
  return status;
}

kernels::cuda::LaunchContext CudaExecutor::context() const {
  return {compute_.get(), options_.pdl, options_.forward.step.num_sms};
}

// Exact sizes for a direct launch; for a graph the bucket's. `longest`: positions of the longest decode.
StepShape CudaExecutor::PadShape(const StepLayout& layout, int longest, bool graph) const {
  StepShape s = layout.shape;
  if (graph) {
    s.decodes = s.samples = BucketOf(s.decodes);
    s.table_stride = 0;
  }
  s.decode_stride = decode_stride_;
  if (s.chunks > 0) {
    s.max_tiles = kernels::cuda::MaxPrefillTiles(s.chunk_tokens, s.chunks, static_cast<int>(config_.head_dim));
  }
  if (s.decodes > 0) s.decode_limits = DecodeLimitsOf(s.decodes, ContextClass(longest), config_, options_.forward.step);
  return s;
}

absl::Status CudaExecutor::Upload(const engine::StepPlan& plan, const StepLayout& layout, const StepShape& shape,
                                  Slot& slot, WriteKv write, PackedStep* packed) {
  const size_t bytes = StepArrays::Bytes(shape);
  if (bytes > arrays_bytes_) {
    return absl::InvalidArgumentError(StrCat("a step whose tables take ", bytes, " bytes; room is for ", arrays_bytes_,
                                             ". Run fewer sequences or shorter ones together"));
  }
  Arena arena(slot.host_arrays.data());
  StepArrays host = StepArrays::Carve(shape, &arena);
  host.decode_tables = reinterpret_cast<int32_t*>(slot.host_tables.data());
  const absl::Status status = PackStep(plan, layout, shape, pending_, pool_.layout.block_tokens, config_.head_dim,
                                       options_.forward.step, host, packed);
  slot.tables_dirty = slot.tables_dirty || packed->tables_changed;  // also if what followed failed
  slot.table_columns = std::max(slot.table_columns, packed->table_columns);
  slot.table_rows = std::max(slot.table_rows, layout.decodes.size());
  AS_RETURN_IF_ERROR(status);
  if (write == WriteKv::kNo) std::fill_n(host.slots, shape.rows(), -1);
  if (slot.tables_dirty) AS_RETURN_IF_ERROR(UploadTables(slot));
  AS_RETURN_IF_ERROR(UploadEdits(plan, layout, host, slot));
  AS_RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(slot.arrays, slot.host_arrays.data(), bytes, cudaMemcpyHostToDevice, upload_.get()),
               "copying a step to the GPU"));
  AS_RETURN_IF_ERROR(ToStatus(cudaEventRecord(slot.uploaded.get(), upload_.get()), "copying a step to the GPU"));
  return ToStatus(cudaStreamWaitEvent(compute_.get(), slot.uploaded.get(), 0), "copying a step to the GPU");
}

// All rows and columns that were ever in use, so that the device's copy equals the host's.
absl::Status CudaExecutor::UploadTables(Slot& slot) {
  const size_t pitch = static_cast<size_t>(decode_stride_) * sizeof(int32_t);
  AS_RETURN_IF_ERROR(ToStatus(cudaMemcpy2DAsync(slot.tables, pitch, slot.host_tables.data(), pitch,
                                                static_cast<size_t>(slot.table_columns) * sizeof(int32_t),
                                                slot.table_rows, cudaMemcpyHostToDevice, upload_.get()),
                              "copying block tables to the GPU"));
  slot.tables_dirty = false;
  return absl::OkStatus();
}

absl::Status CudaExecutor::UploadEdits(const engine::StepPlan& plan, const StepLayout& layout, const StepArrays& host,
                                       Slot& slot) {
  edits_.clear();
  for (size_t i = 0; i < layout.samples.size(); ++i) {
    const SeqSlice& s = plan.slices[layout.samples[i]];
    host.settings[i].edits_begin = static_cast<int32_t>(edits_.size());
    if (NeedsEdits(s)) edit_builder_.Append(s, config_.eos_token_ids, &edits_);
    host.settings[i].edits_end = static_cast<int32_t>(edits_.size());
  }
  if (edits_.empty()) return absl::OkStatus();
  const size_t bytes = edits_.size() * sizeof(LogitEdit);
  if (bytes > slot.edits.size()) {  // nothing in flight uses this slot's
    const size_t room = std::bit_ceil(bytes);
    slot.edits = DeviceBuffer();
    AS_ASSIGN_OR_RETURN(slot.edits, DeviceBuffer::Allocate(room, "penalties and biases"));
    AS_ASSIGN_OR_RETURN(slot.host_edits, PinnedBuffer::Allocate(room, "penalties and biases"));
  }
  std::memcpy(slot.host_edits.data(), edits_.data(), bytes);
  return ToStatus(
      cudaMemcpyAsync(slot.edits.data(), slot.host_edits.data(), bytes, cudaMemcpyHostToDevice, upload_.get()),
      "copying a step to the GPU");
}

absl::Status CudaExecutor::ForwardOnce(const StepShape& shape, int tiles, int slot, bool greedy,
                                       const std::function<absl::Status(uint32_t)>& after_kv) {
  const auto at = static_cast<size_t>(slot), other = static_cast<size_t>(slot ^ 1);
  Arena arrays(slots_[at].arrays), results(slots_[at].results), before(slots_[other].results);
  const Results mine = Results::Carve(sequences_, &results), theirs = Results::Carve(sequences_, &before);
  HeadOutput head;
  head.logits = !greedy || options_.keep_logits;
  head.tokens = greedy ? mine.tokens : nullptr;
  head.best = greedy ? mine.best : nullptr;
  StepArrays on_device = StepArrays::Carve(shape, &arrays);
  on_device.decode_tables = slots_[at].tables;
  return forward_->Launch(shape, on_device, tiles, theirs.tokens, head, after_kv, context());
}

// Replays the graph of this shape; the first time a shape is met it is not captured yet (*done = false): the kernels
// then run directly, which also loads them, and the next time captures.
absl::Status CudaExecutor::LaunchGraph(const StepShape& shape, int slot, bool greedy, bool* done) {
  *done = false;
  Graph& graph = graphs_[KeyOf(shape, slot, greedy)];
  if (graph.uses++ == 0) return absl::OkStatus();
  if (graph.exec == nullptr) {
    AS_RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(compute_.get(), cudaStreamCaptureModeThreadLocal), "capture"));
    const absl::Status status = ForwardOnce(shape, 0, slot, greedy, nullptr);
    cudaGraph_t captured = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(compute_.get(), &captured);
    AS_RETURN_IF_ERROR(status);
    AS_RETURN_IF_ERROR(ToStatus(ended, "capturing a decode step"));
    const cudaError_t error = cudaGraphInstantiate(&graph.exec, captured, 0);
    cudaGraphDestroy(captured);
    AS_RETURN_IF_ERROR(ToStatus(error, "making the graph of a decode step"));
  }
  *done = true;
  return ToStatus(cudaGraphLaunch(graph.exec, compute_.get()), "launching a decode step");
}

absl::Status CudaExecutor::LaunchForward(const StepShape& shape, const PackedStep& packed, int slot, bool greedy,
                                         const engine::StepPlan& plan, engine::LayerObserver* observer) {
  const bool graph =
      options_.graphs && observer == nullptr && shape.all_sample() && BucketOf(shape.decodes) == shape.decodes;
  bool done = false;
  if (graph) AS_RETURN_IF_ERROR(LaunchGraph(shape, slot, greedy, &done));
  if (done) return absl::OkStatus();
  if (observer == nullptr && !Observed(shape)) return ForwardOnce(shape, packed.tiles, slot, greedy, nullptr);
  if (observer == nullptr) {
    return ForwardOnce(shape, packed.tiles, slot, greedy, [&](uint32_t layer) -> absl::Status {
      return ToStatus(cudaEventRecord(launched_layers_[slot][layer].get(), compute_.get()), "marking a layer");
    });
  }
  told_ = 0;
  return ForwardOnce(shape, packed.tiles, slot, greedy, [&](uint32_t layer) -> absl::Status {
    AS_RETURN_IF_ERROR(ToStatus(cudaEventRecord(layer_written_[layer].get(), compute_.get()), "marking a layer"));
    return TellWritten(plan, observer, layer + 1, /*wait=*/false);
  });
}

absl::Status CudaExecutor::LaunchSampler(const StepLayout& layout, const StepShape& shape, Slot& slot) {
  Arena arrays(slot.arrays), results(slot.results);
  const Results r = Results::Carve(sequences_, &results);
  kernels::cuda::SampleParams p;
  p.logits = buffers_.logits;
  p.rows = static_cast<int>(layout.samples.size());
  p.vocab = static_cast<int>(config_.vocab_size);
  p.settings = StepArrays::Carve(shape, &arrays).settings;
  p.edits = reinterpret_cast<const LogitEdit*>(slot.edits.data());
  p.out = r.rows;
  p.tokens = r.tokens;
  p.workspace = buffers_.sample;
  p.workspace_bytes = buffers_.sample_bytes;
  return kernels::cuda::Sample(p, context());
}

absl::Status CudaExecutor::Start(const engine::StepPlan& plan, engine::LayerObserver* observer) {
  AS_RETURN_IF_ERROR(broken_);
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(device_), "choosing the GPU"));
  AS_RETURN_IF_ERROR(ValidateStep(plan, config_, pool_, options_.limits));
  const StepLayout layout = LayOut(plan, pool_.layout.block_tokens, options_.forward.step);
  const bool greedy = PlainGreedy(plan, layout);
  const bool bucketed = layout.shape.all_sample() && layout.shape.decodes <= std::end(kBuckets)[-1];
  int longest = 0;
  for (const uint32_t i : layout.decodes) longest = std::max(longest, static_cast<int>(plan.slices[i].start) + 1);
  const StepShape shape = PadShape(layout, longest, bucketed && observer == nullptr && options_.graphs);
  const int slot_index = next_slot_;
  Slot& slot = slots_[slot_index];
  InFlight step;
  step.slot = slot_index;
  if (observer == nullptr && Observed(shape)) step.observed = plan;
  step.sampled = !greedy;
  for (const uint32_t i : layout.samples) {
    step.seqs.push_back(plan.slices[i].seq);
    step.logprobs.push_back(plan.slices[i].sampling->top_logprobs >= 0);
    step.top_logprobs.push_back(std::max(0, plan.slices[i].sampling->top_logprobs));
  }
  if (!plan.slices.empty()) {
    PackedStep packed;
    AS_RETURN_IF_ERROR(Upload(plan, layout, shape, slot, WriteKv::kYes, &packed));
    AS_RETURN_IF_ERROR(Broken(ToStatus(cudaEventRecord(slot.began, compute_.get()), "a step")));
    if (base::FailpointFires("cuda.fault")) AS_RETURN_IF_ERROR(Broken(WriteNowhere(context())));
    AS_RETURN_IF_ERROR(Broken(LaunchForward(shape, packed, slot_index, greedy, plan, observer)));
    if (!greedy) AS_RETURN_IF_ERROR(Broken(LaunchSampler(layout, shape, slot)));
    AS_RETURN_IF_ERROR(Broken(ToStatus(cudaEventRecord(slot.ended, compute_.get()), "a step")));
  }
  AS_RETURN_IF_ERROR(Broken(ReturnResults(layout.samples.size(), !greedy, slot)));
  if (observer != nullptr && !plan.slices.empty()) {
    AS_RETURN_IF_ERROR(Broken(TellWritten(plan, observer, config_.num_layers, /*wait=*/true)));
  }
  pending_.clear();
  for (size_t i = 0; i < step.seqs.size(); ++i) pending_[step.seqs[i].value] = static_cast<int32_t>(i);
  last_samples_ = step.seqs.size();
  in_flight_.push_back(std::move(step));
  next_slot_ ^= 1;
  return absl::OkStatus();
}

absl::Status CudaExecutor::Launch(const engine::StepPlan& plan) {
  if (in_flight_.size() >= kSlots) {
    return absl::FailedPreconditionError(StrCat(kSlots, " steps are in flight already; Wait first"));
  }
  if (in_flight_.empty()) pending_.clear();
  return Start(plan, nullptr);
}

absl::Status CudaExecutor::Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) {
  out->tokens.clear();
  if (!in_flight_.empty()) return absl::FailedPreconditionError("Run with steps in flight; Wait for them first");
  pending_.clear();
  if (plan.slices.empty()) return broken_;
  AS_RETURN_IF_ERROR(Start(plan, observer));
  return Wait(out);
}

}  // namespace agentserve::model::cuda
