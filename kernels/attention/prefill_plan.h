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

}  // namespace agentserve::kernels::cuda
