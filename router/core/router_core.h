// The router as a stepped state machine: admission, order, placement, streams across worker deaths.
//
//   core.Submit(...); core.OnStep(...); core.Tick(now);   // events, each with the time it happened
//   Effects todo; core.TakeEffects(&todo);                // then carry them out
//
// No clock, thread, lock, proto or random device. Single-threaded. Messages may be late, repeated or of dead workers:
// such are counted and ignored.
//
// Invariants
//  1. Every accepted request gets exactly one RequestDone, and nothing after it.
//  2. Tokens of a sequence are emitted once, in order, whatever worker made them.
//  3. A sequence is booked on its decode (and prefill) worker exactly while they may hold blocks for it.
//  4. Every table is bounded by CoreConfig.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "router/core/call_queue.h"
#include "router/core/config.h"
#include "router/core/dag.h"
#include "router/core/decision.h"
#include "router/core/gate.h"
#include "router/core/placement.h"
#include "router/core/policy.h"
#include "router/core/predictor.h"
#include "router/core/prefix_memory.h"
#include "router/core/program_finder.h"
#include "router/core/program_size.h"
#include "router/core/program_table.h"
#include "router/core/retention.h"
#include "router/core/sequence.h"
#include "router/core/tool_stats.h"
#include "router/core/types.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

struct SubmitResult {
  RequestKey key;  // 0 when refused
  EndReason refused = EndReason::kDone;
  std::string message;
  TimeNs retry_after = 0;
  // As the router understood the call.
  std::string program_id;
  Identity identity = Identity::kNone;
  uint32_t clamped = 0;  // ClampedSet
  bool waits = false;    // for its dependencies
  bool ok() const { return key.value != 0; }
};

// Totals since start, for metrics.
struct IdentityStats {
  uint64_t identified[kNumIdentities] = {};  // accepted calls by what named their program
  uint64_t clamped[kNumClamped] = {};
  uint64_t graph_waits = 0, graph_refused = 0, graph_unknown = 0;
};

class RouterCore {
 public:
  // `now`: start time. Check the policy name with FindPolicy first.
  RouterCore(CoreConfig config, TimeNs now);
  RouterCore(const RouterCore&) = delete;
  RouterCore& operator=(const RouterCore&) = delete;

  // More knowledge of prefixes (the kvstore's directory); may be null. Must outlive the core.
  void set_prefix_source(const PrefixSource* source) { directory_ = source; }

  // ---- requests ----
  SubmitResult Submit(Submission sub, TimeNs now);
  // Ends a request early; unknown keys are ignored.
  void EndRequest(RequestKey key, EndReason reason, std::string message, TimeNs now);
  // A stop string matched after `completion_tokens` tokens: the sequence ends with kStop.
  void StopSequence(RequestKey key, uint32_t index, uint32_t completion_tokens, TimeNs now);
  void ReportTool(std::string_view tenant, std::string_view program, std::string_view tool, bool start, TimeNs now);
  void EndProgram(std::string_view tenant, std::string_view program, TimeNs now);
  // Calls to come; see dag.h.
  absl::Status DeclareProgram(std::string_view tenant, std::string_view program,
                              std::span<const DeclaredCallInfo> calls);
  bool KnowsProgram(std::string_view tenant, std::string_view program) const;
  // No new requests from now on; those accepted go on.
  void BeginDrain() { draining_ = true; }
  bool draining() const { return draining_; }

  // ---- workers ----
  // Registers or renews. Errors as WorkerTable::Register.
  absl::StatusOr<WorkerId> RegisterWorker(const WorkerInfo& info, TimeNs now);
  // Stops new work; returns the sequences still there. NOT_FOUND.
  absl::StatusOr<uint32_t> DrainWorker(std::string_view name, TimeNs now);
  void OnLinkUp(WorkerId w, TimeNs now);
  void OnLinkDown(WorkerId w, TimeNs now);
  void OnPeerConnected(WorkerId decode, std::string_view peer, uint64_t peer_incarnation, bool usable, TimeNs now);
  void OnLoad(WorkerId w, const WorkerLoad& load, TimeNs now);

  // ---- messages about sequences ----
  void OnReserved(WorkerId w, SeqId seq, uint32_t attempt, uint32_t cached_tokens, TimeNs now);
  void OnAdmitted(WorkerId w, SeqId seq, uint32_t attempt, OpaquePtr kv, uint32_t cached_tokens, TimeNs now);
  void OnFirstToken(WorkerId w, SeqId seq, uint32_t attempt, const FirstToken& first, TimeNs now);
  void OnKvReady(WorkerId w, SeqId seq, uint32_t attempt, const KvReady& ready, TimeNs now);
  void OnStep(WorkerId w, uint64_t step, const std::vector<StepToken>& tokens, TimeNs now);
  void OnFinished(WorkerId w, SeqId seq, uint32_t attempt, const SequenceTotals& totals, TimeNs now);
  void OnFailed(WorkerId w, SeqId seq, uint32_t attempt, const WorkerFailure& failure, TimeNs now);

