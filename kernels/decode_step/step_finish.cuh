// The warps that finish: they add up the partial sums of tiles, run the epilogues, and merge attention's parts, so that
// the computing warps go on meanwhile. Finisher f takes every second tile of an operation; when a finisher is through
// with its share it adds one to the operation's counter, for which all blocks wait.
#pragma once

#include "kernels/decode_step/step_shared.cuh"

namespace agentserve::kernels::cuda {

template <typename C>
class StepFinish {
 public:
  static constexpr int kRows = C::kRows;

  __device__ __forceinline__ StepFinish(const DecodeStepArgs& a, char* dynamic, const StepLayout& layout,
                                        StepShared<kRows>& shared, int finisher)
      : a_(a),
        dynamic_(dynamic),
        layout_(layout),
        shared_(shared),
        finisher_(finisher),
        lane_(static_cast<int>(threadIdx.x) % 32),
        in_unit_(lane_ / 4) {
    for (Best& b : best_) b = {-INFINITY, INT32_MAX};
  }

  __device__ __forceinline__ void Run() {
    MbarrierWait(&shared_.planned, 0);
    LoadResidual();
#pragma unroll 1
    for (int layer = 0; layer < a_.num_layers; ++layer) {
      Tiles<StepOp::kQkv>(layer, StepDone::kQkv);
      MergeSegments(layer);
      MergeRows(layer);
      Tiles<StepOp::kO>(layer, StepDone::kO);
      Tiles<StepOp::kGateUp>(layer, StepDone::kGateUp);
      Tiles<StepOp::kDown>(layer, StepDone::kDown);
    }
    Tiles<StepOp::kHead>(0, StepDone::kQkv);
    Choose();
  }

 private:
  static constexpr int kStride = C::kHeadDim + 8;

