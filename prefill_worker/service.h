// gRPC shell of the prefill worker: commands to events, effects to answers, progress words for pulling peers.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "agentserve/prefill/v1/prefill.grpc.pb.h"
#include "prefill_worker/core/core.h"
#include "worker/host_store.h"
#include "worker/run_loop.h"
#include "worker/tier_metrics.h"

namespace agentserve::prefill_worker {

namespace wire = agentserve::prefill::v1;

class Loop final : public worker::RunLoop<wire::RunRequest, wire::RunResponse, CopyEnded>,
                   private engine::LayerObserver {
 public:
  // `host` null: no host tier (core.tiers.host_slots is 0 then).
  Loop(const worker::RunLoopOptions& options, const Options& core, std::unique_ptr<worker::HostStore> host);

 private:
  void OnCommand(const Wire& from, const wire::RunRequest& request, base::TimeNs now) override;
  void OnInternal(CopyEnded event, base::TimeNs now) override;
  void OnDropped(engine::SeqId seq, base::TimeNs now) override { core_.Step(Cancel{seq}, now); }
  void OnTick(base::TimeNs now) override { core_.Step(Tick{}, now); }
  void OnStepDone(absl::Status status, engine::StepOutput output, std::vector<uint64_t> digests, base::TimeNs started,
                  base::TimeNs ended) override;
  const engine::PlannedStep* PlanStep(base::TimeNs now) override { return core_.PlanStep(now); }
  std::vector<engine::BlockChange> TakeBlockChanges() override { return core_.TakeBlockChanges(); }
  std::vector<engine::HostTier::Change> TakeHostChanges() override { return core_.TakeHostChanges(); }
  void ApplyEffects(base::TimeNs now) override;
  engine::LayerObserver* observer() override { return this; }
  base::TimeNs NextDeadline() const override { return core_.NextDeadline(); }
  bool Idle() const override { return core_.size() == 0; }
  engine::Load CoreLoad() const override { return core_.load(); }
  const engine::PlannerStats& PlannerStatsNow() const override { return core_.stats(); }
  const engine::BlockPool& Blocks() const override { return core_.pool(); }

  // On any thread of the executor, before the step is over.
  void OnLayerWritten(const engine::StepPlan& plan, uint32_t layer) override;

  void Apply(const Admitted& e);
  void Apply(HostCopy& e);
  void Apply(const ChunkDone& e);
  void Apply(const FirstToken& e);
  void Apply(const Failed& e);
  void Apply(const Closed& e);
  void FillHandle(engine::SeqId seq, const std::vector<OfferedBlock>& blocks, agentserve::common::v1::KvHandle* handle);

  // A sequence's progress slot, and the first row of the chunk it speaks of.
  struct Progress {
    kvstore::ProgressRef slot;
    uint32_t start = 0;
  };

  const uint32_t context_length_;
  Core core_;
  worker::TierMetrics tier_metrics_;
  std::mutex progress_mu_;
  std::map<engine::SeqId, Progress> progress_;  // guarded by progress_mu_
  std::unique_ptr<worker::HostStore> host_;     // last: its thread posts to what is above
};

// The service; Run hands each stream to the loop.
class Service final : public wire::PrefillService::CallbackService {
 public:
  explicit Service(Loop* loop) : loop_(loop) {}
  grpc::ServerBidiReactor<wire::RunRequest, wire::RunResponse>* Run(grpc::CallbackServerContext* context) override {
    return loop_->Accept(context);
  }

 private:
  Loop* const loop_;
};

}  // namespace agentserve::prefill_worker
