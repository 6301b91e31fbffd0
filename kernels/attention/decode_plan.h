// How a batch of decodes is cut into units of work for the decode attention kernel. Pure host code.
#pragma once

#include <cstdint>

namespace agentserve::kernels::cuda {

// One unit of decode work: positions [begin, end) of one sequence.
struct DecodeUnit {
  int32_t row;    // of q; -1 = nothing to do, as are all units after it
  int32_t begin;  // multiple of block_tokens
  int32_t end;
  int32_t split;  // index of this unit among the row's
};

// Made on the host once per step and used by all layers. Grid and buffers are sized for the bucket, so a captured graph
// can be replayed with other contents.
struct DecodePlanLimits {
  int max_rows = 0;
  int max_units = 0;  // also the number of partial results
  int max_context = 0;
  int kv_heads = 8;
  // Thread blocks that share a unit and a KV head: 1, 2, 4 or 8. More for the smallest batches, which then need
  // fewer partial results; 1 with a fixed chunk.
  int cluster = 1;
  // KV heads that a block takes at once, its warps divided among them: then a batch that would give every block several
  // short tasks gives it a longer one. 1 with clusters and with a fixed chunk.
  int heads = 1;
  // Parts of split rows are added up by a second kernel. So with a fixed chunk, where most rows are split.
  bool combine_kernel = false;
};
// Limits for plans with that `fixed_chunk` (0: adaptive). A fixed chunk needs room for every row at max_context.
DecodePlanLimits DecodeLimits(int max_rows, int max_context, int num_sms, int fixed_chunk = 0, int kv_heads = 8,
                              int head_dim = 64);

// Fills units[max_units] and splits[rows + 1] (first unit of each row; units of a row are consecutive, in KV order; the
// last entry is the number of units). `kv_lengths` counts the new token; a row of length 0 gets no unit and its output
// is not written. `fixed_chunk` > 0 (rounded up to whole blocks): every unit but the last of a row has exactly that
// many positions, whatever the batch (batch-invariant); 0: chosen to fill the GPU. Returns the number of units, or -1
// if a fixed chunk needs more than max_units (never with limits made for that chunk).
int PlanDecode(const int32_t* kv_lengths, int rows, int block_tokens, int num_sms, int fixed_chunk,
               const DecodePlanLimits& limits, DecodeUnit* units, int32_t* splits);

}  // namespace agentserve::kernels::cuda
