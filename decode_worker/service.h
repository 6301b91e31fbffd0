// gRPC shell of the decode worker: commands to events, effects to answers, pulls to pullers.
#pragma once

#include <map>
#include <memory>
#include <variant>

#include "agentserve/decode/v1/decode.grpc.pb.h"
#include "decode_worker/core/core.h"
#include "decode_worker/puller.h"
#include "worker/host_store.h"
#include "worker/run_loop.h"
#include "worker/tier_metrics.h"

namespace agentserve::decode_worker {

namespace wire = agentserve::decode::v1;

using InternalEvent = std::variant<PullEnded, PeerStatus, CopyEnded>;

// Figures of pulls.
class PullMetrics {
 public:
  explicit PullMetrics(base::Metrics* metrics);
  void OnReady(const KvReady& ready);
  void OnPeer(const PeerStatus& status);
  void Update(const CoreStats& stats);

 private:
  base::Metrics* const metrics_;
  std::map<std::string, prometheus::Counter*> bytes_;
  std::map<std::string, prometheus::Gauge*> rate_;
  prometheus::Histogram& exposed_seconds_;
  prometheus::Counter& ok_;
  prometheus::Counter& invalid_;
  prometheus::Counter& failed_;
  prometheus::Counter& validation_failures_;
  prometheus::Counter& recomputes_;
  CoreStats last_;
};

class Loop final : public worker::RunLoop<wire::RunRequest, wire::RunResponse, InternalEvent> {
 public:
  // `host` null: no host tier (core.tiers.host_slots is 0 then).
  Loop(const worker::RunLoopOptions& options, const Options& core, const kvstore::PeerOptions& peers,
       std::unique_ptr<worker::HostStore> host);

 private:
  void OnCommand(const Wire& from, const wire::RunRequest& request, base::TimeNs now) override;
  void OnInternal(InternalEvent event, base::TimeNs now) override;
  void OnDropped(engine::SeqId seq, base::TimeNs now) override { core_.Step(Cancel{seq}, now); }
  void OnTick(base::TimeNs now) override { core_.Step(Tick{}, now); }
  void OnStepDone(absl::Status status, engine::StepOutput output, std::vector<uint64_t> digests, base::TimeNs started,
                  base::TimeNs ended) override;
  const engine::PlannedStep* PlanStep(base::TimeNs now) override { return core_.PlanStep(now); }
  std::vector<engine::BlockChange> TakeBlockChanges() override { return core_.TakeBlockChanges(); }
  std::vector<engine::HostTier::Change> TakeHostChanges() override { return core_.TakeHostChanges(); }
  void ApplyEffects(base::TimeNs now) override;
  base::TimeNs NextDeadline() const override { return core_.NextDeadline(); }
  bool Idle() const override { return core_.size() == 0 && core_.pulling() == 0; }
  engine::Load CoreLoad() const override { return core_.load(); }
  const engine::PlannerStats& PlannerStatsNow() const override { return core_.stats(); }
  const engine::BlockPool& Blocks() const override { return core_.pool(); }

  void Apply(const Reserved& e);
  void Apply(StartPull& e) { pullers_.Start(std::move(e)); }
  void Apply(FinishPull& e) { pullers_.Finish(std::move(e)); }
  void Apply(const AbortPull& e) { pullers_.Abort(e.seq); }
  void Apply(HostCopy& e);
  void Apply(const KvReady& e);
  void Apply(const StepTokens& e);
  void Apply(const Finished& e);
  void Apply(const Failed& e);
  void Apply(const Closed& e) { table_.Erase(e.seq); }
  void AnswerPeer(const PeerStatus& status);

  const uint32_t context_length_;
  Core core_;
  PullMetrics pull_metrics_;
  worker::TierMetrics tier_metrics_;
  double last_step_ms_ = 0;
  // Who asked to connect a peer, by worker id; asked again, the newest one.
  std::map<std::string, worker::SessionId> peer_askers_;
  Pullers pullers_;  // last, with the next one: their threads post to what is above
  std::unique_ptr<worker::HostStore> host_;
};

// The service; Run hands each stream to the loop.
class Service final : public wire::DecodeService::CallbackService {
 public:
  explicit Service(Loop* loop) : loop_(loop) {}
  grpc::ServerBidiReactor<wire::RunRequest, wire::RunResponse>* Run(grpc::CallbackServerContext* context) override {
    return loop_->Accept(context);
  }

 private:
  Loop* const loop_;
};

}  // namespace agentserve::decode_worker