  // ---- time ----
  void Tick(TimeNs now);
  // When Tick has something to do at the latest.
  TimeNs NextWake() const;

  // Appends all pending effects to `out` and forgets them.
  void TakeEffects(Effects* out);

  // ---- observation ----
  const CoreConfig& config() const { return config_; }
  // Of tenants without one of their own.
  const Policy& policy() const { return policy_; }
  const CallQueue& queue() const { return queue_; }
  const OutputPredictor& predictor() const { return predictor_; }
  const CoreStats& stats() const { return stats_; }
  const WorkerTable& workers() const { return workers_; }
  const ProgramTable& programs() const { return programs_; }
  const ToolStats& tool_stats() const { return tool_stats_; }
  // Why requests waited and went where they went. A queued request has a record too, made by this call; null if the
  // request is not known (any more).
  std::optional<DecisionRecord> FindDecision(std::string_view request_id) const;
  // The same by key, without a search; of requests that have not ended.
  std::optional<DecisionRecord> DecisionOf(RequestKey key) const;
  const DecisionLog& decisions() const { return decisions_; }
  const DecisionStats& decision_stats() const { return decision_stats_; }
  const Retention& retention() const { return retention_; }
  const IdentityStats& identity_stats() const { return identity_stats_; }
  const Dag& graph() const { return dag_; }
  // What a waiting request waits for.
  Dag::Missing WaitsFor(RequestKey key) const;
  uint32_t queued_sequences() const { return static_cast<uint32_t>(queue_.size()); }
  uint32_t queued_requests() const { return queued_requests_; }
  uint64_t queued_tokens() const { return queued_tokens_; }
  uint32_t live_requests() const { return static_cast<uint32_t>(requests_.size()); }
  uint32_t live_sequences() const { return static_cast<uint32_t>(seqs_.size()); }
  bool ready() const { return workers_.AnyReadyDecode(); }
  // Aborts when an invariant is broken. O(everything): tests and simulation.
  void CheckInvariants() const;

 private:
  // router_core.cc: requests
  bool Refuse(const Submission& sub, TimeNs now, SubmitResult* result) const;
  void CompleteRequest(RequestKey key, EndReason reason, std::string message, TimeNs retry_after, TimeNs now);
  void EnterQueue(Request* r, TimeNs now);
  void LeaveQueueBounds(Request* r);
  void SetTimer(Request* r);
  void EmitToken(Sequence* s, TokenId token, FinishReason finish, OpaquePtr logprobs, TimeNs now);
  void EndSequence(Sequence* s, FinishReason reason, TimeNs now);
  void FinishAndMaybePark(Sequence* s, TimeNs now);
  FinishReason FinishOnToken(const Request& r, const Sequence& s, TokenId token) const;
  Request& RequestOf(const Sequence& s);

  // router_programs.cc: what is known of programs, and learned from calls that end
  void JoinProgram(Request* r, TimeNs now);
  void LeaveProgram(const Request& r, EndReason reason, TimeNs now);
  void ProgramEnded(Program* p);
  void RetirePrograms(TimeNs now);
  void Estimate(Request* r, const Program* p);
  CallFeatures Features(const Request& r) const;
  void Learn(const Request& r, double cost, TimeNs now);
  double ActualCost(const Request& r) const;
  double CostLeft(const Request& r, uint32_t generated, bool plain = false) const;
  double RemainingCost(const Request& r, const Program* p, double call_cost) const;
  Order OrderOf(const Sequence& s, const Request& r, const Program* p) const;
  void ReorderProgram(Program* p);

  // router_explain.cc
  void RecordDecision(const Sequence& s, const Request& r, const CallQueue::Pick& pick, const Placement& p,
                      const PlacementQuery& q);
  void FillRecord(const Sequence& s, const Request& r, DecisionRecord* d) const;
  // router_identity.cc
  void Identify(Submission* sub);
  bool EnterGraph(const Submission& sub, bool* ready, SubmitResult* result);
  void HoldForGraph(Request* r);
  void LeaveGraphBounds(Request* r);
  void ReleaseFromGraph(const std::vector<RequestKey>& released, TimeNs now);
  void LeaveGraph(RequestKey key, const AgentInfo& agent, const std::string& program, TimeNs now);
  bool TickWaiting(Request* r, TimeNs now);
  void CheckIdentity() const;
  // router_check.cc
  void CheckParts() const;

