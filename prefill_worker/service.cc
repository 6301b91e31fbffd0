#include "prefill_worker/service.h"

#include <utility>

#include "base/check.h"

namespace agentserve::prefill_worker {

using base::Field;
using engine::SeqId;

Loop::Loop(const worker::RunLoopOptions& options, const Options& core, std::unique_ptr<worker::HostStore> host)
    : RunLoop(options),
      context_length_(core.planner.context_length),
      core_(core),
      tier_metrics_(options.metrics, options.pool->layout().BlockBytes()),
      host_(std::move(host)) {
  if (host_) host_->Start([this](CopyEnded ended) { PostInternal(ended); });
}

void Loop::OnInternal(CopyEnded event, base::TimeNs now) {
  core_.Step(event, now);
  tier_metrics_.Update(core_.tiers(), core_.pool());
}

void Loop::OnCommand(const Wire& from, const wire::RunRequest& request, base::TimeNs now) {
  if (request.has_start()) {
    const SeqId id = Mint(from, now);
    prefill_worker::Start start;
    start.spec = worker::SpecFromWire(request.start(), id, context_length_);
    start.budget_ns = worker::BudgetNs(request.start().budget_ms());
    AS_LOG(kDebug, "prefill.start") << Field("request", request.start().request_id()) << Field("seq", from.seq)
                                    << Field("tokens", request.start().tokens_size());
    core_.Step(start, now);
    return;
  }
  const std::optional<SeqId> id = table_.Find(from);
  if (!id) return;  // over, or another attempt
  if (request.has_reorder()) core_.Step(Reorder{*id, request.reorder().rank()}, now);
  if (request.has_cancel()) core_.Step(Cancel{*id}, now);
  if (request.has_release_kv()) core_.Step(ReleaseKv{*id}, now);
}

void Loop::OnStepDone(absl::Status status, engine::StepOutput output, std::vector<uint64_t> digests, base::TimeNs,
                      base::TimeNs ended) {
  core_.Step(StepDone{std::move(status), std::move(output), std::move(digests)}, ended);
  core_.set_prefill_rate(step_metrics_.prefill_tokens_per_s());
  tier_metrics_.Update(core_.tiers(), core_.pool());
}

void Loop::ApplyEffects(base::TimeNs) {
  for (Effect& effect : core_.TakeEffects()) std::visit([&](auto& e) { Apply(e); }, effect);
}

void Loop::FillHandle(SeqId seq, const std::vector<OfferedBlock>& blocks, agentserve::common::v1::KvHandle* handle) {
  handle->set_worker_id(options_.worker_id);
  handle->set_incarnation(options_.incarnation);
  const std::lock_guard lock(progress_mu_);
  if (const auto it = progress_.find(seq); it != progress_.end()) {
    handle->set_progress_slot(it->second.slot.slot);
    handle->set_progress_tag(it->second.slot.tag);
  }
  for (const OfferedBlock& b : blocks) {
    agentserve::common::v1::KvBlockRef* ref = handle->add_blocks();
    ref->set_index(b.block.value);
    ref->set_epoch(b.epoch.value);
    ref->set_tokens(b.tokens);
    ref->set_digest(b.digest);
  }
}

void Loop::Apply(HostCopy& e) {
  AS_CHECK(host_ != nullptr) << "the core copies to a host tier that does not exist";
  host_->Post(std::move(e));
}

void Loop::Apply(const Admitted& e) {
  // The core admits no more than there are slots.
  absl::StatusOr<kvstore::ProgressRef> slot = options_.pool->AcquireProgress();
  AS_CHECK(slot.ok()) << slot.status();
  {
    const std::lock_guard lock(progress_mu_);
    progress_[e.seq] = {*slot, e.cached_tokens};
    options_.pool->StoreProgress(*slot, {e.cached_tokens, e.cached_tokens, 0});
  }
  wire::RunResponse response;
  response.mutable_admitted()->set_cached_tokens(e.cached_tokens);
  FillHandle(e.seq, e.blocks, response.mutable_admitted()->mutable_kv());
  SendTo(e.seq, std::move(response));
}

void Loop::OnLayerWritten(const engine::StepPlan& plan, uint32_t layer) {
  {
    const std::lock_guard lock(progress_mu_);
    for (const engine::SeqSlice& slice : plan.slices) {
      const auto it = progress_.find(slice.seq);
      if (it == progress_.end()) continue;
      const uint32_t end = slice.start + static_cast<uint32_t>(slice.tokens.size());
      it->second.start = slice.start;
      options_.pool->StoreProgress(it->second.slot, {slice.start, end, layer + 1});
    }
  }
  DigestLayer(plan.number, layer);  // after the words: readers copy meanwhile
}

void Loop::Apply(const ChunkDone& e) {
  base::FailpointExit("pf.exit_at_chunk");
  {
    const std::lock_guard lock(progress_mu_);
    const auto it = progress_.find(e.seq);
    // The next chunk may have reported layers already, which says more.
    if (it != progress_.end() && it->second.start < e.computed) {
      it->second.start = e.computed;
      options_.pool->StoreProgress(it->second.slot, {e.computed, e.computed, 0});
    }
  }
  wire::RunResponse response;
  response.mutable_chunk_done()->set_computed_tokens(e.computed);
  SendTo(e.seq, std::move(response));
}

void Loop::Apply(const FirstToken& e) {
  step_metrics_.OnPrefill(e.wait_ns, e.prefill_ns);
  wire::RunResponse response;
  wire::FirstToken* first = response.mutable_first_token();
  first->set_token(e.token.token);
  if (e.token.has_logprobs) worker::ToWire(e.token, first->mutable_logprobs());
  FillHandle(e.seq, e.blocks, first->mutable_kv());
  first->set_wait_ms(base::ToMs(e.wait_ns));
  first->set_prefill_ms(base::ToMs(e.prefill_ns));
  SendTo(e.seq, std::move(response));
}

void Loop::Apply(const Failed& e) {
  step_metrics_.OnFailure(e.failure.reason);
  AS_LOG(kWarn, "prefill.failed") << Field("reason", e.failure.reason) << Field("message", e.failure.message);
  wire::RunResponse response;
  response.mutable_failed()->set_code(static_cast<uint32_t>(e.failure.code));
  response.mutable_failed()->set_reason(e.failure.reason);
  response.mutable_failed()->set_message(e.failure.message);
  SendTo(e.seq, std::move(response));
}

void Loop::Apply(const Closed& e) {
  {
    const std::lock_guard lock(progress_mu_);
    if (const auto it = progress_.find(e.seq); it != progress_.end()) {
      options_.pool->ReleaseProgress(it->second.slot);
      progress_.erase(it);
    }
  }
  table_.Erase(e.seq);
}

}  // namespace agentserve::prefill_worker
