// A simulated worker as the driver sees it: orders in, messages out, a time at which it wants to be woken. Two kinds:
// CoreWorker runs the production decode and prefill cores step by step; FastWorker is a model of them that jumps from
// event to event.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "router/core/types.h"
#include "tools/sim/step_model.h"
#include "tools/workload/workload.h"

namespace agentserve::sim {

using base::TimeNs;
using SpansPtr = std::shared_ptr<const std::vector<workload::Span>>;

struct WorkerOptions {
  router::Role role = router::Role::kDecode;
  uint32_t block_tokens = 16;
  uint32_t num_blocks = 0;
  uint32_t max_batch = 64;
  uint32_t step_tokens = 512;
  uint32_t context_length = 131072;
  uint32_t host_blocks = 0;  // of the host tier; 0 = none
  // Every prefix that was ever here costs no compute (an oracle's cache); its blocks still take room while in use.
  bool infinite_cache = false;
  // Tokens are told to the router this often at most (fast workers only); ends and first tokens at once.
  TimeNs flush_ns = 250 * base::kNsPerMs;
  uint64_t seed = 1;  // of the residual noise
  uint32_t index = 0;
};

// Where the KV of a hand-off is.
struct SimKv final : router::Opaque {
  uint32_t worker = 0;  // index of the prefill worker
  uint32_t tokens = 0;
  uint32_t tail_tokens = 0;            // of the last chunk: what is left to copy when the first token is out
  std::shared_ptr<const void> remote;  // CoreWorker: its RemoteKv
};

// A command of the router, with what the worker must know of the sequence.
struct Order {
  router::Command command;
  SpansPtr spans;       // kReserve, kStart
  uint32_t tokens = 0;  // prompt and tokens generated before
  uint32_t generated = 0;
  uint32_t max_tokens = 0;  // where this sequence really ends
  bool stops = false;       // by a stop token there, not by its limit
};

// A message to the router.
struct UpMessage {
  enum class Kind : uint8_t { kReserved, kAdmitted, kFirstToken, kKvReady, kStep, kFinished, kFailed, kLoad };
  Kind kind = Kind::kLoad;
  router::SeqId seq;
  uint32_t attempt = 0;
  uint32_t cached_tokens = 0;
  router::OpaquePtr kv;
  router::FirstToken first;
  router::KvReady ready;
  uint64_t step = 0;
  std::vector<router::StepToken> tokens;
  router::SequenceTotals totals;
  router::WorkerFailure failure;
  router::WorkerLoad load;
};

// Totals since the worker's start.
struct WorkerStats {
  uint64_t steps = 0, computed_tokens = 0, preemptions = 0;
  double busy_ns = 0;
};

class SimWorker {
 public:
  virtual ~SimWorker() = default;
  virtual void Obey(const Order& order, TimeNs now) = 0;
  // Does what is due at `now`; called at NextEvent() or later events' times, never earlier than a call before.
  virtual void Advance(TimeNs now) = 0;
  // max() = nothing of its own.
  virtual TimeNs NextEvent() const = 0;
  // KV held by that prefill worker is gone.
  virtual void PeerLost(uint32_t worker, TimeNs now) = 0;
  // Sequences known here.
  virtual size_t size() const = 0;
  virtual WorkerStats stats() const = 0;
  virtual void CheckInvariants() const = 0;

  // Messages since the last call, in order.
  std::vector<UpMessage>& outbox() { return outbox_; }

 protected:
  UpMessage& Say(UpMessage::Kind kind, router::SeqId seq, uint32_t attempt) {
    UpMessage& m = outbox_.emplace_back();
    m.kind = kind;
    m.seq = seq;
    m.attempt = attempt;
    return m;
  }
  std::vector<UpMessage> outbox_;
};

std::unique_ptr<SimWorker> MakeFastWorker(const WorkerOptions& options, const StepModel* model);
std::unique_ptr<SimWorker> MakeCoreWorker(const WorkerOptions& options, const StepModel* model);

}  // namespace agentserve::sim
