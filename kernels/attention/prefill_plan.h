// Shape of the prefill attention work list; shared by the planner (host) and the kernels.
#pragma once

#include <cstdint>

namespace agentserve::kernels::cuda {

// Query rows of one tile. A multiple of 64.
constexpr int PrefillTileRows(int head_dim) { return head_dim == 128 ? 128 : 192; }

// Packed tile: sequence << 16 | tile in the sequence.
constexpr int32_t PackPrefillTile(int sequence, int tile) { return sequence << 16 | tile; }
constexpr int PrefillTileSequence(int32_t packed) { return packed >> 16; }
constexpr int PrefillTileIndex(int32_t packed) { return packed & 0xffff; }

// New tokens of a sequence that a tile covers. The first tile takes what does not fill a whole one: the rows that see
// the fewest keys.
struct PrefillRows {
  int begin, end;
};
constexpr int PrefillTileCount(int tokens, int tile_rows) { return (tokens + tile_rows - 1) / tile_rows; }
constexpr PrefillRows PrefillTileExtent(int tokens, int tile, int tile_rows) {
  const int end = tokens - (PrefillTileCount(tokens, tile_rows) - 1 - tile) * tile_rows;
  return {tile == 0 ? 0 : end - tile_rows, end};
}

}  // namespace agentserve::kernels::cuda
