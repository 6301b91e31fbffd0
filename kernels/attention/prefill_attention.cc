// Checks, tensor maps and dispatch of PrefillAttention.
#include <cuda.h>

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/prefill_attention_hopper.h"
#include "kernels/attention/prefill_attention_mma.h"
#include "kernels/attention/prefill_plan.h"
#include "kernels/tile/tensor_map.h"

namespace agentserve::kernels::cuda {
namespace {

// More blocks than any pool has: the pool's own size is not part of the parameters, and tables are trusted.
constexpr uint64_t kMaxBlocks = 1 << 22;

absl::Status MapKv(const PagedKv& kv, size_t offset, int page_rows, int blocks, CUtensorMap* map) {
  TensorShape shape;
  shape.rank = 3;
  shape.size[0] = kv.head_dim;
  shape.size[1] = uint64_t{kv.kv_heads} * kv.block_tokens;
  shape.size[2] = kMaxBlocks;
  shape.stride[0] = kv.head_dim * 2;
  shape.stride[1] = kv.block_bytes;
  shape.box[0] = 64;
  shape.box[1] = static_cast<uint32_t>(page_rows);
  shape.box[2] = static_cast<uint32_t>(blocks);
  return EncodeBf16(kv.base + offset, shape, map);
}

absl::Status MapQueries(const PrefillAttentionParams& params, CUtensorMap* map) {
  const uint64_t head_dim = params.kv.head_dim, heads = static_cast<uint64_t>(params.q_heads);
  TensorShape shape;
  shape.rank = 3;
  shape.size[0] = head_dim;
  shape.size[1] = heads;
  shape.size[2] = static_cast<uint64_t>(params.tokens);
  shape.stride[0] = head_dim * 2;
  shape.stride[1] = heads * head_dim * 2;
  shape.box[0] = 64;
  shape.box[2] = static_cast<uint32_t>(PrefillTileRows(static_cast<int>(head_dim)));
  return EncodeBf16(params.q, shape, map);
}

}  // namespace

size_t PrefillWorkspaceBytes() { return 256; }

absl::Status PrefillAttention(const PrefillAttentionParams& params, const LaunchContext& context) {
  const PagedKv& kv = params.kv;
  if (kv.head_dim != 64 && kv.head_dim != 128) {
    return absl::InvalidArgumentError("prefill attention: head_dim must be 64 or 128");
  }
  if (kv.kv_heads == 0 || params.q_heads % static_cast<int>(kv.kv_heads) != 0) {
    return absl::InvalidArgumentError("prefill attention: q_heads must be a multiple of kv_heads");
  }
  if (params.num_tiles == 0) return absl::OkStatus();
  // One box of the tensor copy engine is a page of 16 to 64 rows inside one block.
  int page_rows = 64;
  while (kv.block_tokens % static_cast<uint32_t>(page_rows) != 0) page_rows /= 2;
  const bool aligned = kv.block_bytes % 16 == 0 && kv.k_offset % 16 == 0 && kv.v_offset % 16 == 0 &&
                       kv.head_bytes == size_t{kv.block_tokens} * kv.head_dim * 2;
  if (page_rows < 16 || !aligned) return PrefillAttentionMma(params, context);
  PrefillLaunch launch;
  launch.params = params;
  launch.page_rows = page_rows;
  launch.pages_per_block = static_cast<int>(kv.block_tokens) / page_rows;
  launch.scale_log2 = params.scale * 1.4426950408889634f;
  launch.items = params.num_tiles * params.q_heads;
  if (params.workspace != nullptr && params.workspace_bytes >= 2 * sizeof(int)) {
    launch.counters = static_cast<int*>(params.workspace);
  }
  if (absl::Status status = MapQueries(params, &launch.q); !status.ok()) return status;
  if (absl::Status status = MapKv(kv, kv.k_offset, page_rows, 1, &launch.k); !status.ok()) return status;
  if (absl::Status status = MapKv(kv, kv.k_offset, page_rows, 64 / page_rows, &launch.k_run); !status.ok())
    return status;
  if (absl::Status status = MapKv(kv, kv.v_offset, page_rows, 1, &launch.v); !status.ok()) return status;
  if (absl::Status status = MapKv(kv, kv.v_offset, page_rows, 64 / page_rows, &launch.v_run); !status.ok())
    return status;
  return ToStatus(kv.head_dim == 64 ? LaunchPrefill64(launch, context) : LaunchPrefill128(launch, context),
                  "prefill attention");
}

}  // namespace agentserve::kernels::cuda
