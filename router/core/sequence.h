// A request and its sequences inside the core.
//
//   kHeld ──► kQueued ──► kReserving ──► kPrefilling ──► kTransferring ──► kDecoding ──► kFinishing ──► (gone)
//                 │           │  P chosen    Start sent       Admit sent        ▲           last token seen
//                 │           └──────────────────┐ (P lost, or D has it cached)  │
//                 └─────────────────────────────►kLocal ─────────────────────────┘ (its first token)
//   A worker's death leads from any state after kQueued back to kQueued (attempt + 1), or to a refusal.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "router/core/call_queue.h"
#include "router/core/policy.h"
#include "router/core/predictor.h"
#include "router/core/types.h"
#include "router/core/worker_table.h"

namespace agentserve::router {

enum class SeqPhase : uint8_t {
  kHeld,          // n > 1: waits for sequence 0's prefill, whose blocks it will share
  kQueued,        // in the queue
  kReserving,     // decode worker asked for blocks, prefill worker chosen
  kPrefilling,    // prefill worker started
  kTransferring,  // first token out, decode worker validates its copy
  kLocal,         // decode worker prefills
  kDecoding,
  kFinishing,  // last token out, totals not yet
};

// Why decisions passed a sequence over.
struct WaitNotes {
  std::array<uint16_t, kNumWaitReasons> count{};
  std::optional<WaitReason> last;
  void Note(WaitReason r) {
    uint16_t& c = count[static_cast<size_t>(r)];
    if (c < UINT16_MAX) ++c;
    last = r;
  }
};

struct Sequence {
  SeqId id;
  RequestKey request;
  uint32_t index = 0;
  SeqPhase phase = SeqPhase::kHeld;
  OrderKey key;      // of its last time in the queue
  int64_t rank = 0;  // at the workers, since its last dispatch
  int64_t arrival = 0;
  TimeNs queued_at = 0;
  WaitNotes waits;
  uint32_t overtaken = 0;    // times a later call was handed out because this one fitted nowhere
  TimeNs sticky_since = -1;  // waits for a slot on the worker that holds its KV since then
  uint32_t preempted = 0;    // times it gave way; not counted as attempts
  uint32_t attempt = 0;      // counted before each dispatch
  uint32_t crashes = 0;      // workers that died while this sequence was on them
  WorkerId decode, prefill;
  Booking booking;
  std::shared_ptr<const SequenceSpec> spec;  // kReserving: kept for the prefill worker's Start
  bool attached = false;
  std::vector<TokenId> generated;
  FinishReason finish = FinishReason::kNone;
  TimeNs finish_by = 0;  // kFinishing
  TimeNs dispatched_at = 0;
  bool first_dispatch_done = false;
  bool prefix_recorded = false;
  Timeline timeline;
};

struct Request {
  RequestKey key;
  Submission sub;
  std::string program;  // ProgramTable key or empty
  std::vector<SeqId> seqs;
  uint32_t live = 0;        // sequences not ended
  bool waits = false;       // for calls or programs it depends on: not in the queue, all its sequences are held
  bool grace_over = false;  // waits: names that nobody used were looked for
  TimeNs queued_since = 0;  // arrival, or the end of that wait
  double dependency_ms = 0;
  bool dispatched = false;  // left the queue for the first time: no longer counted in the queue's bounds
  bool got_first_token = false;
  TimeNs timer = 0;  // its entry in the timer set
  uint32_t completion_tokens = 0;
  uint32_t cached_tokens = 0;
  Timeline timeline;  // of sequence 0, once it ended
  WorkerId last_decode;
  bool stopped_on_token = false;  // an assistant turn ended by itself
  // Estimates, made when it came.
  bool fresh = true;  // its program had no call before
  bool tool_turn = false;
  uint32_t step = 0;
  uint32_t new_tokens = 0;  // of the prompt, beyond its program's last context
  uint32_t queue_depth = 0;
  LengthSummary program_outputs;
  Prediction prediction;
  Prediction plain;  // without the caller's hint: what counts where tenants meet
  Difficulty difficulty = Difficulty::kMedium;
  LaneId lane = 0;
  double path_before = 0;     // Program::path when it came
  double virtual_finish = 0;  // Justitia
  double charged = 0;         // cost its lane was charged for
};

}  // namespace agentserve::router
