// The step loop of a worker: one thread that owns the core, the executor and the table of sessions. gRPC's threads only
// post to its mailbox. Each turn: take what was posted, step the core, plan, run the step, answer.
//
// If the executor takes two steps at a time, each turn plans and launches what still fits, and then waits for the
// oldest step: the next one is planned, and the last one answered, while the device computes. A command waits for the
// end of one step at most, either way.
//
// Prefill and decode workers derive from it; they add what their commands and effects mean.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/flags.h"
#include "base/log.h"
#include "engine/batch.h"
#include "engine/block_pool.h"
#include "engine/host_tier.h"
#include "engine/planner.h"
#include "engine/worker_limits.h"
#include "kvstore/transport/kv_pool.h"
#include "worker/convert.h"
#include "worker/mailbox.h"
#include "worker/run_stream.h"
#include "worker/session_table.h"
#include "worker/step_metrics.h"

namespace agentserve::worker {

// Hears of every block that became readable or is about to be overwritten. Must not block.
class BlockListener {
 public:
  virtual ~BlockListener() = default;
  virtual void OnBlockChanges(const std::vector<engine::BlockChange>& changes) = 0;
  // The same of blocks in host memory; these are never overwritten before they were dropped here.
  virtual void OnHostChanges(const std::vector<engine::HostTier::Change>&) {}
};

struct RunLoopOptions {
  std::string worker_id;
  uint64_t incarnation = 0;
  kvstore::KvPool* pool = nullptr;
  engine::Executor* executor = nullptr;
  BlockListener* listener = nullptr;  // may be null
  base::Metrics* metrics = nullptr;
  // Visited before each step; ends the process if armed.
  std::string exit_failpoint;
  // False: one step at a time, whatever the executor can do.
  bool pipeline_steps = true;
};

// All pointers of the options must outlive it. Public methods are thread-safe; protected ones run on the loop thread.
template <typename Request, typename Response, typename Internal>
class RunLoop {
 public:
  using Stream = RunStream<Request, Response>;
  // One active router and a standby, each perhaps twice while a broken stream is not noticed yet.
  static constexpr size_t kMaxSessions = 4;

  explicit RunLoop(const RunLoopOptions& options)
      : options_(options),
        step_metrics_(options.metrics),
        depth_(options.pipeline_steps && options.executor->depth() > 1 ? engine::Planner::kMaxInFlight : 1) {}
  virtual ~RunLoop() = default;

  // Derived classes must call Stop and Wait before they are destroyed.
  void Start() {
    if (depth_ > 1) options_.executor->ObserveLaunches(observer());
    thread_ = std::thread([this] { Run(); });
  }
  // Ends the loop once all its sequences are over.
  void Drain() { mailbox_.Post({Kind::kDrain, 0, nullptr, {}, {}}); }
  // Ends the loop after the steps in flight.
  void Stop() { mailbox_.Post({Kind::kStop, 0, nullptr, {}, {}}); }
  // Waits for the end of the loop; returns the exit code.
  int Wait() {
    if (thread_.joinable()) thread_.join();
    return exit_code_;
  }
  bool ended() const { return ended_; }
  double prefill_tokens_per_s() const { return prefill_rate_; }

  // Body of the service's Run method.
  grpc::ServerBidiReactor<Request, Response>* Accept(grpc::CallbackServerContext* context) {
    const SessionId session = next_session_.fetch_add(1);
    typename Stream::Handler handler;
    handler.on_request = [this, session](std::shared_ptr<Stream> stream, Request request) {
      mailbox_.Post({Kind::kRequest, session, std::move(stream), std::move(request), {}});
    };
    handler.on_closed = [this, session](std::shared_ptr<Stream> stream) {
      mailbox_.Post({Kind::kClosed, session, std::move(stream), {}, {}});
    };
    return Stream::Start(context, std::move(handler));
  }

 protected:
  using Wire = SessionTable::Wire;

  virtual void OnCommand(const Wire& wire, const Request& request, base::TimeNs now) = 0;
  virtual void OnInternal(Internal event, base::TimeNs now) = 0;
  // The router of this sequence is gone, or wants another attempt: stop it.
  virtual void OnDropped(engine::SeqId seq, base::TimeNs now) = 0;
  virtual void OnTick(base::TimeNs now) = 0;
  virtual void OnStepDone(absl::Status status, engine::StepOutput output, std::vector<uint64_t> digests,
                          base::TimeNs started, base::TimeNs ended) = 0;
  virtual const engine::PlannedStep* PlanStep(base::TimeNs now) = 0;
  virtual std::vector<engine::BlockChange> TakeBlockChanges() = 0;
  virtual std::vector<engine::HostTier::Change> TakeHostChanges() = 0;
  virtual void ApplyEffects(base::TimeNs now) = 0;
  virtual engine::LayerObserver* observer() { return nullptr; }
  virtual base::TimeNs NextDeadline() const = 0;
  virtual bool Idle() const = 0;
  virtual engine::Load CoreLoad() const = 0;
  virtual const engine::PlannerStats& PlannerStatsNow() const = 0;
  virtual const engine::BlockPool& Blocks() const = 0;

