// Why a call waited and why it went where it went: one record per dispatch of a request's first sequence, kept in a
// bounded ring with look-up by request id, and counters per reason. Plain data; filled by the core, read by whoever
// explains (gRPC, HTTP, `agentserve why`, metrics).
//
// Single-threaded, owned by the core.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "router/core/types.h"

namespace agentserve::router {

// Why a call that was looked at was not handed out. A closed set: metric labels.
enum class WaitReason : uint8_t {
  kNoWorker,     // no decode worker is ready
  kNoSlot,       // batches are full
  kNoBlocks,     // a slot is free, but not enough KV blocks with room for the expected output
  kGated,        // L1: a new program while the pools are spoken for
  kSaturated,    // workers refused work since their last load report
  kTooLongHere,  // ready workers exist, but none whose context holds the prompt
  kBehind,       // others were ahead in the order of its tenant
  kShare,        // L8: it is another tenant's turn
  kSibling,      // n > 1: waits for the first sequence's prefill, which it shares
  kPreempted,    // it ran and gave way
};
inline constexpr int kNumWaitReasons = 10;
const char* WaitReasonName(WaitReason r);

// Why it was this call's turn.
enum class PickReason : uint8_t {
  kOrder,          // first by the policy's key
  kOldestProgram,  // the pick that goes to the oldest program, against starvation
  kAged,           // waited past the aging bound
  kStrictTier,
  kDeadline,  // its slack is used up
  kBackfill,  // those ahead fit nowhere, this one did
  kOverflow,  // an easy call above the batch cap
  kWindow,    // member of the window with least variance
};
inline constexpr int kNumPickReasons = 8;
const char* PickReasonName(PickReason r);

// Why prefill runs where it does.
enum class PlaceReason : uint8_t {
  kLocalShort,      // fewer new tokens than the threshold
  kLocalAppend,     // L4: a short append to KV that the decode worker holds
  kLocalIdle,       // the decode worker is idle and all prefill workers are busy
  kLocalNoPrefill,  // no prefill worker is ready, connected to it, and has room
  kRemote,          // cold or long: a prefill worker computes it
};
inline constexpr int kNumPlaceReasons = 5;
const char* PlaceReasonName(PlaceReason r);

enum class Verdict : uint8_t { kChosen, kFits, kNotReady, kNoSlot, kNoBlocks, kGated, kSaturated, kTooLong };
inline constexpr int kNumVerdicts = 8;
const char* VerdictName(Verdict v);

// One decode worker as seen by the decision.
struct Candidate {
  WorkerId worker;
  std::string name;
  Verdict verdict = Verdict::kFits;
  uint32_t new_tokens = 0;  // to be computed there
  uint32_t batch = 0;       // sequences it has
  int64_t free_blocks = 0;
  uint64_t score = 0;   // new_tokens * (batch + 1); least wins
  bool sticky = false;  // had the program's last call
};

struct DecisionRecord {
  std::string request_id;
  std::string tenant, program, workflow_class;  // as the router understood them
  std::string policy;
  uint32_t attempt = 0;
  TimeNs arrival = 0;     // of the request
  TimeNs decided_at = 0;  // 0: still queued

  // Order. Costs are in prefilled tokens (CostModel).
  int64_t tier = 0;         // of the order key; smaller is sooner
  uint32_t difficulty = 0;  // 0 easy, 1 medium, 2 hard
  double predicted_output = 0;
  double call_cost = 0, program_attained = 0, program_remaining = 0;
  uint32_t queue_depth = 0;  // calls waiting when it came
  PickReason pick = PickReason::kOrder;
  uint32_t overtaken = 0;  // times a later call was handed out because this one fitted nowhere

  // How many times a decision passed it over, by reason, and the last one.
  std::array<uint32_t, kNumWaitReasons> waited_for{};
  std::optional<WaitReason> last_wait;

  // Place: the best few candidates, the chosen one first.
  std::vector<Candidate> candidates;
  uint32_t candidates_seen = 0;
  PlaceReason place = PlaceReason::kLocalShort;
  std::string decode_worker, prefill_worker;
  uint32_t new_tokens = 0, cached_tokens = 0, booked_blocks = 0;

  // The last decision on the KV of its program's previous call (RetainReasonName); empty: there is none.
  std::string kv_kept;

  // Request ids that gave way to this one, and what KV was moved or dropped for it.
  std::vector<std::string> preempted;
  std::vector<std::string> evicted;

  static constexpr size_t kMostCandidates = 8;
  static constexpr size_t kMostNamed = 8;  // of preempted and of evicted
};

// Totals since start, for metrics.
struct DecisionStats {
  uint64_t wait[kNumWaitReasons] = {};
  uint64_t pick[kNumPickReasons] = {};
  uint64_t place[kNumPlaceReasons] = {};
  uint64_t preemptions = 0;
  uint64_t overtakes = 0;
};

// The last `most` records. A request has at most one: a later dispatch of it (after its worker died) replaces it.
class DecisionLog {
 public:
  // 4,096 records of about 1 KiB: 4 MiB, some minutes of a busy cluster.
  explicit DecisionLog(size_t most = 4096) : most_(most) {}

  void Add(DecisionRecord record);
  // Null if it is not (or no longer) there. Valid until the next Add.
  const DecisionRecord* Find(std::string_view request_id) const;
  // The record to add to after its Add (evictions become known late), or null.
  DecisionRecord* FindMutable(std::string_view request_id);
  size_t size() const { return ring_.size(); }
  // Newest last.
  const std::deque<DecisionRecord>& all() const { return ring_; }
  void CheckInvariants() const;

 private:
  const size_t most_;
  uint64_t first_ = 0;  // number of ring_.front()
  std::deque<DecisionRecord> ring_;
  std::unordered_map<std::string, uint64_t> index_;  // request id -> number of its newest record
};

}  // namespace agentserve::router
