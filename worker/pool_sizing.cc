#include "worker/pool_sizing.h"

#include <algorithm>
#include <fstream>

#include "base/strings.h"

namespace agentserve::worker {
namespace {

constexpr uint64_t kMib = 1 << 20;
constexpr uint64_t kMaxBlocks = 1u << 24;
// Sequences at full context that the default pool holds, if memory allows.
constexpr uint64_t kDefaultSequences = 8;

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
    if (bytes == 0) {
      // The pool is committed at start, so its size is start-up time (about 1 s per GiB): a small model gets a small
      // pool.
      const uint64_t wanted = kDefaultSequences * in.model_context * in.layout.BytesPerToken();
      bytes = std::min<uint64_t>({in.available_bytes / 4, 1024 * kMib, std::max(wanted, 64 * kMib)});
      source = base::StrCat("min(1/4 of ", in.available_bytes / kMib, " MiB available, 1024 MiB, ", kDefaultSequences,
                            " sequences at full context)");
    }
    blocks = bytes / block_bytes;
  }
  // Four blocks are the least with which a prompt and some output fit at all.
  if (blocks < 4 || blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(base::StrCat("the KV pool would have ", blocks, " blocks of ", block_bytes,
                                                   " bytes (from ", source, "); it needs 4 to ", kMaxBlocks,
                                                   "; set --kv-blocks or --kv-memory-mib"));
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