  // For the observer: the digests of the step's seals go on with this layer, beside the model's work.
  void DigestLayer(uint64_t step, uint32_t layer) {
    const std::lock_guard lock(digests_mu_);
    if (const auto it = digests_.find(step); it != digests_.end()) it->second->LayerWritten(layer);
  }

  void PostInternal(Internal event) { mailbox_.Post({Kind::kInternal, 0, nullptr, {}, std::move(event)}); }
  base::TimeNs Now() const { return clock_.Now(); }

  // A core id for a new sequence; drops an earlier attempt of it.
  engine::SeqId Mint(const Wire& wire, base::TimeNs now) {
    std::optional<engine::SeqId> replaced;
    const engine::SeqId id = table_.Add(wire, &replaced);
    if (replaced) OnDropped(*replaced, now);
    return id;
  }
  // Sends an event of a sequence to its router, if there is still one.
  void SendTo(engine::SeqId seq, Response response) {
    const Wire* wire = table_.WireOf(seq);
    if (wire == nullptr) return;
    response.set_seq(wire->seq);
    response.set_attempt(wire->attempt);
    SendToSession(wire->session, std::move(response));
  }
  void SendToSession(SessionId session, Response response) {
    const auto it = sessions_.find(session);
    if (it != sessions_.end()) it->second.stream->Send(std::move(response));
  }

  const RunLoopOptions options_;
  StepMetrics step_metrics_;
  SessionTable table_;

 private:
  enum class Kind { kRequest, kClosed, kInternal, kDrain, kStop };
  struct Posted {
    Kind kind;
    SessionId session;
    std::shared_ptr<Stream> stream;
    Request request;
    Internal internal;
  };
  struct Session {
    std::shared_ptr<Stream> stream;
    uint64_t router_incarnation = 0;
  };
  struct InFlight {
    const engine::PlannedStep* step;
    base::TimeNs started;
    absl::Status launched;  // not OK: counts as the step's own failure once its turn comes
    std::shared_ptr<kvstore::SealDigests> digests;
  };
  // Least time between two loads while they change, and most while they do not.
  static constexpr base::TimeNs kLoadEvery = 10 * base::kNsPerMs, kLoadAtLeast = base::kNsPerSecond;

  void Run() {
    bool idle = true;
    while (!stop_) {
      const base::TimeNs before = Now();
      std::vector<Posted> posted = mailbox_.Wait(idle ? UntilNext(before) : 0);
      const base::TimeNs now = Now();
      for (Posted& event : posted) Handle(&event, now);
      OnTick(now);
      Apply(now);
      if (stop_) break;
      idle = depth_ > 1 ? !RunPipelined(now) : !RunOne(now);
      Report(Now());
      if (draining_ && Idle()) break;
    }
    engine::StepOutput unwanted;
    for (; !in_flight_.empty(); in_flight_.pop_front()) {  // nothing may touch the pool once the loop has ended
      if (in_flight_.front().launched.ok() && !options_.executor->Wait(&unwanted).ok()) break;
    }
    for (auto& [id, session] : sessions_) {
      session.stream->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"));
    }
    FlushStreams();
    ended_ = true;
  }

  base::TimeNs UntilNext(base::TimeNs now) const {
    base::TimeNs until = std::max<base::TimeNs>(NextDeadline() - now, 0);
    if (!sessions_.empty()) until = std::min(until, std::max<base::TimeNs>(load_sent_at_ + kLoadAtLeast - now, 0));
    if (load_pending_) until = std::min(until, std::max<base::TimeNs>(load_sent_at_ + kLoadEvery - now, 0));
    return std::clamp<base::TimeNs>(until, 1, 10 * base::kNsPerSecond);
  }

  void Handle(Posted* event, base::TimeNs now) {
    switch (event->kind) {
      case Kind::kRequest:
        return HandleRequest(event, now);
      case Kind::kClosed:
        return DropSession(event->session, now);
      case Kind::kInternal:
        return OnInternal(std::move(event->internal), now);
      case Kind::kDrain:
        draining_ = true;
        return;
      case Kind::kStop:
        stop_ = true;
        return;
    }
  }

