// How many KV blocks a worker keeps. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/kv_layout.h"

namespace agentserve::worker {

// Memory of the GPU on which the pool will be, with the weights in place and the executor still to come.
struct DeviceBudget {
  std::string name;
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;      // now, for everybody
  uint64_t weight_bytes = 0;    // ours
  uint64_t executor_bytes = 0;  // what the executor will take
  double utilization = 0.9;     // share of the total that this worker may use
};

struct PoolSizingInput {
  engine::KvLayout layout;
  uint32_t model_context = 0;
  int64_t blocks = 0;            // wanted; 0 = from memory
  int64_t memory_mib = 0;        // wanted; 0 = automatic
  uint64_t available_bytes = 0;  // memory of this machine that is free now
  uint32_t max_batch = 64;
  std::optional<DeviceBudget> device;  // absent: the pool is in memory of this machine
};
struct PoolSizing {
  uint32_t num_blocks = 0;
  // Most tokens of one sequence: the model's limit, or one more than the pool holds (the last token needs no KV).
  uint32_t context_length = 0;
  // The arithmetic, for the log.
  std::string explanation;
};

// Automatic on the CPU: a quarter of the available memory, at most 1 GiB. On a GPU: what weights and executor leave of
// the worker's share. More blocks than 2^24 are refused. RESOURCE_EXHAUSTED: the GPU is too small or too full; says how
// much is missing and which flags help.
absl::StatusOr<PoolSizing> SizePool(const PoolSizingInput& in);

struct HostTierInput {
  engine::KvLayout layout;
  uint32_t pool_blocks = 0;
  int64_t memory_mib = -1;       // wanted; -1 = automatic, 0 = none
  uint64_t available_bytes = 0;  // memory of this machine that is free now, without the pool
  bool on_gpu = false;
  bool by_default = true;  // whether -1 means any
};
struct HostTierSizing {
  uint32_t slots = 0;
  std::string explanation;
};
// Room in host memory for KV below the pool. Automatic for decode workers on the CPU: as large as the pool, at most an
// eighth of the available memory; pages are taken as they are used. With a GPU: four times the pool, at most a quarter
// of the available memory and 8 GiB, since it is pinned at start (about 0.3 s per GiB). INVALID_ARGUMENT: more than
// there is.
absl::StatusOr<HostTierSizing> SizeHostTier(const HostTierInput& in);

// MemAvailable of /proc/meminfo, or the cgroup's limit if that is smaller.
uint64_t AvailableMemoryBytes();

}  // namespace agentserve::worker
