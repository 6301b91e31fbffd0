// Layer L6: where the KV of a program stays between two of its calls. Decides; the workers carry it out (kRetain,
// kPrefetch) with their own order of eviction below it (engine/kv_tiers.h).
//
// A program that waits for a tool holds B of a worker's N blocks and is not served. Holding them for t seconds takes
// t * B/N of the worker's room from the Q calls that wait for it, so it costs them Q * B/N * t seconds in all: the
// price of a block is Q/N seconds per second, nothing while nobody waits. Keeping saves S seconds of work (computing
// the prompt again, or loading it from host memory where there is some). So with T the return time, known from the
// statistics of the tool and of the program,
//
//   gain(t) = P(T <= t) * S  -  Q * B/N * E[min(T, t)]
//
// is what pinning for t gains; the best t is the pin (Continuum 2511.02230 does so per tool; InferCept 2402.01869
// weighs preserve, discard and swap). If no t gains, and while nobody waits (then a pin would only keep other programs'
// KV away), the KV is copied to host memory and stays on the device as cache whose worth follows P(back soon). It is
// decided again when the tool starts (its name is known then), when the pin ends, and when calls begin to wait. What is
// in host memory is prefetched when the tool ends, at the median of the time it is expected to take, or when the
// program's call waits in the queue.
//
// Single-threaded, owned by the core. No clock. Every table is bounded by `Options::most`. Invariants,
// CheckInvariants():
//   1. Parked programs of one tenant pin at most its share of a worker's blocks.
//   2. A program is in exactly one place; its entry in the timers is the one it names.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "router/core/tool_stats.h"
#include "router/core/types.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

// Why KV was kept, moved or given up. A closed set: metric labels.
enum class RetainReason : uint8_t {
  kPinWorth,      // pinned: it saves more than the queue loses
  kPinAsked,      // pinned: the client asked for it
  kHostCopy,      // to host memory, and still on the device: nobody waits for its room
  kHostPrice,     // to host memory: the queue would lose more
  kHostQuota,     // to host memory: its tenant pins its share already
  kHostLate,      // to host memory: the tool takes longer than expected
  kCacheOnly,     // left as cache of its worth: there is no host memory
  kDropFinal,     // given up: the last call of its program
  kDropEnded,     // given up: the program was ended
  kDropReplaced,  // given up: its next call did not continue this history
  kDropMoved,     // given up: the program went on elsewhere
  kPrefetchToolEnd,
  kPrefetchMedian,
  kPrefetchQueued,
};
inline constexpr int kNumRetainReasons = 14;
const char* RetainReasonName(RetainReason r);

// One word to a worker.
struct RetainAction {
  WorkerId worker;
  SeqId seq;
  uint32_t attempt = 0;
  CommandKind kind = CommandKind::kRetain;  // or kPrefetch
  KeepWhere keep = KeepWhere::kDevice;
  uint64_t ttl_ms = 0;
  float worth = 1;
  RetainReason reason = RetainReason::kCacheOnly;
};

struct RetentionOptions {
  size_t most = 65'536;  // programs; about 300 bytes each: 20 MiB
  // Without statistics: how long a pin is, and how likely the program is back by then.
  uint64_t default_ttl_ms = 30'000;
  uint64_t most_ttl_ms = 600'000;
  // Share of a worker's blocks that parked programs of one tenant may pin. Workers pin at most half of their blocks, so
  // two tenants can fill that.
  double tenant_share = 0.25;
  // Tenants with a share of their own.
  std::map<std::string, double> tenant_shares;
  // Until workers have said how fast they are.
  double prefill_tokens_per_s = 20'000;
  double host_bytes_per_s = 10e9;
  // Programs looked at again when calls begin to wait, and how often at most.
  uint32_t most_reviewed = 32;
  TimeNs review_every = 100 * base::kNsPerMs;
};

// What the core knows at the time of a decision.
struct RetentionView {
  const WorkerTable& workers;
  const ToolStats& tools;
  uint32_t queued = 0;  // calls that wait for a worker
  TimeNs now = 0;
};

struct RetentionStats {
  uint64_t decisions[kNumRetainReasons] = {};
};

class Retention {
 public:
  explicit Retention(const RetentionOptions& options) : options_(options) {}