  void HandleRequest(Posted* event, base::TimeNs now) {
    const bool known = sessions_.contains(event->session);
    if (event->request.has_hello()) {
      if (!known) return Greet(event, now);
      return event->stream->End({grpc::StatusCode::FAILED_PRECONDITION, "a second Hello on this stream"});
    }
    if (!known) {  // also what follows a refused Hello
      return event->stream->End({grpc::StatusCode::FAILED_PRECONDITION, "the first command must be Hello"});
    }
    OnCommand({event->session, event->request.seq(), event->request.attempt()}, event->request, now);
  }

  void Greet(Posted* event, base::TimeNs now) {
    const auto& hello = event->request.hello();
    if (hello.peer_incarnation() != 0 && hello.peer_incarnation() != options_.incarnation) {
      return event->stream->End({grpc::StatusCode::FAILED_PRECONDITION,
                                 base::StrCat("this is incarnation ", options_.incarnation, " of ", options_.worker_id,
                                              ", not ", hello.peer_incarnation(), ": wait for its next Register")});
    }
    for (auto it = sessions_.begin(); it != sessions_.end();) {  // one stream per router
      const auto old = it++;
      if (old->second.router_incarnation == hello.incarnation()) {
        old->second.stream->End({grpc::StatusCode::ABORTED, "the router opened another stream"});
        DropSession(old->first, now);
      }
    }
    if (sessions_.size() >= kMaxSessions) {
      return event->stream->End({grpc::StatusCode::RESOURCE_EXHAUSTED, "too many routers are connected"});
    }
    sessions_[event->session] = {event->stream, hello.incarnation()};
    Response response;
    response.mutable_hello()->set_incarnation(options_.incarnation);
    response.mutable_hello()->set_peer_incarnation(hello.incarnation());
    response.mutable_hello()->set_worker_id(options_.worker_id);
    event->stream->Send(std::move(response));
    load_sent_at_ = 0;
    load_pending_ = true;
    AS_LOG(kInfo, "router.connected") << base::Field("router_incarnation", hello.incarnation())
                                      << base::Field("peer", event->stream->peer());
  }

  void DropSession(SessionId session, base::TimeNs now) {
    if (sessions_.erase(session) == 0) return;
    const std::vector<engine::SeqId> dropped = table_.DropSession(session);
    for (engine::SeqId seq : dropped) OnDropped(seq, now);
    AS_LOG(kInfo, "router.disconnected") << base::Field("dropped", dropped.size());
  }

  // Block changes first: memory must not be written, nor offered, before its new epoch is published.
  void Apply(base::TimeNs now) {
    const std::vector<engine::BlockChange> changes = TakeBlockChanges();
    for (const engine::BlockChange& c : changes) {
      using Change = engine::BlockChange::Kind;
      if (c.kind == Change::kOpened) options_.pool->SetBlockEpoch(c.block, c.epoch);
      if (c.kind == Change::kSealed) options_.pool->SealBlock(c.block, c.tokens, c.digest);
    }
    if (options_.listener && !changes.empty()) options_.listener->OnBlockChanges(changes);
    const std::vector<engine::HostTier::Change> host_changes = TakeHostChanges();
    if (options_.listener && !host_changes.empty()) options_.listener->OnHostChanges(host_changes);
    ApplyEffects(now);
  }

  // Plans and runs one step. False: nothing to run.
  bool RunOne(base::TimeNs now) {
    const engine::PlannedStep* step = PlanStep(now);
    Apply(now);
    if (step == nullptr) return false;
    base::FailpointExit(options_.exit_failpoint);
    InFlight running = Begin(*step);
    engine::StepOutput output;
    absl::Status status = options_.executor->Run(step->plan, observer(), &output);
    StepOver(running, std::move(status), std::move(output), running.started);
    return true;
  }

  // What is to be ready before the first layer of a step can be written.
  InFlight Begin(const engine::PlannedStep& step) {
    InFlight begun{&step, Now(), absl::OkStatus(), nullptr};
    if (observer() != nullptr && !step.seals.empty()) {
      begun.digests = std::make_shared<kvstore::SealDigests>(&options_.pool->memory(), step.seals);
      const std::lock_guard lock(digests_mu_);
      digests_[step.number] = begun.digests;
    }
    return begun;
  }

