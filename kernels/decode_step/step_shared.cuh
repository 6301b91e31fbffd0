// Shared memory, shares of work and walks around the ring that the roles of the decode step have in common.
#pragma once

#include "kernels/attention/decode_tile.cuh"
#include "kernels/decode_step/decode_step_args.h"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/mma.cuh"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/tma.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

// Sizes that are compiled in. hidden = q_heads * head_dim.
template <int kRowsValue, int kHiddenValue, int kFfnValue, int kHeadDimValue>
struct StepConfig {
  static constexpr int kRows = kRowsValue;
  static constexpr int kHidden = kHiddenValue;
  static constexpr int kFfn = kFfnValue;
  static constexpr int kHeadDim = kHeadDimValue;
  static constexpr int kSlotBytes = 2 * kStepUnit * kStepWarps * 8 * 4 * kRows;  // partial sums of a tile
};

// How the matrix of an operation goes through the ring. A tile is 8 rows by all of k, of gate-up 16: 8 gate and 8 up. A
// stage is kStageRows rows by kPiece of k: contiguous in memory where kPiece is all of k, else two contiguous pieces.
template <typename C, StepOp kOp>
struct StepMatrix {
  static constexpr int kK = kOp == StepOp::kDown ? C::kFfn : C::kHidden;
  static constexpr int kPiece = kK < kStepMaxPiece ? kK : kStepMaxPiece;
  static constexpr int kPieces = kK / kPiece;
  static constexpr int kFit = kStepStageBytes / (2 * kPiece);  // rows
  static constexpr int kStageRows = kPieces > 1 ? 2 : kFit >= 8 ? 8 : kFit >= 4 ? 4 : 2;
  static constexpr int kStageBytes = kStageRows * kPiece * 2;
  static constexpr int kInFlight = 48 * 1024 / kStageBytes;
  static constexpr int kUnits = kOp == StepOp::kGateUp ? 2 : 1;
  static constexpr int kStages = kUnits * kStepUnit / kStageRows * kPieces;  // of a tile
  // A warp's part of a piece, in lines of 64 k; and of all of k.
  static constexpr int kLines = kPiece / kStepWarps / 64;
  static constexpr int kAllLines = kPieces * kLines;
  static_assert(kK % kPiece == 0 && kPiece % (128 * kStepWarps) == 0 && kStageBytes <= kStepStageBytes);
};
template <typename C, StepOp kOp>
__device__ __forceinline__ int StepTiles(const DecodeStepArgs& a) {
  return (kOp == StepOp::kQkv      ? C::kHidden + 2 * a.kv_heads * C::kHeadDim
          : kOp == StepOp::kGateUp ? C::kFfn
          : kOp == StepOp::kHead   ? a.vocab
                                   : C::kHidden) /
         kStepUnit;
}
template <StepOp kOp>
__device__ __forceinline__ const __nv_bfloat16* StepWeights(const DecodeStepArgs& a, int layer) {
  const DecodeStepLayerWeights& w = a.layers[layer].weights;
  return kOp == StepOp::kQkv      ? w.qkv
         : kOp == StepOp::kO      ? w.o
         : kOp == StepOp::kGateUp ? w.gate_up
         : kOp == StepOp::kDown   ? w.down
                                  : a.lm_head;
}

// Tiles [first, first + count) of a matrix are this block's.
struct StepShare {
  int first, count;
};
__device__ __forceinline__ StepShare ShareOf(int tiles) {
  const int first = static_cast<int>(static_cast<long long>(tiles) * blockIdx.x / gridDim.x);
  return {first, static_cast<int>(static_cast<long long>(tiles) * (blockIdx.x + 1) / gridDim.x) - first};
}
// Finishing warps of all blocks that have any of so many tiles.
__device__ __forceinline__ unsigned FinishersOf(int tiles) {
  return static_cast<unsigned>(min(tiles, static_cast<int>(gridDim.x) * kStepFinishers));
}

// A part of a row's positions in this block: tiles of 16 of them.
struct StepSegment {
  int row, begin, end;
};

template <int kRows>
struct StepShared {
  uint64_t full[kStepMaxStages], empty[kStepMaxStages];
  uint64_t sums_full[kStepSlots], sums_empty[kStepSlots];
  uint64_t attended, merged, planned;
  float squares[kRows][kStepWarps];
  float residual[kStepMaxUnits][kRows][kStepUnit];
  __nv_bfloat16 cos[kRows][64], sin[kRows][64];
  StepSegment segments[kRows];
  int segment_count;
  int position[kRows], slot[kRows], id[kRows];
  int first_block[kRows], last_block[kRows];  // of a KV head's blocks, those that attend to the row
  std::byte* counters;                        // of this step
  Best best[kStepFinishers][kRows];
};

// Dynamic shared memory behind the ring: partial sums, where the warps' attention results lie at other times (a block
// attends after its finishing warps are through with QKV, and computes O when everybody's attention is merged);
// StepShared.
struct StepLayout {
  int sums, scratch, shared, bytes;
  __host__ __device__ StepLayout(int stages, int slot_bytes, int group, int head_dim, int shared_bytes) {
    sums = scratch = stages * kStepStageBytes;
    const int attention = kStepWarps * (group * (head_dim + 8) * 4 + 8 * 8);
    shared = sums + (kStepSlots * slot_bytes > attention ? kStepSlots * slot_bytes : attention);
    bytes = shared + shared_bytes;
  }
};

// A walk around the ring.
struct StepRing {
  int stages;
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Advance() {
    if (++slot == stages) slot = 0, phase ^= 1;
  }
};

// One row of an exchange buffer of `values` bf16.
__device__ __forceinline__ std::byte* RowOf(const DecodeStepArgs& a, size_t buffer, int values, int rows, int layer,
                                            int row) {
  return a.buffers + buffer + static_cast<size_t>((layer % 2 * rows + row) * values) * 2;
}
__device__ __forceinline__ std::byte* PartOf(const DecodeStepArgs& a, int layer, int head, int segment) {
  return a.buffers + a.at.parts +
         static_cast<size_t>((layer % 2 * a.kv_heads + head) * a.at.segments + segment) * a.at.part_bytes;
}

__device__ __forceinline__ unsigned* CounterOf(std::byte* counters, int layer, StepDone done, int head = 0) {
  const int index = done == StepDone::kParts ? kStepDones + head : static_cast<int>(done);
  return reinterpret_cast<unsigned*>(counters + (layer * (kStepDones + kStepMaxHeads) + index) * kStepCounterBytes);
}
// One thread: what the warp stored before the __syncwarp before this is seen by those that await the count.
__device__ __forceinline__ void Arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
// One thread; a barrier then shows it to others. Traps after seconds: an error the host sees, not a GPU that hangs.
__device__ __forceinline__ void Await(const unsigned* counter, unsigned count) {
  const long long start = clock64();
  unsigned now;
  while (true) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    if (now >= count) return;
    if (clock64() - start > 4'000'000'000LL) __trap();
  }
}

// The time in the trace, if there is one.
__device__ __forceinline__ void Mark(const DecodeStepArgs& a, int event) {
  if (a.step.trace == nullptr) return;
  unsigned long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  a.step.trace[event * gridDim.x + blockIdx.x] = now;
}

}  // namespace agentserve::kernels::cuda
