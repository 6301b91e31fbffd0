// Moves and checks KV blocks on the GPU: gather of layers out of a peer's pool, and digest sums of layers. Both are one
// walk over the same piece of many blocks; the sums cost the gather no second read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

// One block of a list that lies in device memory.
struct KvMove {
  uint32_t from = 0, to = 0;  // index in the source pool, and in this one; KvSums reads `from`
  uint32_t tokens = 0;        // valid rows, for the sums
};

// Where digest sums go (kernels/kv_copy/kv_digest.h). The kernel adds to `sums`; one that has `out` then moves them
// there and leaves zeros, so that the next use begins at 0.
struct KvSumsTarget {
  size_t piece_bytes = 0;    // block_tokens * head_dim * element bytes
  size_t row_bytes = 0;      // head_dim * element bytes
  uint64_t* sums = nullptr;  // [count] device; null: no sums are wanted
  uint64_t* out = nullptr;   // [count] device, or pinned host memory
};

// How the host hears of a kernel's end without a synchronisation of the stream.
struct KvDone {
  uint32_t* arrived = nullptr;  // device, 0 before and after; needed for `out` too
  uint32_t* word = nullptr;  // pinned host memory: becomes `ticket` once all the kernel wrote is visible; null: untold
  uint32_t ticket = 0;
};

struct KvGatherParams {
  const std::byte* src = nullptr;  // block 0 of the source pool; may be a peer GPU's memory, only read
  std::byte* dst = nullptr;        // block 0 of this pool
  const KvMove* blocks = nullptr;  // [count] device
  int count = 0;
  size_t block_bytes = 0;
  size_t offset = 0;  // inside a block, multiple of 16; of a whole piece if there are sums
  size_t bytes = 0;   // per block from `offset`; likewise
  int sms = 32;       // thread blocks: 32 reach the link's rate and leave the rest of the GPU to the steps
  KvSumsTarget sums;
  KvDone done;
};
absl::Status KvGather(const KvGatherParams& params, const LaunchContext& context);

// Only the sums, of blocks `from`; `dst` is ignored. `bytes` 0: nothing is added, only `out` and `done` are served.
absl::Status KvSums(const KvGatherParams& params, const LaunchContext& context);

// A run of bytes and its copy; addresses and size are multiples of 16. Either side may be pinned host memory.
struct KvPiece {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  uint32_t bytes = 0;
};
struct KvCopyPiecesParams {
  const KvPiece* pieces = nullptr;  // [count] device, or pinned host memory
  int count = 0;
  int sms = 16;  // enough for a PCIe link
};
// Copies between host and device that a copy engine would need a command each for: many short pieces.
absl::Status KvCopyPieces(const KvCopyPiecesParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
