// Causal grouped-query attention over paged KV on the GPU: a decode kernel (one query row a sequence, split over KV)
// and a prefill kernel (many rows a sequence, after a prefix that is already in the pool). fp32 scores, softmax and
// accumulation, probabilities rounded to bf16 for the second product, one rounding of the result. head_dim 64 or 128;
// block_tokens a multiple of 16.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention/decode_plan.h"
#include "kernels/attention/paged_kv.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

struct DecodeAttentionParams {
  const __nv_bfloat16* q = nullptr;  // [rows][q_heads][head_dim]
  __nv_bfloat16* out = nullptr;      // the same
  PagedKv kv;
  int q_heads = 0;
  float scale = 0;                        // 1 / sqrt(head_dim)
  int rows = 0;                           // of the bucket; rows without units are not written
  const int32_t* block_tables = nullptr;  // [rows][table_stride]
  int table_stride = 0;
  const DecodeUnit* units = nullptr;  // device copy of the plan
  const int32_t* splits = nullptr;    // device copy, [rows + 1]
  int max_units = 0;                  // grid size is derived from it
  int cluster = 1;                    // DecodePlanLimits::cluster
  int heads = 1;                      // DecodePlanLimits::heads
  bool combine_kernel = false;        // DecodePlanLimits::combine_kernel
  // DecodeWorkspaceBytes; its first kWorkspaceZeroBytes (linear_cuda.h) must be zero before the first call ever, and
  // every call leaves them zero.
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};
// With context.pdl the plan, the block tables and the KV of all positions but each row's last are read before the wait
// for the kernel before. So these must have been written before the last kernel that triggers after its own wait
// (launch.h, rule 3): in a step, before the attention of the layer before; or by anything the chain fully depends on (a
// copy, another graph). q and the newest KV row may come from the kernel before.
// Q heads a KV head at most 8. A row's bits depend on its q, its KV and its own units only.
size_t DecodeWorkspaceBytes(const DecodePlanLimits& limits, int q_heads, int head_dim);
absl::Status DecodeAttention(const DecodeAttentionParams& params, const LaunchContext& context);

struct PrefillAttentionParams {
  const __nv_bfloat16* q = nullptr;  // [tokens][q_heads][head_dim]
  __nv_bfloat16* out = nullptr;      // the same
  PagedKv kv;
  int q_heads = 0;
  float scale = 0;
  int sequences = 0;
  int tokens = 0;                         // of all sequences
  int max_new = 0;                        // most new tokens of a sequence
  const int32_t* cu_tokens = nullptr;     // [sequences + 1] first row of each; device
  const int32_t* starts = nullptr;        // [sequences] position of the first new token = length of the prefix
  const int32_t* block_tables = nullptr;  // [sequences][table_stride]
  int table_stride = 0;
  // Tile list made on the host by PlanPrefill, longest work first: device copy.
  const int32_t* tiles = nullptr;  // [num_tiles] packed (sequence << 16 | tile in the sequence), see PlanPrefill
  int num_tiles = 0;
  // PrefillWorkspaceBytes of its own, zero before the first call ever; every call leaves it zero. Null: a fixed order
  // of work instead of a counter, a little slower on ragged batches.
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};
// Fills tiles (at most MaxPrefillTiles) on the host; returns how many.
int MaxPrefillTiles(int max_tokens, int max_sequences, int head_dim);
int PlanPrefill(const int32_t* cu_tokens, const int32_t* starts, int sequences, int head_dim, int32_t* tiles);
size_t PrefillWorkspaceBytes();
// A row's bits depend only on its own sequence up to it, not on chunking or batch.
absl::Status PrefillAttention(const PrefillAttentionParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
