// The eight warps that compute. Of every piece of weights, warp w takes the w-th eighth of k, for all rows.
//
// Weights lie in shared memory as in global memory, a row after the other. A product m16n8k16 takes two lines (64 k,
// 128 bytes) of two rows: its A row g is 16 bytes (8 k) g of a line of the first row, its A row g + 8 the same of the
// second, and B column n is 16 bytes n of x, so that of the result only the diagonals n = g and n = g + 8 are of use,
// the sums over g of which are the rows' products. That wastes seven eighths of a unit that has nothing else to do,
// reads shared memory without conflicts and lets a row of memory come in one piece. A lane's word of x in a line is
// word `lane`.
#pragma once

#include "kernels/decode_step/step_shared.cuh"

namespace agentserve::kernels::cuda {

__device__ __forceinline__ void StepSync() { NamedBarrierSync(1, kStepThreads); }

template <typename C>
class StepCompute {
 public:
  using Config = DecodeConfig<C::kHeadDim, kStepWarps, 2>;
  static constexpr int kRows = C::kRows;

  __device__ __forceinline__ StepCompute(const DecodeStepArgs& a, char* dynamic, const StepLayout& layout,
                                         StepShared<kRows>& shared)
      : a_(a),
        dynamic_(dynamic),
        layout_(layout),
        shared_(shared),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        ring_{a.stages} {}

  __device__ __forceinline__ void Run() {
    MbarrierWait(&shared_.planned, 0);
    Tick();
#pragma unroll 1
    for (int layer = 0; layer < a_.num_layers; ++layer) {
      const DecodeStepLayerWeights& w = a_.layers[layer].weights;
      uint32_t x[kRows][StepMatrix<C, StepOp::kQkv>::kAllLines];
      LoadNormed(layer - 1, a_.at.out, StepDone::kDown, w.input_norm, x);
      Multiply<StepOp::kQkv>(x);
      Attend(layer);
      LoadPlain<StepOp::kO>(layer, a_.at.attention, StepDone::kAttention, FinishersOf(kRows * a_.q_heads), x);
      Multiply<StepOp::kO>(x);
      LoadNormed(layer, a_.at.middle, StepDone::kO, w.post_norm, x);
      Multiply<StepOp::kGateUp>(x);
      uint32_t wide[kRows][StepMatrix<C, StepOp::kDown>::kAllLines];
      LoadPlain<StepOp::kDown>(layer, a_.at.ffn, StepDone::kGateUp, FinishersOf(C::kFfn / kStepUnit), wide);
      Multiply<StepOp::kDown>(wide);
    }
    uint32_t x[kRows][StepMatrix<C, StepOp::kHead>::kAllLines];
    LoadNormed(a_.num_layers - 1, a_.at.out, StepDone::kDown, a_.final_norm, x);
    Multiply<StepOp::kHead>(x);
  }

 private:
  static constexpr int kPairs = C::kHeadDim / 32;  // steps of 16 dims in half a head

  __device__ __forceinline__ void Tick() {
    if (threadIdx.x == 0) Mark(a_, event_);
    ++event_;
  }

  __device__ __forceinline__ uint32_t AwaitStage() {
    MbarrierWait(&shared_.full[ring_.slot], ring_.phase);
    return SharedAddress(dynamic_ + ring_.slot * kStepStageBytes);
  }
  __device__ __forceinline__ void ReleaseStage() {
    __syncwarp();
    if (lane_ == 0) MbarrierArrive(&shared_.empty[ring_.slot]);
    ring_.Advance();
  }

  // Until `count` finishing warps are through; layer -1: at once.
  __device__ __forceinline__ void AwaitRows(int layer, StepDone done, unsigned count) {
    if (layer < 0) return;
    if (threadIdx.x == 0) Await(CounterOf(shared_.counters, layer, done), count);
    StepSync();
  }