  // Launches as many steps as fit, then waits for the oldest one. False: none is in flight.
  bool RunPipelined(base::TimeNs now) {
    while (in_flight_.size() < depth_ && (in_flight_.empty() || in_flight_.back().launched.ok())) {
      const engine::PlannedStep* step = PlanStep(now);
      Apply(now);
      if (step == nullptr) break;
      base::FailpointExit(options_.exit_failpoint);
      in_flight_.push_back(Begin(*step));
      in_flight_.back().launched = options_.executor->Launch(step->plan);
    }
    if (in_flight_.empty()) return false;
    InFlight oldest = std::move(in_flight_.front());
    in_flight_.pop_front();
    engine::StepOutput output;
    absl::Status status = std::move(oldest.launched);
    if (status.ok()) status = options_.executor->Wait(&output);
    if (!status.ok()) {  // later ones are lost with it
      const std::lock_guard lock(digests_mu_);
      for (const InFlight& lost : in_flight_) digests_.erase(lost.step->number);
      in_flight_.clear();
    }
    StepOver(oldest, std::move(status), std::move(output), std::max(oldest.started, last_ended_));
    return true;
  }

  void StepOver(const InFlight& over, absl::Status status, engine::StepOutput output, base::TimeNs started) {
    const engine::PlannedStep& step = *over.step;
    {
      const std::lock_guard lock(digests_mu_);
      digests_.erase(step.number);
    }
    if (status.ok() && base::FailpointFires("step.internal")) {
      status = absl::InternalError("failpoint step.internal: as if the device had failed");
    }
    std::vector<uint64_t> digests;
    if (status.ok()) {
      absl::StatusOr<std::vector<uint64_t>> sealed =
          over.digests != nullptr ? over.digests->Finish() : options_.pool->Digests(step.seals);
      if (sealed.ok()) digests = *std::move(sealed);
      status = sealed.status();
    }
    const base::TimeNs ended = Now();
    last_ended_ = ended;
    step_metrics_.OnStep(step, started, ended);
    prefill_rate_ = step_metrics_.prefill_tokens_per_s();
    const bool poisoned = status.code() == absl::StatusCode::kInternal;
    if (!status.ok()) {
      AS_LOG(kError, "step.failed") << base::Field("error", base::MessageOf(status)) << base::Field("fatal", poisoned)
                                    << base::Field("sequences", step.plan.slices.size());
    }
    OnStepDone(std::move(status), std::move(output), std::move(digests), started, ended);
    Apply(ended);
    if (poisoned) {  // the executor cannot be trusted any more: leave, so that the supervisor starts a fresh process
      exit_code_ = base::kExitFailure;
      stop_ = true;
    }
  }

  void Report(base::TimeNs now) {
    const engine::Load load = CoreLoad();
    if (!(load == last_load_)) load_pending_ = true;
    const base::TimeNs since = now - load_sent_at_;
    if ((load_pending_ && since >= kLoadEvery) || since >= kLoadAtLeast) {
      last_load_ = load;
      load_pending_ = false;
      load_sent_at_ = now;
      step_metrics_.Update(PlannerStatsNow(), load, Blocks());
      step_metrics_.LogThroughput(PlannerStatsNow(), load, now);
      for (auto& [id, session] : sessions_) {
        Response response;
        ToWire(load, response.mutable_load());
        session.stream->Send(std::move(response));
      }
    }
  }

  // Lets the last events leave, for at most half a second.
  void FlushStreams() {
    for (int i = 0; i < 500; ++i) {
      const bool flushed =
          std::all_of(sessions_.begin(), sessions_.end(), [](const auto& s) { return s.second.stream->Flushed(); });
      if (flushed) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    sessions_.clear();
  }

  base::MonotonicClock clock_;
  Mailbox<Posted> mailbox_;
  std::atomic<SessionId> next_session_{1};
  std::atomic<bool> ended_{false};
  std::atomic<double> prefill_rate_{0};
  std::thread thread_;
  int exit_code_ = base::kExitOk;  // read after Wait

  // Digests of the steps in flight, for the thread that runs them.
  std::mutex digests_mu_;
  std::map<uint64_t, std::shared_ptr<kvstore::SealDigests>> digests_;  // guarded by digests_mu_; by number of the step

  // Loop thread only.
  const size_t depth_;
  std::deque<InFlight> in_flight_;  // oldest first
  base::TimeNs last_ended_ = 0;
  std::map<SessionId, Session> sessions_;
  bool stop_ = false, draining_ = false, load_pending_ = true;
  engine::Load last_load_;
  base::TimeNs load_sent_at_ = 0;
};

}  // namespace agentserve::worker
