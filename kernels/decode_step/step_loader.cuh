// The warp that keeps the ring full: all weights and all KV tiles of this block, in program order.
#pragma once

#include "kernels/decode_step/step_shared.cuh"

namespace agentserve::kernels::cuda {

template <typename C>
class StepLoader {
 public:
  __device__ __forceinline__ StepLoader(const DecodeStepArgs& a, char* ring, StepShared<C::kRows>& shared)
      : a_(a),
        base_(ring),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % 32),
        ring_{a.stages},
        landed_{a.stages},
        free_(a.step.in_flight > 0 ? a.step.in_flight : StepMatrix<C, StepOp::kQkv>::kInFlight) {}

  __device__ __forceinline__ void Run() {
#pragma unroll 1
    for (int layer = 0; layer < a_.num_layers; ++layer) {
      Weights<StepOp::kQkv>(layer);
      if (layer == 0) {
        MbarrierWait(&shared_.planned, 0);
        if (shared_.segment_count > 0) first_blocks_ = BlocksFrom(shared_.segments[0], 0);
      }
      Kv(layer);
      Weights<StepOp::kO>(layer);
      Weights<StepOp::kGateUp>(layer);
      Weights<StepOp::kDown>(layer);
    }
    Weights<StepOp::kHead>(0);
  }

 private:
  static constexpr int kTileBytes = 32 * C::kHeadDim;  // of K, and again of V
  static constexpr int kStageTiles = kStepStageBytes / (2 * kTileBytes);

  // Until there is room in the ring, and not too much on its way to it.
  __device__ __forceinline__ char* AwaitRoom() {
    if (--free_ < 0) {
      MbarrierWait(&shared_.full[landed_.slot], landed_.phase);
      landed_.Advance();
    }
    MbarrierWait(&shared_.empty[ring_.slot], ring_.phase ^ 1);
    return base_ + ring_.slot * kStepStageBytes;
  }

  template <StepOp kOp>
  __device__ __forceinline__ void Weights(int layer) {
    using M = StepMatrix<C, kOp>;
    const StepShare share = ShareOf(StepTiles<C, kOp>(a_));
    const char* from = reinterpret_cast<const char*>(StepWeights<kOp>(a_, layer)) +
                       static_cast<size_t>(share.first) * (M::kUnits * kStepUnit * M::kK * 2);
    const int stages = share.count * (M::kStages / M::kPieces);
    if (lane_ == 0) {
#pragma unroll 1
      for (int i = 0; i < stages; ++i) {
#pragma unroll 1
        for (int piece = 0; piece < M::kPieces; ++piece) {
          char* to = AwaitRoom();
          uint64_t* full = &shared_.full[ring_.slot];
          MbarrierArriveExpect(full, M::kStageBytes);
          if constexpr (M::kPieces == 1) {
            BulkLoad(to, from, M::kStageBytes, full);
          } else {
            BulkLoad(to, from + piece * M::kPiece * 2, M::kPiece * 2, full);
            BulkLoad(to + M::kPiece * 2, from + (M::kK + piece * M::kPiece) * 2, M::kPiece * 2, full);
          }
          ring_.Advance();
        }
        from += M::kStageRows * M::kK * 2;
      }
    }
    Share(ring_.slot, ring_.phase);
    Share(landed_.slot, landed_.phase);
    free_ = __shfl_sync(0xffffffffu, free_, 0);
  }

  // Lane 0's position is everybody's.
  __device__ __forceinline__ static void Share(int& slot, uint32_t& phase) {
    slot = __shfl_sync(0xffffffffu, slot, 0);
    phase = __shfl_sync(0xffffffffu, phase, 0);
  }

  // Lane i: the block of tile begin + at + i of a segment.
  __device__ __forceinline__ int BlocksFrom(const StepSegment& s, int at) const {
    const int tile = s.begin + at + lane_;
    if (tile >= s.end) return 0;
    return __ldg(a_.step.tables + static_cast<size_t>(s.row) * a_.step.table_stride +
                 tile * 16 / static_cast<int>(a_.block_tokens));
  }

  // Boxes of 16 positions by 64 dims, a lane each.
  __device__ __forceinline__ void Kv(int layer) {
    constexpr int kHalves = C::kHeadDim / 64, kBoxes = kStageTiles * 2 * kHalves;
    static_assert(kBoxes <= 32);
    const int head = static_cast<int>(blockIdx.x) / a_.group_blocks, row_bytes = 2 * C::kHeadDim;
    const int half = lane_ % kHalves, is_v = lane_ / kHalves % 2, tile = lane_ / kHalves / 2;
    const int row =
        static_cast<int>((layer * a_.layer_bytes + (is_v * a_.kv_heads + head) * a_.head_bytes) / row_bytes);
#pragma unroll 1
    for (int i = 0; i < shared_.segment_count; ++i) {
      const StepSegment s = shared_.segments[i];
      int blocks = i == 0 ? first_blocks_ : BlocksFrom(s, 0);
#pragma unroll 1
      for (int at = 0; at < s.end - s.begin; at += kStageTiles) {
        if (at > 0 && at % 32 == 0) blocks = BlocksFrom(s, at);
        const int tiles = min(kStageTiles, s.end - s.begin - at);
        const int block = __shfl_sync(0xffffffffu, blocks, (at + tile) % 32);
        char* to = AwaitRoom();
        uint64_t* full = &shared_.full[ring_.slot];
        if (lane_ == 0) MbarrierArriveExpect(full, tiles * 2 * kTileBytes);
        __syncwarp();
        if (lane_ < kBoxes && tile < tiles) {
          const int in_block = (s.begin + at + tile) * 16 % static_cast<int>(a_.block_tokens);
          TmaLoad2d(to + (tile * 2 + is_v) * kTileBytes + half * 2048, &a_.kv, full, 64 * half,
                    block * static_cast<int>(a_.rows_per_block) + row + in_block);
        }
        ring_.Advance();
      }
    }
  }

  const DecodeStepArgs& a_;
  char* const base_;
  StepShared<C::kRows>& shared_;
  const int lane_;
  StepRing ring_, landed_;
  int free_;  // stages that may be sent for before others must land
  int first_blocks_ = 0;
};

}  // namespace agentserve::kernels::cuda
