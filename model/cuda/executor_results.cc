// The second half of a step: what comes back from the GPU, and who hears of its layers.
#include <bit>
#include <cmath>

#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/bf16/bf16.h"
#include "model/cuda/executor.h"

namespace agentserve::model::cuda {

using base::StrCat;
using kernels::cuda::SampledRow;
using kernels::cuda::ToStatus;

absl::Status CudaExecutor::ReturnResults(size_t samples, bool sampled, Slot& slot) {
  const auto check = [](cudaError_t error) { return ToStatus(error, "bringing a step's tokens back"); };
  AS_RETURN_IF_ERROR(check(cudaEventRecord(slot.computed.get(), compute_.get())));
  AS_RETURN_IF_ERROR(check(cudaStreamWaitEvent(return_.get(), slot.computed.get(), 0)));
  if (samples > 0) {
    Arena device(slot.results), host(slot.host_results.data());
    const Results from = Results::Carve(sequences_, &device), to = Results::Carve(sequences_, &host);
    AS_RETURN_IF_ERROR(check(
        sampled
            ? cudaMemcpyAsync(to.rows, from.rows, samples * sizeof(SampledRow), cudaMemcpyDeviceToHost, return_.get())
            : cudaMemcpyAsync(to.tokens, from.tokens, from.greedy_bytes, cudaMemcpyDeviceToHost, return_.get())));
  }
  return check(cudaEventRecord(slot.returned.get(), return_.get()));
}

// Tells the observer of layers that are written, in order, out of the first `launched`.
absl::Status CudaExecutor::TellWritten(const engine::StepPlan& plan, engine::LayerObserver* observer, uint32_t launched,
                                       bool wait) {
  for (; told_ < launched; ++told_) {
    const cudaEvent_t event = layer_written_[told_].get();
    const cudaError_t error = wait ? cudaEventSynchronize(event) : cudaEventQuery(event);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();
      return absl::OkStatus();
    }
    AS_RETURN_IF_ERROR(ToStatus(error, "running a step's layers"));
    observer->OnLayerWritten(plan, told_);
  }
  return absl::OkStatus();
}

absl::Status CudaExecutor::Wait(engine::StepOutput* out) {
  if (in_flight_.empty()) return absl::FailedPreconditionError("no step is in flight");
  const InFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  const absl::Status status = Collect(step, out);
  if (status.ok()) return status;
  out->tokens.clear();
  for (const InFlight& lost : in_flight_) {  // lost too; but nothing of it may run on
    if (broken_.ok())
      Broken(ToStatus(cudaEventSynchronize(slots_[lost.slot].returned.get()), "ending a step")).IgnoreError();
  }
  in_flight_.clear();
  pending_.clear();
  return status;
}

void CudaExecutor::ObserveLaunches(engine::LayerObserver* observer) {
  launch_observer_ = nullptr;
  for (std::vector<Event>& layers : launched_layers_) {
    while (layers.size() < config_.num_layers) {
      absl::StatusOr<Event> event = Event::Create();
      if (!event.ok()) return;  // then peers read whole chunks instead of layers
      layers.push_back(*std::move(event));
    }
  }
  launch_observer_ = observer;
}

// Whether the layers of a launched step are told: only prompts are read while they are written.
bool CudaExecutor::Observed(const StepShape& shape) const { return launch_observer_ != nullptr && shape.chunks > 0; }

absl::Status CudaExecutor::Collect(const InFlight& step, engine::StepOutput* out) {
  out->tokens.clear();
  AS_RETURN_IF_ERROR(broken_);
  AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(device_), "choosing the GPU"));
  if (!step.observed.slices.empty()) {
    for (uint32_t layer = 0; layer < config_.num_layers; ++layer) {
      const cudaEvent_t written = launched_layers_[step.slot][layer].get();
      AS_RETURN_IF_ERROR(Broken(ToStatus(cudaEventSynchronize(written), "running a step's layers")));
      launch_observer_->OnLayerWritten(step.observed, layer);
    }
  }
  Slot& slot = slots_[step.slot];
  AS_RETURN_IF_ERROR(Broken(ToStatus(cudaEventSynchronize(slot.returned.get()), "running a step on the GPU")));
  cudaEventElapsedTime(&last_gpu_ms_, slot.began, slot.ended);
  Arena host(slot.host_results.data());
  const Results results = Results::Carve(sequences_, &host);
  for (size_t i = 0; i < step.seqs.size(); ++i) {
    engine::SampledToken token;
    token.seq = step.seqs[i];
    const int32_t id = step.sampled ? results.rows[i].token : results.tokens[i];
    const bool finite = step.sampled || std::isfinite(kernels::Bf16ToFloat(std::bit_cast<uint16_t>(results.best[i])));
    if (id < 0 || !finite) {
      out->tokens.clear();
      return absl::DataLossError(StrCat("the model gave no finite logit for sequence ", token.seq.value,
                                        "; its weights are damaged or out of range"));
    }
    token.token = static_cast<engine::TokenId>(id);
    if (step.logprobs[i]) {
      const SampledRow& row = results.rows[i];
      token.has_logprobs = true;
      token.logprob = row.logprob;
      for (int t = 0; t < step.top_logprobs[i] && row.top_tokens[t] >= 0; ++t) {
        token.top.push_back({static_cast<engine::TokenId>(row.top_tokens[t]), row.top_logprobs[t]});
      }
    }
    out->tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint16_t>> CudaExecutor::CopyLogits() {
  if (!options_.keep_logits || !in_flight_.empty()) {
    return absl::FailedPreconditionError("logits are kept only with keep_logits, and readable with nothing in flight");
  }
  std::vector<uint16_t> out(last_samples_ * config_.vocab_size);
  AS_RETURN_IF_ERROR(
      ToStatus(cudaMemcpy(out.data(), buffers_.logits, out.size() * 2, cudaMemcpyDeviceToHost), "copying logits"));
  return out;
}

}  // namespace agentserve::model::cuda
