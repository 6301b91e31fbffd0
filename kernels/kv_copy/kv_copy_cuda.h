// Moves and checks KV blocks on the GPU: gather of layers out of a peer's pool, digest of blocks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct KvGatherParams {
  const std::byte* src = nullptr;        // block 0 of the source pool; may be a peer GPU's memory, only read
  std::byte* dst = nullptr;              // block 0 of this pool
  const uint32_t* src_blocks = nullptr;  // [count] device
  const uint32_t* dst_blocks = nullptr;  // [count] device
  int count = 0;
  size_t block_bytes = 0;
  size_t offset = 0;  // inside a block, multiple of 16
  size_t bytes = 0;   // per block from `offset`, multiple of 16
  int sms = 32;       // thread blocks: 32 reach the link's rate and leave the rest of the GPU to the steps
};
absl::Status KvGather(const KvGatherParams& params, const LaunchContext& context);

// 64-bit digest of the first tokens[i] rows of every (layer, K|V, head) piece of block blocks[i]; never 0. The function
// is specified in docs/kv_block_format.md section 4; kernels/kv_copy/kv_digest.h computes the same on the CPU.
struct KvDigestParams {
  const std::byte* pool = nullptr;
  size_t block_bytes = 0;
  size_t piece_bytes = 0;            // block_tokens * head_dim * element bytes
  size_t row_bytes = 0;              // head_dim * element bytes
  const uint32_t* blocks = nullptr;  // [count] device
  const uint32_t* tokens = nullptr;  // [count] device
  uint64_t* digests = nullptr;       // [count] device
  int count = 0;
};
absl::Status KvDigest(const KvDigestParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
