// A request and its sequences inside the core.
//
//   kHeld ──► kQueued ──► kReserving ──► kPrefilling ──► kTransferring ──► kDecoding ──► kFinishing ──► (gone)
//                 │           │  P chosen    Start sent       Admit sent        ▲           last token seen
//                 │           └──────────────────┐ (P lost, or D has it cached)  │
//                 └─────────────────────────────►kLocal ─────────────────────────┘ (its first token)
//   A worker's death leads from any state after kQueued back to kQueued (attempt + 1), or to a refusal.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "router/core/policy.h"
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

struct Sequence {
  SeqId id;
  RequestKey request;
  uint32_t index = 0;
  SeqPhase phase = SeqPhase::kHeld;
  OrderKey key;
  int64_t arrival = 0;
  uint32_t attempt = 0;  // counted before each dispatch
  uint32_t crashes = 0;  // workers that died while this sequence was on them
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
};

}  // namespace agentserve::router
