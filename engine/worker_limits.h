// Limits, load and admission checks that both kinds of workers share. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "base/clock.h"
#include "engine/planner.h"
#include "engine/sequence.h"

namespace agentserve::engine {

// What a worker takes on before it refuses (reason QUEUE_FULL). The router holds the real queue; these only cover what
// is on its way, so they are small against memory: 1024 prompts of 128 Ki tokens would be 512 MiB of ids, hence the
// second bound (4 Mi tokens = 16 MiB).
struct QueueLimits {
  uint32_t max_waiting = 1024;
  uint64_t max_waiting_tokens = 4u << 20;
};

// Why a sequence cannot be finished here; becomes the wire message Failed.
struct Failure {
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string reason;  // UPPER_SNAKE
  std::string message;
};

// Becomes the wire message WorkerLoad.
struct Load {
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint64_t waiting_tokens = 0;
  uint32_t available_blocks = 0;
  uint32_t total_blocks = 0;
  uint32_t cached_blocks = 0;
  uint64_t preemptions = 0;
  uint64_t steps = 0;
  uint32_t parked_blocks = 0;      // pinned for a program's next turn
  uint32_t host_blocks = 0;        // in host memory
  uint32_t host_total_blocks = 0;  // that fit there; 0 = no host tier
  bool operator==(const Load&) const = default;
};

// Whether a worker can take a sequence: well-formed, in time, short enough, and with room in the queue. Returns why
// not.
struct AdmissionLimits {
  QueueLimits queue;
  uint32_t vocab_size = 0;
};
std::optional<Failure> RefusalOf(const SequenceSpec& spec, base::TimeNs budget_ns, const AdmissionLimits& limits,
                                 const Planner& planner);

// `now + budget_ns`, clamped to the end of time.
base::TimeNs DeadlineOf(base::TimeNs now, base::TimeNs budget_ns);

}  // namespace agentserve::engine