  // The embedding's values of the rows that this block's O and down projections add to.
  __device__ __forceinline__ void LoadResidual() {
    const StepShare share = ShareOf(C::kHidden / kStepUnit);
    for (int i = finisher_; i < share.count; i += kStepFinishers) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const size_t at = static_cast<size_t>(shared_.id[r]) * C::kHidden + (share.first + i) * kStepUnit + in_unit_;
        if (lane_ % 4 == 0) shared_.residual[i][r][in_unit_] = __bfloat162float(a_.embedding[at]);
      }
    }
    __syncwarp();
  }

  // The eight rows' sums of one unit: lane l gets that of row l / 4. Every lane reads two of the 64 parts of every row;
  // then halves of the warp share the rows out between them.
  __device__ __forceinline__ float SumUnit(const float4* from) const {
    float v[8];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const float4 part = from[pair * 32 + lane_];
      v[2 * pair] = part.x + part.z;
      v[2 * pair + 1] = part.y + part.w;
    }
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
      const bool upper = (lane_ & (4 * half)) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float give = upper ? v[i] : v[half + i];
        v[i] = (upper ? v[half + i] : v[i]) + __shfl_xor_sync(0xffffffffu, give, 4 * half);
      }
    }
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], 2);
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 1);
  }

  // Lanes 0, 8, 16 and 24 store two rows each.
  __device__ __forceinline__ void StoreUnit(std::byte* row, int first, float value) const {
    const float other = __shfl_xor_sync(0xffffffffu, value, 4);
    if (lane_ % 8 == 0) *reinterpret_cast<uint32_t*>(row + (first + in_unit_) * 2) = PackBf16(value, other);
  }

  template <StepOp kOp>
  __device__ __forceinline__ void Tiles(int layer, StepDone done) {
    using M = StepMatrix<C, kOp>;
    const StepShare share = ShareOf(StepTiles<C, kOp>(a_));
#pragma unroll 1
    for (int i = finisher_; i < share.count; i += kStepFinishers) {
      const unsigned turn = done_ + i, slot = turn % kStepSlots;
      MbarrierWait(&shared_.sums_full[slot], turn / kStepSlots & 1);
      const float4* from = reinterpret_cast<const float4*>(dynamic_ + layout_.sums + slot * C::kSlotBytes);
      float sum[M::kUnits][kRows];
#pragma unroll
      for (int unit = 0; unit < M::kUnits; ++unit) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[unit][r] = SumUnit(from + (unit * kRows + r) * 128);
      }
      __syncwarp();
      if (lane_ == 0) MbarrierArrive(&shared_.sums_empty[slot]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        Finish<kOp>(layer, r, (share.first + i) * kStepUnit, i, sum[0][r], sum[M::kUnits - 1][r]);
      }
    }
    done_ += share.count;
    __syncwarp();
    if (kOp != StepOp::kHead && finisher_ < share.count && lane_ == 0) {
      Arrive(CounterOf(shared_.counters, layer, done));
    }
  }

  // `sum` is output feature first + in_unit_ of a row (of gate-up the gate, and `up` the other).
  template <StepOp kOp>
  __device__ __forceinline__ void Finish(int layer, int r, int first, int index, float sum, float up) {
    if constexpr (kOp == StepOp::kQkv) {
      const int values = C::kHidden + 2 * a_.kv_heads * C::kHeadDim;
      StoreUnit(RowOf(a_, a_.at.qkv, values, kRows, layer, r), first, sum);
    } else if constexpr (kOp == StepOp::kO || kOp == StepOp::kDown) {
      float& residual = shared_.residual[index][r][in_unit_];
      const float value = RoundBf16(RoundBf16(sum) + residual);
      __syncwarp();
      if (lane_ % 4 == 0) residual = value;
      const size_t buffer = kOp == StepOp::kO ? a_.at.middle : a_.at.out;
      StoreUnit(RowOf(a_, buffer, C::kHidden, kRows, layer, r), first, value);
    } else if constexpr (kOp == StepOp::kGateUp) {
      const float gate = RoundBf16(sum);
      const float value = RoundBf16(gate / (1.0f + expf(-gate))) * RoundBf16(up);
      StoreUnit(RowOf(a_, a_.at.ffn, C::kFfn, kRows, layer, r), first, value);
    } else {
      best_[r] = BestOp()(best_[r], Best{RoundBf16(sum), first + in_unit_});
      if (a_.step.logits == nullptr) return;
      StoreUnit(reinterpret_cast<std::byte*>(a_.step.logits + static_cast<size_t>(r) * a_.vocab), first, sum);
    }
  }

  // The warps' results of each of this block's segments become one part.
  __device__ __forceinline__ void MergeSegments(int layer) {
    const int group = a_.q_heads / a_.kv_heads, head = static_cast<int>(blockIdx.x) / a_.group_blocks;
    if (head >= a_.kv_heads) return;
    const int in_group = static_cast<int>(blockIdx.x) % a_.group_blocks;
    const float* o = reinterpret_cast<const float*>(dynamic_ + layout_.scratch);
    const float2* stats = reinterpret_cast<const float2*>(o + kStepWarps * group * kStride);
#pragma unroll 1
    for (int i = 0; i < shared_.segment_count; ++i) {
      MbarrierWait(&shared_.attended, segments_ & 1);
      ++segments_;
      std::byte* part = PartOf(a_, layer, head, in_group + shared_.segments[i].row);
      for (int item = finisher_ * 32 + lane_; item < group * (C::kHeadDim / 2); item += 32 * kStepFinishers) {
        const int row = item / (C::kHeadDim / 2), dim = item % (C::kHeadDim / 2) * 2;
        float max = kNoScore, sum = 0;
        float2 merged = {0, 0};
#pragma unroll
        for (int w = 0; w < kStepWarps; ++w) max = fmaxf(max, stats[w * 8 + row].x);
#pragma unroll
        for (int w = 0; w < kStepWarps; ++w) {
          const float2 stat = stats[w * 8 + row];
          if (stat.y == 0) continue;  // no tiles
          const float weight = Exp2(stat.x - max);
          const float2 v = *reinterpret_cast<const float2*>(o + (w * group + row) * kStride + dim);
          merged.x += v.x * weight;
          merged.y += v.y * weight;
          sum += stat.y * weight;
        }
        *reinterpret_cast<float2*>(part + (row * C::kHeadDim + dim) * 4) = merged;
        if (dim == 0) *reinterpret_cast<float2*>(part + group * C::kHeadDim * 4 + row * 8) = make_float2(max, sum);
      }
      __syncwarp();
      if (lane_ == 0) MbarrierArrive(&shared_.merged);
    }
    __syncwarp();
    if (lane_ == 0) Arrive(CounterOf(shared_.counters, layer, StepDone::kParts, head));
  }

  // Some (row, q head) pairs: the parts of all blocks, in the order of positions, become attention's output.
  __device__ __forceinline__ void MergeRows(int layer) {
    const int tasks = kRows * a_.q_heads, grid = static_cast<int>(gridDim.x), stride = grid * kStepFinishers;
    const int mine = static_cast<int>(blockIdx.x) + finisher_ * grid;
#pragma unroll 1
    for (int task = mine; task < tasks; task += stride) MergeRow(layer, task / a_.q_heads, task % a_.q_heads);
    __syncwarp();
    if (mine < tasks && lane_ == 0) Arrive(CounterOf(shared_.counters, layer, StepDone::kAttention));
  }

  __device__ __forceinline__ void MergeRow(int layer, int row, int q_head) {
    constexpr int kDims = C::kHeadDim / 32;  // per lane
    constexpr int kAtOnce = 8;
    const int group = a_.q_heads / a_.kv_heads, head = q_head / group, in_group = q_head % group;
    const int first = shared_.first_block[row], parts = shared_.last_block[row] - first + 1;
    const auto part = [&](int i) { return PartOf(a_, layer, head, first + i + row); };
    if (lane_ == 0) {
      Await(CounterOf(shared_.counters, layer, StepDone::kParts, head), kStepFinishers * a_.group_blocks);
    }
    __syncwarp();
    float2 stat = {kNoScore, 0};
    if (lane_ < parts) {
      stat = __ldcg(reinterpret_cast<const float2*>(part(lane_) + group * C::kHeadDim * 4 + in_group * 8));
    }
    float2 v[kAtOnce][kDims / 2], o[kDims / 2] = {};
    float weight = 0, inverse = 0;
#pragma unroll 1
    for (int base = 0; base < parts; base += kAtOnce) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < kDims / 2; ++j) {
          const std::byte* from = part(min(base + i, parts - 1)) + (in_group * C::kHeadDim + lane_ * kDims) * 4 + 8 * j;
          v[i][j] = __ldcg(reinterpret_cast<const float2*>(from));
        }
      }
      if (base == 0) {
        const float max = LaneMax(stat.x);
        weight = stat.y == 0 ? 0 : Exp2(stat.x - max);
        inverse = 1.0f / LaneSum(stat.y * weight);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float w = __shfl_sync(0xffffffffu, weight, min(base + i, 31));
#pragma unroll
        for (int j = 0; j < kDims / 2; ++j) {
          if (base + i >= parts) continue;
          o[j].x += v[i][j].x * w;
          o[j].y += v[i][j].y * w;
        }
      }
    }
    std::byte* to =
        RowOf(a_, a_.at.attention, C::kHidden, kRows, layer, row) + (q_head * C::kHeadDim + lane_ * kDims) * 2;