  // This lane's words of x in the warp's lines, from rows of C::kHidden values that `done` made in `layer` (-1: the
  // embedding), normalised.
  template <int kLines>
  __device__ __forceinline__ void LoadNormed(int layer, size_t buffer, StepDone done, const __nv_bfloat16* weight,
                                             uint32_t (&x)[kRows][kLines]) {
    const int first = warp_ * kLines * 32 + lane_;  // word
    uint32_t w[kLines];
#pragma unroll
    for (int i = 0; i < kLines; ++i) w[i] = __ldg(reinterpret_cast<const uint32_t*>(weight) + first + 32 * i);
    AwaitRows(layer, done, FinishersOf(C::kHidden / kStepUnit));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const void* row = layer < 0
                            ? static_cast<const void*>(a_.embedding + static_cast<size_t>(shared_.id[r]) * C::kHidden)
                            : RowOf(a_, buffer, C::kHidden, kRows, layer, r);
#pragma unroll
      for (int i = 0; i < kLines; ++i) x[r][i] = __ldcg(static_cast<const uint32_t*>(row) + first + 32 * i);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kLines; ++i) {
        sum = fmaf(Bf16Low(x[r][i]), Bf16Low(x[r][i]), sum);
        sum = fmaf(Bf16High(x[r][i]), Bf16High(x[r][i]), sum);
      }
      sum = LaneSum(sum);
      if (lane_ == 0) shared_.squares[r][warp_] = sum;
    }
    StepSync();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < kStepWarps; ++i) total += shared_.squares[r][i];
      const float scale = rsqrtf(total / static_cast<float>(C::kHidden) + a_.norm_eps);
