// What the host side of the decode step hands to the kernel.
#pragma once

#include <cuda.h>

#include "kernels/decode_step/decode_step_cuda.h"

namespace agentserve::kernels::cuda {

inline constexpr int kStepWarps = 8;  // that compute
inline constexpr int kStepThreads = 32 * kStepWarps;
inline constexpr int kStepFinishers = 2;                                    // warps that finish rows
inline constexpr int kStepBlock = kStepThreads + 32 * kStepFinishers + 64;  // and one that loads, one that plans
inline constexpr int kStepStageBytes = 16 * 1024;
inline constexpr int kStepMaxStages = 13;
inline constexpr int kStepMaxPiece = 4096;  // k of a stage
inline constexpr int kStepUnit = 8;         // weight rows that are finished together
inline constexpr int kStepSlots = 4;        // tiles whose partial sums wait for a finishing warp
inline constexpr int kStepMaxLayers = 32;
inline constexpr int kStepMaxUnits = 4;  // of O and of down in one block

struct DecodeStepLayerArgs {
  DecodeStepLayerWeights weights;
};

// Exchange buffers, in bytes from their beginning: bf16 rows [layer % 2][row][...], and attention's parts [layer %
// 2][kv_head][segment] of fp32 O [group][head_dim] and (max, sum) [group].
struct DecodeStepBuffers {
  size_t qkv, attention, middle, ffn, out, parts, best, bytes;
  size_t part_bytes;
  int segments;  // of a KV head
};

enum class StepOp : uint8_t { kQkv, kO, kGateUp, kDown, kHead };
// What is counted per layer: blocks' finishing warps that are through with their share.
enum class StepDone : uint8_t { kQkv, kParts, kAttention, kO, kGateUp, kDown };
inline constexpr int kStepDones = 6;
inline constexpr int kStepMaxHeads = 16;          // counters of parts: one per KV head
inline constexpr size_t kStepCounterBytes = 128;  // a line each
inline constexpr int kStepCounters = kStepMaxLayers * (kStepDones + kStepMaxHeads) + 1;

struct DecodeStepArgs {
  DecodeStepLayerArgs layers[kStepMaxLayers];
  CUtensorMap kv;  // the pool as rows of head_dim
  DecodeStepParams step;
  DecodeStepBuffers at;
  std::byte* buffers;
  std::byte* counters;  // two sets of kStepCounters that take turns
  uint32_t* state;      // [blocks] the set of this step
  const __nv_bfloat16* embedding;
  const __nv_bfloat16* lm_head;
  const __nv_bfloat16* final_norm;
  const __nv_bfloat16* cos;
  const __nv_bfloat16* sin;
  std::byte* pool;
  size_t block_bytes, layer_bytes, head_bytes;
  uint32_t block_tokens, rows_per_block;
  int num_layers, q_heads, kv_heads, vocab;
  int group_blocks;  // that share a KV head
  float norm_eps, scale_log2;
  int stages;
};

}  // namespace agentserve::kernels::cuda
