// How many KV blocks a worker keeps. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "engine/kv_layout.h"

namespace agentserve::worker {

struct PoolSizingInput {
  engine::KvLayout layout;
  uint32_t model_context = 0;
  int64_t blocks = 0;            // wanted; 0 = from memory
  int64_t memory_mib = 0;        // wanted; 0 = automatic
  uint64_t available_bytes = 0;  // memory of this machine that is free now
};
struct PoolSizing {
  uint32_t num_blocks = 0;
  // Most tokens of one sequence: the model's limit, or one more than the pool holds (the last token needs no KV).
  uint32_t context_length = 0;
  // The arithmetic, for the log.
  std::string explanation;
};

// Automatic: a quarter of the available memory, at most 1 GiB. More blocks than 2^24 are refused.
absl::StatusOr<PoolSizing> SizePool(const PoolSizingInput& in);

// MemAvailable of /proc/meminfo, or the cgroup's limit if that is smaller.
uint64_t AvailableMemoryBytes();

}  // namespace agentserve::worker