  // A call ended on a worker.
  struct Turn {
    std::string_view program;  // ProgramTable::Key
    std::string_view tenant, workflow_class, tool;
    WorkerId worker;
    SeqId seq;
    uint32_t attempt = 0;
    uint32_t tokens = 0;                   // prompt and output
    std::span<const base::Hash128> chain;  // names of the prompt's blocks; empty if not known
    GapSummary gaps;                       // of the program
    std::optional<uint64_t> gap_hint_ms, retain_ms;
    bool final = false;
  };
  void OnTurnEnd(const Turn& turn, const RetentionView& view);
  // The program's next call has come; `chain` as above. It waits in the queue: OnQueued. Its pin ends with its wait.
  void OnCall(std::string_view program, std::span<const base::Hash128> chain, const RetentionView& view);
  void OnQueued(std::string_view program, const RetentionView& view);
  void OnToolStart(std::string_view program, std::string_view tool, const RetentionView& view);
  void OnToolEnd(std::string_view program, const RetentionView& view);
  void OnProgramEnd(std::string_view program, const RetentionView& view);
  // Calls wait for room. Cheap: looks at few programs, and not more often than review_every.
  void OnPressure(const RetentionView& view);
  void OnWorkerGone(WorkerId worker);
  void Tick(const RetentionView& view);
  // When Tick is due; max() = never.
  TimeNs NextWake() const;

  std::vector<RetainAction> TakeActions() { return std::exchange(actions_, {}); }
  bool has_actions() const { return !actions_.empty(); }
  const RetentionStats& stats() const { return stats_; }
  size_t size() const { return index_.size(); }
  // Blocks that parked programs of a tenant pin on a worker.
  uint32_t pinned(WorkerId worker, const std::string& tenant) const;
  // The last decision on a program's KV; "" if there is none.
  std::string_view LastReason(std::string_view program) const;
  void CheckInvariants() const;

 private:
  enum class Place : uint8_t { kNowhere, kCache, kPinned, kHost };
  struct Parked {
    std::string key, tenant, workflow_class, tool;
    WorkerId worker;
    SeqId seq;
    uint32_t attempt = 0;
    uint32_t tokens = 0;
    uint32_t blocks = 0;
    uint32_t chain_blocks = 0;              // of the prompt
    base::Hash128 chain_end, chain_middle;  // its last name, and that of the middle
    GapSummary gaps;
    uint64_t retain_ms = 0;
    bool waiting = false;  // between two calls
    Place place = Place::kNowhere;
    TimeNs since = 0;         // of the wait
    TimeNs check_at = 0;      // 0 = no timer
    bool prefetched = false;  // in this wait
    bool continued = false;   // the call that runs continues this history
    uint32_t queued = 0;      // calls that waited when it was decided
    // The history before, if the call that runs did not continue it: dropped when the call has ended, since until then
    // it is not known where the two part.
    WorkerId old_worker;
    SeqId old_seq;
    uint32_t old_attempt = 0;
    RetainReason old_reason = RetainReason::kDropReplaced;
    RetainReason last_reason = RetainReason::kCacheOnly;
  };
  using List = std::list<Parked>;

  // The best pin and what it gains, in seconds of everybody's time.
  struct Choice {
    TimeNs ttl = 0;
    double gain = 0;
    double back = 0;  // P(back soon)
  };

  Parked& Touch(std::string_view key);
  Parked* Find(std::string_view key);
  void Decide(Parked* p, const RetentionView& view, bool late);
  void AwaitMedian(Parked* p, const RetentionView& view);
  Choice Best(const Parked& p, const Worker& w, const RetentionView& view) const;
  double ProbBack(const Parked& p, const ToolStats& tools, double elapsed_ms, double within_ms) const;
  void Prefetch(Parked* p, RetainReason reason, const RetentionView& view);
  void Move(Parked* p, Place place);
  void SetTimer(Parked* p, TimeNs at);
  RetainAction& Act(Parked* p, CommandKind kind, RetainReason reason);
  void DropOld(Parked* p);
  void Forget(Parked* p);
  bool WithinQuota(const Parked& p, const Worker& w) const;

  const RetentionOptions options_;
  List lru_;                                                    // most recently used first
  std::unordered_map<std::string_view, List::iterator> index_;  // keys point into lru_
  std::set<std::pair<TimeNs, std::string_view>> timers_;
  std::map<std::pair<WorkerId, std::string>, uint32_t> pinned_;  // blocks by worker and tenant
  std::set<std::pair<uint64_t, std::string_view>> pins_;         // pinned programs, the longest parked first
  TimeNs reviewed_at_ = -1;
  std::vector<RetainAction> actions_;
  RetentionStats stats_;
};

}  // namespace agentserve::router