#pragma unroll
      for (int i = 0; i < kLines; ++i) {
        x[r][i] = PackBf16(Bf16Low(w[i]) * RoundBf16(Bf16Low(x[r][i]) * scale),
                           Bf16High(w[i]) * RoundBf16(Bf16High(x[r][i]) * scale));
      }
    }
    Tick();
  }

  template <StepOp kOp, int kLines>
  __device__ __forceinline__ void LoadPlain(int layer, size_t buffer, StepDone done, unsigned count,
                                            uint32_t (&x)[kRows][kLines]) {
    using M = StepMatrix<C, kOp>;
    AwaitRows(layer, done, count);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t* row = reinterpret_cast<const uint32_t*>(RowOf(a_, buffer, M::kK, kRows, layer, r));
#pragma unroll
      for (int i = 0; i < kLines; ++i) {
        const int line = i / M::kLines * (M::kPiece / 64) + warp_ * M::kLines + i % M::kLines;
        x[r][i] = __ldcg(row + 32 * line + lane_);
      }
    }
    Tick();
  }

  template <StepOp kOp, int kLines>
  __device__ __forceinline__ void Multiply(const uint32_t (&x)[kRows][kLines]) {
    using M = StepMatrix<C, kOp>;
    static_assert(M::kAllLines == kLines);
    constexpr int kPairsOfRows = M::kStageRows / 2;
    const int tiles = ShareOf(StepTiles<C, kOp>(a_)).count;
    // Of lane's matrix in ldmatrix: row lane / 8 % 2, line lane / 16; 16 bytes lane % 8 of it.
    const uint32_t mine = warp_ * M::kLines * 128 + lane_ / 8 % 2 * (M::kPiece * 2) + lane_ / 16 * 128 + lane_ % 8 * 16;
    const bool diagonal = lane_ % 4 == lane_ / 8, odd = lane_ / 4 % 2 != 0;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      const int slot = static_cast<int>(done_ % kStepSlots);
      float2* sums = reinterpret_cast<float2*>(dynamic_ + layout_.sums + slot * C::kSlotBytes) + warp_ * 8 + lane_ / 4;
      MbarrierWait(&shared_.sums_empty[slot], (done_ / kStepSlots & 1) ^ 1);
      float c[kPairsOfRows][kRows][4];
#pragma unroll 1
      for (int stage = 0; stage < M::kStages / M::kPieces; ++stage) {
#pragma unroll
        for (int piece = 0; piece < M::kPieces; ++piece) {
          const uint32_t from = AwaitStage() + mine;
#pragma unroll
          for (int p = 0; p < kPairsOfRows; ++p) {
#pragma unroll
            for (int line = 0; line < M::kLines; line += 2) {
              uint32_t w[4];
              LdMatrixX4(w, from + p * (4 * M::kPiece) + line * 128);
#pragma unroll
              for (int r = 0; r < kRows; ++r) {
                if (piece == 0 && line == 0) c[p][r][0] = c[p][r][1] = c[p][r][2] = c[p][r][3] = 0;
                MmaBf16(c[p][r], w, x[r][piece * M::kLines + line], x[r][piece * M::kLines + line + 1]);
              }
            }
          }
          ReleaseStage();
        }
        // [unit][row][pair of rows in the unit][warp][g][2]
        if (diagonal) {
#pragma unroll
          for (int p = 0; p < kPairsOfRows; ++p) {
            const int pair = stage * kPairsOfRows + p;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              sums[((pair / 4 * kRows + r) * 4 + pair % 4) * (8 * kStepWarps)] =
                  odd ? make_float2(c[p][r][1], c[p][r][3]) : make_float2(c[p][r][0], c[p][r][2]);
            }
          }
        }
      }
      __syncwarp();
      if (lane_ == 0) MbarrierArrive(&shared_.sums_full[slot]);
      ++done_;
    }
    Tick();
  }

  // The rotated pair of halves of a head, two neighbouring dims each.
  __device__ __forceinline__ void Rotate(int row, int dim, uint32_t& low, uint32_t& high) const {
    const uint32_t c = *reinterpret_cast<const uint32_t*>(&shared_.cos[row][dim]);
    const uint32_t s = *reinterpret_cast<const uint32_t*>(&shared_.sin[row][dim]);
    const float l0 = Bf16Low(low), l1 = Bf16High(low), h0 = Bf16Low(high), h1 = Bf16High(high);
    const float c0 = Bf16Low(c), c1 = Bf16High(c), s0 = Bf16Low(s), s1 = Bf16High(s);
    low = PackBf16(RoundBf16(l0 * c0) + RoundBf16(-h0 * s0), RoundBf16(l1 * c1) + RoundBf16(-h1 * s1));
    high = PackBf16(RoundBf16(h0 * c0) + RoundBf16(l0 * s0), RoundBf16(h1 * c1) + RoundBf16(l1 * s1));
  }

  __device__ __forceinline__ const uint32_t* QkvRow(int layer, int row) const {
    return reinterpret_cast<const uint32_t*>(
        RowOf(a_, a_.at.qkv, C::kHidden + 2 * a_.kv_heads * C::kHeadDim, kRows, layer, row));
  }

  // A fragments of the group's q rows, rotated; see LoadQ of decode_tile.cuh.
  __device__ __forceinline__ void LoadRotatedQ(int layer, int row, int head, int group,
                                               uint32_t (&q)[C::kHeadDim / 16][2]) const {
    const uint32_t* from = QkvRow(layer, row) + (head * group + lane_ / 4) * (C::kHeadDim / 2) + lane_ % 4;
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 8; ++i) q[i / 2][i % 2] = lane_ / 4 < group ? __ldcg(from + 4 * i) : 0;
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      Rotate(row, 8 * i + 2 * (lane_ % 4), q[i / 2][i % 2], q[i / 2 + kPairs][i % 2]);
    }
  }

  // A lane's words of a row's new K (of both halves of a head, if lane < head_dim / 4) and V.
  struct Newest {
    uint32_t low, high, v[C::kHeadDim / 64];
  };
  __device__ __forceinline__ void LoadNewest(int layer, int row, int head, Newest& n) const {
    const uint32_t* k = QkvRow(layer, row) + (a_.q_heads + head) * (C::kHeadDim / 2) + lane_;
    if (lane_ < C::kHeadDim / 4) {
      n.low = __ldcg(k);
      n.high = __ldcg(k + C::kHeadDim / 4);
    }
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 64; ++i) n.v[i] = __ldcg(k + a_.kv_heads * (C::kHeadDim / 2) + 32 * i);
  }

  // The row's new position, K rotated, goes into the tile, which came without it, and into the pool; rows after it
  // become zeros.
  __device__ __forceinline__ void InsertNewest(int layer, int row, int head, Newest n, uint32_t tile) const {
    const int in_tile = shared_.position[row] % 16, slot = shared_.slot[row];
    const int tokens = static_cast<int>(a_.block_tokens);
    std::byte* to = a_.pool + static_cast<size_t>(max(slot, 0) / tokens) * a_.block_bytes + layer * a_.layer_bytes +
                    head * a_.head_bytes + max(slot, 0) % tokens * C::kHeadDim * 2;
    const size_t v_offset = a_.kv_heads * a_.head_bytes;
    const auto put = [&](int is_v, int dim, uint32_t word) {
      const uint32_t at =
          tile + is_v * Config::kTileBytes + dim / 64 * 2048 + Swizzle128(in_tile, dim % 64 / 8) + dim % 8 * 2;
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
      if (slot >= 0) *reinterpret_cast<uint32_t*>(to + is_v * v_offset + dim * 2) = word;
    };
    if (lane_ < C::kHeadDim / 4) {
      Rotate(row, 2 * lane_, n.low, n.high);
      put(0, 2 * lane_, n.low);
      put(0, C::kHeadDim / 2 + 2 * lane_, n.high);
    }
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 64; ++i) put(1, 2 * (lane_ + 32 * i), n.v[i]);
    for (int i = lane_; i < (15 - in_tile) * (C::kHeadDim / 8); i += 32) {
      const int r = in_tile + 1 + i / (C::kHeadDim / 8), chunk = i % (C::kHeadDim / 8);
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + Config::kTileBytes + chunk / 8 * 2048 +
                                                                    Swizzle128(r, chunk % 8)),
                   "r"(0)
                   : "memory");
    }
    FenceProxyAsyncShared();  // the ring's next lap writes here
    __syncwarp();
  }

  // Warp w takes every eighth tile of a segment.
  __device__ __forceinline__ void Attend(int layer) {
    const int group = a_.q_heads / a_.kv_heads, head = static_cast<int>(blockIdx.x) / a_.group_blocks;
    constexpr int kStageTiles = kStepStageBytes / (2 * Config::kTileBytes);
    if (shared_.segment_count > 0) {
      AwaitRows(layer, StepDone::kQkv, FinishersOf(StepTiles<C, StepOp::kQkv>(a_)));
    }
    Tick();
#pragma unroll 1
    for (int i = 0; i < shared_.segment_count; ++i) {
      const StepSegment s = shared_.segments[i];
      // Of the segment's tiles, the one with the newest position.
      const int tiles = s.end - s.begin, newest = shared_.position[s.row] / 16 - s.begin;
      DecodeAccumulator<C::kHeadDim> acc = {};
      acc.max = kNoScore;
      uint32_t q[C::kHeadDim / 16][2];
      Newest fresh = {};
      if (newest < tiles && newest % kStepWarps == warp_) LoadNewest(layer, s.row, head, fresh);
      if (warp_ < tiles) LoadRotatedQ(layer, s.row, head, group, q);
#pragma unroll 1
      for (int at = 0; at < tiles; at += kStageTiles) {
        const uint32_t stage = AwaitStage();
        const int tile = at + (warp_ - at % kStepWarps + kStepWarps) % kStepWarps;  // the warp's first from here
        if (tile < min(at + kStageTiles, tiles)) {
          const uint32_t from = stage + (tile - at) * 2 * Config::kTileBytes;
          const int first = 16 * (s.begin + tile);
          if (tile == newest) InsertNewest(layer, s.row, head, fresh, from);
          ComputeTile<Config>(from, q, a_.scale_log2, shared_.position[s.row] + 1 - first, acc);
        }
        ReleaseStage();
      }
      acc.sum = LaneSum<4>(acc.sum);
      StoreResult(acc, group);
    }
    Tick();
  }

  // This warp's result of a segment, for the finishing warps. A warp without tiles has sum 0.
  __device__ __forceinline__ void StoreResult(const DecodeAccumulator<C::kHeadDim>& acc, int group) {
    constexpr int kStride = C::kHeadDim + 8;
    MbarrierWait(&shared_.merged, (segments_ & 1) ^ 1);
    ++segments_;
    float* o = reinterpret_cast<float*>(dynamic_ + layout_.scratch) + warp_ * group * kStride;
    float2* stats = reinterpret_cast<float2*>(dynamic_ + layout_.scratch + kStepWarps * group * kStride * 4);
    const int row = lane_ / 4;
    if (row < group) {
#pragma unroll
      for (int j = 0; j < C::kHeadDim / 8; ++j) {
        *reinterpret_cast<float2*>(o + row * kStride + 8 * j + 2 * (lane_ % 4)) = make_float2(acc.o[j][0], acc.o[j][1]);
      }
      if (lane_ % 4 == 0) stats[warp_ * 8 + row] = make_float2(acc.max, acc.sum);
    }
    __syncwarp();
    if (lane_ == 0) MbarrierArrive(&shared_.attended);
  }

  const DecodeStepArgs& a_;
  char* const dynamic_;
  const StepLayout& layout_;
  StepShared<kRows>& shared_;
  const int warp_, lane_;
  StepRing ring_;
  unsigned done_ = 0;      // tiles
  unsigned segments_ = 0;  // that were attended to
  int event_ = 0;
};

}  // namespace agentserve::kernels::cuda
