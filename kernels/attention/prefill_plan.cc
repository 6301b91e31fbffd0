#include "kernels/attention/prefill_plan.h"

#include <algorithm>

#include "kernels/attention/attention_cuda.h"

namespace agentserve::kernels::cuda {

int MaxPrefillTiles(int max_tokens, int max_sequences, int head_dim) {
  // Every sequence begins with at most one tile that is not full.
  return max_tokens / PrefillTileRows(head_dim) + max_sequences;
}

int PlanPrefill(const int32_t* cu_tokens, const int32_t* starts, int sequences, int head_dim, int32_t* tiles) {
  const int rows = PrefillTileRows(head_dim);
  int count = 0;
  for (int s = 0; s < sequences; ++s) {
    const int tokens = cu_tokens[s + 1] - cu_tokens[s];
    for (int tile = 0; tile < PrefillTileCount(tokens, rows); ++tile) tiles[count++] = PackPrefillTile(s, tile);
  }
  // Longest first: positions that the last row of the tile attends to. Ties by sequence and tile, so that equal work
  // keeps the order of the batch.
  const auto length = [&](int32_t packed) {
    const int s = PrefillTileSequence(packed);
    return starts[s] + PrefillTileExtent(cu_tokens[s + 1] - cu_tokens[s], PrefillTileIndex(packed), rows).end;
  };
  std::sort(tiles, tiles + count, [&](int32_t a, int32_t b) {
    const int length_a = length(a), length_b = length(b);
    return length_a != length_b ? length_a > length_b : a < b;
  });
  return count;
}

}  // namespace agentserve::kernels::cuda