  // router_dispatch.cc: queue and placement
  void Enqueue(Sequence* s, TimeNs now);
  void Dequeue(Sequence* s);
  void ReleaseHeld(Request* r, TimeNs now);
  void Pump(TimeNs now);
  bool DispatchOne(TimeNs now);
  bool SomeCapacity(TimeNs now);
  PlacementQuery QueryFor(const Sequence& s, const Request& r, const CallQueue::Pick& pick) const;
  bool TryPlace(Sequence* s, CallQueue::Pick* pick, PlacementQuery* q, Placement* p, TimeNs now);
  bool WaitsForSticky(Sequence* s, const PlacementQuery& q, const Placement& p, TimeNs now);
  bool PreemptFor(const Request& r, TimeNs now);
  void NoteOvertaken(size_t taken);
  void Dispatch(Sequence* s, const Placement& p, TimeNs now);
  int64_t RankFor(const Sequence& s, const Request& r, uint32_t new_tokens, TimeNs now) const;
  void StartLocal(Sequence* s);
  void ReleaseWorkers(Sequence* s, bool tell_decode);
  void ReleasePrefill(Sequence* s, CommandKind how);
  void RecordPrefix(Sequence* s, WorkerId w);
  void RecordOutput(Sequence* s, WorkerId w);
  uint32_t ExpectedOutput(const Request& r, const Sequence& s) const;
  Command& Send(WorkerId w, CommandKind kind, const Sequence& s);
  uint64_t BudgetMs(const Request& r, TimeNs now) const;

  // router_retention.cc: where programs' KV stays between their calls
  RetentionView RetentionNow(TimeNs now) const;
  void ParkKv(const Sequence& s, TimeNs now);
  void CallCame(const Request& r, TimeNs now);
  void PrefetchIfQueued(RequestKey key, TimeNs now);
  void SendRetention();

  // router_events.cc: workers
  Sequence* FindForDecode(WorkerId w, SeqId seq, uint32_t attempt);
  Sequence* FindForPrefill(WorkerId w, SeqId seq, uint32_t attempt);
  Worker* Heard(WorkerId w, TimeNs now);
  void DropLink(Worker* w, bool crash, TimeNs now);
  void EvictSequences(Worker* w, bool crash, TimeNs now);
  void LoseWorker(WorkerId w, bool crash, TimeNs now);
  void LoseDecode(Sequence* s, bool crash, TimeNs now);
  void LosePrefill(Sequence* s, bool crash, TimeNs now);
  bool CountCrash(Sequence* s, TimeNs now);
  void Requeue(Sequence* s, TimeNs now);
  void ConnectPairs(const Worker& w);
  void OnStepToken(Worker* w, const StepToken& t, TimeNs now);
  void FailOnDecode(Sequence* s, const WorkerFailure& failure, TimeNs now);
  void FailOnPrefill(Sequence* s, const WorkerFailure& failure, TimeNs now);
  void NoteDecodePresence(TimeNs now);
  void TickWorkers(TimeNs now);
  void TickRequests(TimeNs now);
  void AddPoison(const base::Hash128& digest, TimeNs now);

  const CoreConfig config_;
  const Policy policy_;
  const PrefixSource* directory_ = nullptr;

  WorkerTable workers_;
  ProgramTable programs_;
  // Programs between calls, by when they count as ended.
  std::map<std::pair<TimeNs, uint64_t>, std::string> idle_programs_;
  Gate gate_;
  OutputPredictor predictor_;
  ProgramSizes sizes_;
  OrderContext order_context_;
  uint64_t learned_calls_ = 0, estimated_calls_ = 0;
  PrefixMemory prefixes_;
  ToolStats tool_stats_;
  DecisionLog decisions_;
  DecisionStats decision_stats_;
  Retention retention_;

  ProgramFinder finder_;
  Dag dag_;
  IdentityStats identity_stats_;
  uint64_t waiting_calls_ = 0, waiting_bytes_ = 0, waiting_tokens_ = 0;  // held by dag_

  uint64_t next_request_ = 1, next_seq_ = 1;
  int64_t next_arrival_ = 1;
  bool draining_ = false;
  std::unordered_map<RequestKey, Request> requests_;
  std::unordered_map<SeqId, Sequence> seqs_;
  CallQueue queue_;
  std::vector<CallQueue::Pick> picks_;
  double most_overflow_ = 1;  // of all policies in use
  // Hard calls that run, the youngest last; kept for policies that preempt.
  std::set<std::pair<TimeNs, SeqId>> running_hard_;
  TimeNs gates_at_ = -1;
  TimeNs sticky_wake_ = kNever;  // a call that waits for its worker gives up then
  // For the decision being made.
  std::vector<std::string> preempted_;
  TimeNs decided_at_ = 0;
  // When no worker could take even the smallest call for the last time, and why.
  TimeNs full_at_ = -1;
  WaitReason full_why_ = WaitReason::kNoWorker;
  // One timer per request: queue timeout or deadline.
  std::set<std::pair<TimeNs, RequestKey>> timers_;
  std::set<std::pair<TimeNs, SeqId>> finishing_;
  uint32_t queued_requests_ = 0;  // never dispatched; the bounds count n sequences each
  uint64_t queued_calls_ = 0, queued_bytes_ = 0, queued_tokens_ = 0;
  std::map<base::Hash128, TimeNs> poisoned_;
  std::deque<std::pair<TimeNs, base::Hash128>> poison_order_;
  TimeNs no_decode_since_ = 0;  // -1: there is one
  bool pump_wanted_ = false;
  std::vector<PrefixMatch> match_scratch_;

  Effects effects_;
  CoreStats stats_;
};

}  // namespace agentserve::router
