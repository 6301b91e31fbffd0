// Carries out what the core wants: owns the core, the links to workers and the streams of callers. Everything here runs
// on the loop thread, except where said.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "agentserve/router/v1/cluster.pb.h"
#include "agentserve/router/v1/router.pb.h"
#include "base/clock.h"
#include "router/core/router_core.h"
#include "router/service/config.h"
#include "router/service/edge_model.h"
#include "router/service/errors.h"
#include "router/service/event_loop.h"
#include "router/service/kvstore_prefixes.h"
#include "router/service/request_index.h"
#include "router/service/router_metrics.h"
#include "router/service/stream_edge.h"
#include "router/service/validate.h"
#include "router/service/worker_link.h"

namespace agentserve::router {

class Shell {
 public:
  // `on_ready` is told on the loop whenever readiness changes. All references must outlive the shell.
  Shell(const ServiceConfig& config, const EdgeModel& model, RouterMetrics& metrics,
        std::function<void(bool)> on_ready);
  ~Shell();

  EventLoop& loop() { return loop_; }
  const base::Clock& clock() const { return clock_; }
  uint64_t incarnation() const { return incarnation_; }
  void Start() { loop_.Start(); }
  // Refuses new requests, waits up to `drain_ms` for the others, ends what is left, closes links. Any thread; once.
  void Shutdown(int64_t drain_ms);

  // Thread-safe: how blocks are named, as far as known.
  ChainParams chain_params() const;

  // ---- on the loop ----
  void Submit(Submission sub, StreamOptions options, std::shared_ptr<ReplyStream> stream);
  // NOT_FOUND if unknown.
  bool Cancel(const std::string& request_id);
  // False: the program is not known.
  bool ReportTool(const v1::ReportToolRequest& req);
  grpc::Status DeclareProgram(const v1::DeclareProgramRequest& req, v1::DeclareProgramResponse* out);
  // False: nothing is known of the request.
  bool Explain(const v1::ExplainRequest& req, v1::Decision* out);
  void ListDecisions(const v1::ListDecisionsRequest& req, v1::ListDecisionsResponse* out) const;
  grpc::Status Register(const v1::RegisterRequest& req, v1::RegisterResponse* out);
  grpc::Status Drain(const v1::DrainRequest& req, v1::DrainResponse* out);
  void FillModel(v1::GetModelResponse* out) const;
  void FillCluster(v1::WatchClusterResponse* out) const;
  RouterCore& core() { return *core_; }
  // Reads the clock: once per event.
  TimeNs now() { return now_ = clock_.Now(); }
  // Runs `f` every `interval` until it returns false.
  void Every(TimeNs interval, std::function<bool()> f);

 private:
  struct Link {
    std::shared_ptr<WorkerLink> link;
    uint64_t generation = 0;
    TimeNs opened = 0;
    bool hello = false;
    TimeNs last_step = 0;
    double tokens = 0, tokens_before = 0, tokens_per_s = 0;
  };
  // Counts links that gRPC still uses: their callbacks point here, so the destructor waits for them.
  struct Gate {
    std::mutex mu;
    std::condition_variable none_left;
    int open = 0;
  };
  struct Repeating {
    TimeNs next = 0, interval = 0;
    std::function<bool()> f;
  };

  TimeNs Turn();
  void Continue(const StreamOptions& options, AgentInfo* agent);
  void Apply();
  void ApplyTokens(const std::vector<TokenOut>& tokens);
  void ApplyCommand(const Command& c);
  void EndStream(const RequestDone& done);
  void OpenLink(WorkerId w);
  void CloseLink(WorkerId w);
  void CheckLinks();
  void OnMessage(WorkerId w, uint64_t generation, WorkerMessage& message);
  void OnPrefillMessage(WorkerId w, prefill::v1::RunResponse& m);
  void OnDecodeMessage(WorkerId w, decode::v1::RunResponse& m);
  template <typename Hello>
  void OnHello(WorkerId w, const Hello& hello);
  void OnStepResult(WorkerId w, decode::v1::StepResult* step);
  void OnLinkDown(WorkerId w, uint64_t generation, const grpc::Status& status);
  void Housekeep();

  const ServiceConfig& config_;
  const EdgeModel& model_;
  RouterMetrics& metrics_;
  const std::function<void(bool)> on_ready_;
  const base::MonotonicClock clock_;
  const uint64_t incarnation_;
  std::atomic<uint64_t> layout_fingerprint_{0};
  std::atomic<uint32_t> block_tokens_{0};

  TimeNs now_;
  std::unique_ptr<RouterCore> core_;
  std::unique_ptr<KvStorePrefixes> kvstore_;  // null without a kvstore
  Gate gate_;
  uint64_t next_generation_ = 1;
  std::map<WorkerId, Link> links_;
  std::map<WorkerId, common::v1::KvEndpoint> endpoints_;
  std::unordered_map<RequestKey, std::unique_ptr<StreamEdge>> streams_;
  std::unordered_map<std::string, RequestKey> by_request_id_;
  RequestIndex index_;
  // Ended streams whose reader has yet to take the status; reset after a while.
  std::deque<std::pair<TimeNs, std::weak_ptr<ReplyStream>>> ending_;
  std::vector<Repeating> repeating_;
  std::vector<std::shared_ptr<ReplyStream>> touched_;  // written to in this turn, flushed at its end
  Effects effects_;
  bool was_ready_ = false;
  bool closing_ = false;  // links are not opened any more
  TimeNs next_housekeeping_ = 0;
  TimeNs last_refusal_log_ = 0;
  TimeNs rates_since_ = 0;
  double tokens_before_ = 0, tokens_per_s_ = 0;

  EventLoop loop_;  // last: its thread uses all of the above
};

}  // namespace agentserve::router