#pragma unroll
    for (int j = 0; j < kDims / 2; ++j) {
      *reinterpret_cast<uint32_t*>(to + 4 * j) = PackBf16(o[j].x * inverse, o[j].y * inverse);
    }
  }

  // The block's best logits, then those of all blocks: block r decides for row r.
  __device__ __forceinline__ void Choose() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Best b = LaneBest(best_[r]);
      if (lane_ == 0) shared_.best[finisher_][r] = b;
    }
    NamedBarrierSync(2, 32 * kStepFinishers);
    if (finisher_ != 0) return;
    unsigned* counter = CounterOf(shared_.counters, kStepMaxLayers, StepDone::kQkv);
    uint2* best = reinterpret_cast<uint2*>(a_.buffers + a_.at.best);
    const int grid = static_cast<int>(gridDim.x), row = static_cast<int>(blockIdx.x);
    if (lane_ < kRows) {
      const Best b = BestOp()(shared_.best[0][lane_], shared_.best[1][lane_]);
      best[lane_ * grid + row] = make_uint2(__float_as_uint(b.value), static_cast<uint32_t>(b.index));
    }
    __syncwarp();
    if (lane_ == 0) {
      Arrive(counter);
      if (row < kRows) Await(counter, static_cast<unsigned>(grid));
    }
    __syncwarp();
    if (row >= kRows) return;
    Best b{-INFINITY, INT32_MAX};
    for (int i = lane_; i < grid; i += 32) {
      const uint2 bits = __ldcg(best + row * grid + i);
      b = BestOp()(b, Best{__uint_as_float(bits.x), static_cast<int32_t>(bits.y)});
    }
    b = LaneBest(b);
    if (lane_ != 0) return;
    if (a_.step.tokens != nullptr) a_.step.tokens[row] = b.index == INT32_MAX ? 0 : b.index;  // all NaN: a token
    if (a_.step.best != nullptr) a_.step.best[row] = __float2bfloat16_rn(b.value);
  }

  const DecodeStepArgs& a_;
  char* const dynamic_;
  const StepLayout& layout_;
  StepShared<kRows>& shared_;
  const int finisher_, lane_, in_unit_;
  Best best_[kRows];
  unsigned done_ = 0, segments_ = 0;
};

}  // namespace agentserve::kernels::cuda
