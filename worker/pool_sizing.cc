#include "worker/pool_sizing.h"

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::worker {
namespace {

constexpr uint64_t kMib = 1 << 20;
constexpr uint64_t kMaxBlocks = 1u << 24;
// Sequences at full context that the default pool holds, if memory allows.
constexpr uint64_t kDefaultSequences = 8;
// Rounds of full batches at full context beyond which a GPU's memory is of no use to a small model; the tables of the
// pool cost host memory.
constexpr uint64_t kDeviceRounds = 4;
// What a GPU needs beside weights, executor and pool: lazily loaded kernels, peers' mappings, staging.
constexpr uint64_t kDeviceMargin = 1024 * kMib;
// A pool that is committed at start and is smaller than this serves nobody.
constexpr uint64_t kLeastBlocks = 4;
constexpr uint64_t kMaxAutoPinned = 8192 * kMib;

std::string Mib(uint64_t bytes) { return base::StrCat(bytes / kMib, " MiB"); }

std::string Percent(double share) {
  char text[16];
  std::snprintf(text, sizeof(text), "%.0f %%", 100 * share);
  return text;
}

uint64_t Minus(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

// Bytes for the pool; `source` says why.
absl::StatusOr<uint64_t> DeviceBytes(const PoolSizingInput& in, uint64_t wanted, std::string* source) {
  const DeviceBudget& d = *in.device;
  const uint64_t least = kLeastBlocks * in.layout.BlockBytes();
  const auto share = static_cast<uint64_t>(static_cast<double>(d.total_bytes) * d.utilization);
  const uint64_t taken = d.weight_bytes + d.executor_bytes;
  const uint64_t free = Minus(d.free_bytes, d.executor_bytes + kDeviceMargin);
  const std::string figures =
      base::StrCat(d.name, " has ", Mib(d.total_bytes), ", ", Mib(d.free_bytes), " of them free; weights ",
                   Mib(d.weight_bytes), ", workspaces ", Mib(d.executor_bytes), ", margin ", Mib(kDeviceMargin));
  const uint64_t need = wanted != 0 ? wanted : least;
  if (free < need) {
    return absl::ResourceExhaustedError(
        base::StrCat("the KV pool needs ", Mib(need + kMib - 1), " of GPU memory and ", Mib(need - free + kMib - 1),
                     " are missing (", figures, "); ", wanted != 0 ? "lower --kv-memory-mib or --kv-blocks, " : "",
                     "lower --step-tokens or --max-batch, end what else uses the GPU, or take a smaller model"));
  }
  if (wanted != 0) return wanted;
  if (share < taken + least) {
    return absl::ResourceExhaustedError(base::StrCat(
        Mib(taken + least - share + kMib - 1), " of GPU memory are missing: --gpu-memory-utilization allows ",
        Percent(d.utilization), " = ", Mib(share), " (", figures,
        "); raise --gpu-memory-utilization, lower --step-tokens or --max-batch, or put fewer workers on this GPU"));
  }
  const uint64_t useful =
      std::max(kDeviceRounds * in.max_batch * in.model_context * in.layout.BytesPerToken(), 64 * kMib);
  *source = base::StrCat("min(", Percent(d.utilization), " of ", Mib(d.total_bytes), " - weights ", Mib(d.weight_bytes),
                         " - workspaces ", Mib(d.executor_bytes), ", free ", Mib(d.free_bytes), " - workspaces - ",
                         Mib(kDeviceMargin), ", ", kDeviceRounds * in.max_batch, " sequences at full context)");
  return std::min({share - taken, free, useful});
}

}  // namespace

absl::StatusOr<PoolSizing> SizePool(const PoolSizingInput& in) {
  if (in.blocks < 0 || in.memory_mib < 0)
    return absl::InvalidArgumentError("--kv-blocks and --kv-memory-mib must be >= 0");
  const uint64_t block_bytes = in.layout.BlockBytes();
  PoolSizing out;
  uint64_t blocks = static_cast<uint64_t>(in.blocks);
  std::string source = "--kv-blocks";
  if (blocks == 0) {
    uint64_t bytes = static_cast<uint64_t>(in.memory_mib) * kMib;
    source = "--kv-memory-mib";
    if (in.device) {
      AS_ASSIGN_OR_RETURN(bytes, DeviceBytes(in, bytes, &source));
    } else if (bytes == 0) {
      // The pool is committed at start, so its size is start-up time (about 1 s per GiB): a small model gets a small
      // pool.
      const uint64_t wanted = kDefaultSequences * in.model_context * in.layout.BytesPerToken();
      bytes = std::min<uint64_t>({in.available_bytes / 4, 1024 * kMib, std::max(wanted, 64 * kMib)});
      source = base::StrCat("min(1/4 of ", in.available_bytes / kMib, " MiB available, 1024 MiB, ", kDefaultSequences,
                            " sequences at full context)");
    }
    blocks = bytes / block_bytes;
  } else if (in.device && blocks <= kMaxBlocks) {
    AS_RETURN_IF_ERROR(DeviceBytes(in, blocks * block_bytes, &source).status());
  }
  // Four blocks are the least with which a prompt and some output fit at all.
  if (blocks < kLeastBlocks || blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(base::StrCat("the KV pool would have ", blocks, " blocks of ", block_bytes,
                                                   " bytes (from ", source, "); it needs ", kLeastBlocks, " to ",
                                                   kMaxBlocks, "; set --kv-blocks or --kv-memory-mib"));
  }
  out.num_blocks = static_cast<uint32_t>(blocks);
  const uint64_t tokens = blocks * in.layout.block_tokens;
  out.context_length = static_cast<uint32_t>(std::min<uint64_t>(in.model_context, tokens + 1));
  out.explanation = base::StrCat(
      source, ": ", blocks, " blocks x ", block_bytes, " bytes = ", blocks * block_bytes / kMib, " MiB; x ",
      in.layout.block_tokens, " tokens = ", tokens, " tokens = ", tokens / std::max(1u, out.context_length),
      " sequences at the full context of ", out.context_length,
      out.context_length < in.model_context
          ? base::StrCat(" (the model could take ", in.model_context, ": raise --kv-memory-mib to serve it)")
          : std::string());
  return out;
}

absl::StatusOr<HostTierSizing> SizeHostTier(const HostTierInput& in) {
  HostTierSizing out;
  const uint64_t block_bytes = in.layout.BlockBytes();
  if (in.memory_mib == 0 || (in.memory_mib < 0 && !in.by_default)) {
    out.explanation = "off (see --host-kv-mib)";
    return out;
  }
  uint64_t bytes = 0;
  std::string source = "--host-kv-mib";
  if (in.memory_mib > 0) {
    bytes = static_cast<uint64_t>(in.memory_mib) * kMib;
    if (bytes > in.available_bytes) {
      return absl::InvalidArgumentError(base::StrCat("--host-kv-mib asks for ", in.memory_mib, " MiB but ",
                                                     Mib(in.available_bytes), " of memory are available; lower it"));
    }
  } else {
    const uint64_t pool = uint64_t{in.pool_blocks} * block_bytes;
    bytes = in.on_gpu ? std::min<uint64_t>({4 * pool, in.available_bytes / 4, kMaxAutoPinned})
                      : std::min<uint64_t>(pool, in.available_bytes / 8);
    source = in.on_gpu ? base::StrCat("min(4 x pool, 1/4 of ", Mib(in.available_bytes), " available, ",
                                      Mib(kMaxAutoPinned), ")")
                       : base::StrCat("min(pool, 1/8 of ", Mib(in.available_bytes), " available)");
  }
  out.slots = static_cast<uint32_t>(std::min(bytes / block_bytes, kMaxBlocks));
  out.explanation = base::StrCat(source, ": ", out.slots, " blocks = ", Mib(out.slots * block_bytes), " = ",
                                 uint64_t{out.slots} * in.layout.block_tokens, " tokens");
  return out;
}

uint64_t AvailableMemoryBytes() {
  uint64_t available = 4096 * kMib;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  while (meminfo >> key) {
    uint64_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) {
      available = kib * 1024;
      break;
    }
    meminfo.ignore(256, '\n');
  }
  uint64_t limit = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit && limit > 0) available = std::min(available, limit);
  return available;
}

}  // namespace agentserve::worker
