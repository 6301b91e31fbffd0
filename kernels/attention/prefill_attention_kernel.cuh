// Prefill attention for Hopper: producer threads hand out work and feed Q, K and V by TMA (one box per page),
// kWarpgroups consumer warpgroups of 64 query rows each do S = Q K^T, softmax in registers and O += P V with P as
// register operand.
//
// Work items are (tile, head), longest tiles first, heads innermost so that the heads of a group share K and V in L2.
// Persistent blocks take items from a counter. Key tiles start at multiples of kN from position 0 in ascending order,
// so a row's arithmetic does not depend on where its chunk or tile starts: later tiles add exact zeros.
#pragma once

#include <cuda.h>

#include <algorithm>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/prefill_attention_hopper.h"
#include "kernels/attention/prefill_attention_producers.cuh"
#include "kernels/attention/prefill_softmax.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pdl.cuh"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/wgmma.cuh"

namespace agentserve::kernels::cuda {

// What a consumer warpgroup of 64 rows does of an item.
struct WarpgroupTiles {
  int unmasked;  // key tiles below this one need no mask
  int count;     // key tiles with anything visible, at least 1
};

template <typename C>
__device__ __forceinline__ WarpgroupTiles TilesOf(const PrefillItem& item, int warpgroup) {
  // A warpgroup without rows computes one tile for nothing, so that all run the same code.
  const int first = item.position + warpgroup * 64, rows = min(64, item.rows - warpgroup * 64);
  return {(first + 1) / C::kN, rows <= 0 ? 1 : (first + rows - 1) / C::kN + 1};
}

// Last position that this thread's two rows see, the first one's and the second's. Rows past the end see what the last
// valid one does.
__device__ __forceinline__ void LastKeys(const PrefillItem& item, int warpgroup, int (&last)[2]) {
  const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  last[0] = item.position + min(warpgroup * 64 + row, item.rows - 1);
  last[1] = item.position + min(warpgroup * 64 + row + 8, item.rows - 1);
}

// Values past the end of the sequence in its last page may be anything, NaN too, and 0 * NaN would reach every row.
// Each warpgroup clears them itself, before its own products read them.
template <typename C>
__device__ __forceinline__ void ClearValues(uint8_t* v, int row_begin, int row_end, int warpgroup) {
  const int chunks = (row_end - row_begin) * 8;
  for (int half = 0; half < C::kHalves; ++half) {
    uint4* to = reinterpret_cast<uint4*>(v + half * (C::kN * 128) + row_begin * 128);
    for (int i = threadIdx.x % 128; i < chunks; i += 128) to[i] = make_uint4(0, 0, 0, 0);
  }
  FenceProxyAsyncShared();
  NamedBarrierSync(8 + warpgroup, 128);
}

template <typename C>
__device__ __forceinline__ void IssueScores(const uint8_t* q, const uint8_t* k, float (&s)[C::kN / 2]) {
  const uint64_t a = DescriptorKMajor(q), b = DescriptorKMajor(k);
#pragma unroll
  for (int kk = 0; kk < C::kD / 16; ++kk) {
    const uint32_t half = kk / 4, column = kk % 4 * 32;
    Wgmma<C::kN>::template SS<BMajor::kK>(s, DescriptorAdvance(a, half * (C::kM * 128) + column),
                                          DescriptorAdvance(b, half * (C::kN * 128) + column), kk > 0);
  }
}

template <typename C>
__device__ __forceinline__ void IssueValues(const uint32_t (&p)[C::kN / 16][4], const uint8_t* v,
                                            float (&o)[C::kD / 2]) {
  const uint64_t b = DescriptorMnMajor(v, C::kN * 128);
#pragma unroll
  for (int kk = 0; kk < C::kN / 16; ++kk) {
    Wgmma<C::kD>::template RS<BMajor::kMn>(o, p[kk], DescriptorAdvance(b, kk * 2048), true);
  }
}

// Four lanes hold 8 columns of a row between them, 4 bytes each, for four groups of columns (word j: group j). After
// it lane t holds all of group t.
__device__ __forceinline__ uint4 TransposeQuad(const uint32_t (&word)[4]) {
  const int t = threadIdx.x % 4;
  uint32_t w0 = word[0], w1 = word[1], w2 = word[2], w3 = word[3];
  const uint32_t x0 = __shfl_xor_sync(0xffffffffu, (t & 2) != 0 ? w0 : w2, 2);
  const uint32_t x1 = __shfl_xor_sync(0xffffffffu, (t & 2) != 0 ? w1 : w3, 2);
  if ((t & 2) != 0) {
    w0 = x0;
    w1 = x1;
  } else {
    w2 = x0;
    w3 = x1;
  }
  const uint32_t y0 = __shfl_xor_sync(0xffffffffu, (t & 1) != 0 ? w0 : w1, 1);
  const uint32_t y1 = __shfl_xor_sync(0xffffffffu, (t & 1) != 0 ? w2 : w3, 1);
  return (t & 1) != 0 ? make_uint4(y0, w1, y1, w3) : make_uint4(w0, y0, w2, y1);
}

template <typename C>
__device__ __forceinline__ void StoreOutput(const PrefillAttentionParams& p, const PrefillItem& item, int warpgroup,
                                            const SoftmaxState& state, const float (&o)[C::kD / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1.0f / sum;
    const int row = warpgroup * 64 + warp * 16 + half * 8 + lane / 4;
    __nv_bfloat16* to = p.out + (static_cast<int64_t>(item.row0 + row) * p.q_heads + item.head) * C::kD + lane % 4 * 8;
#pragma unroll
    for (int group = 0; group < C::kD / 32; ++group) {
      uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * group + j) + 2 * half;
        word[j] = PackBf16(o[at] * inverse, o[at + 1] * inverse);
      }
      const uint4 vector = TransposeQuad(word);
      if (row < item.rows) *reinterpret_cast<uint4*>(to + group * 32) = vector;
    }
  }
}

// Turns keep the warpgroups out of phase, so that one computes powers while another uses the tensor cores: each issues
// when the scores of the one before are complete.
__device__ __forceinline__ void TakeTurn(int warpgroup) { NamedBarrierSync(1 + warpgroup, 256); }
template <typename C>
__device__ __forceinline__ void PassTurn(int warpgroup) {
  NamedBarrierArrive(1 + (warpgroup + 1) % C::kWarpgroups, 256);
}

template <typename C>
struct Consumer {
  const PrefillLaunch& launch;
  PrefillShared<C>& shared;
  const int warpgroup;
  RingPosition<C::kStages> at = {};

  // One arrival per warp, which has converged since its last use.
  __device__ __forceinline__ void Release(uint64_t* barrier) {
    if (threadIdx.x % 32 == 0) MbarrierArrive(barrier);
  }

  // Probabilities of the scores in s, and the values of `tile` in place. The item stays in shared memory: registers are
  // short, and few steps are masked.
  __device__ __forceinline__ void Weigh(const PrefillItem& item, int tile, bool masked, uint32_t stage, uint32_t phase,
                                        float (&s)[C::kN / 2], SoftmaxState& state, uint32_t (&p)[C::kN / 16][4],
                                        float (&o)[C::kD / 2]) {
    int limit[2] = {0, 0};
    if (masked) {
      LastKeys(item, warpgroup, limit);
      const int column = tile * C::kN + static_cast<int>(threadIdx.x) % 4 * 2;
      limit[0] -= column;
      limit[1] -= column;
    }
    SoftmaxStep<C::kN, C::kD>(s, launch.scale_log2, tile == 0, masked, limit, state, p, o);
    Wait(&shared.v_full[stage], phase);
    if (masked) {
      const int rest = Uniform(item.position + item.rows) - tile * C::kN, page_rows = launch.page_rows;
      if (rest < C::kN && rest % page_rows != 0) {
        ClearValues<C>(shared.v[stage], rest, rest + page_rows - rest % page_rows, warpgroup);
      }
    }
  }

  // Waits for the products just issued, all but the last kPending groups: the next warpgroup's turn depends on them.
  template <int kPending>
  __device__ __forceinline__ void EndTurn() {
    WgmmaWait<kPending>();
    PassTurn<C>(warpgroup);
  }

  // A tile that only later warpgroups see.
  __device__ __forceinline__ void SkipTile() {
    Wait(&shared.k_full[at.index], at.phase);
    Wait(&shared.v_full[at.index], at.phase);
    __syncwarp();
    Release(&shared.k_empty[at.index]);
    Release(&shared.v_empty[at.index]);
    TakeTurn(warpgroup);
    PassTurn<C>(warpgroup);
    at.Advance();
  }

  // All key tiles of an item.
  __device__ __forceinline__ void Run(const PrefillItem& item, const uint8_t* q_tile, uint64_t* q_full,
                                      uint32_t q_phase, uint64_t* q_empty) {
    const uint8_t* q = q_tile + warpgroup * 8192;
    const int position = Uniform(item.position), count = Uniform(item.rows), key_tiles = Uniform(item.key_tiles);
    const WarpgroupTiles tiles = TilesOf<C>({.rows = count, .position = position}, warpgroup);
    float s[C::kN / 2], o[C::kD / 2];
    uint32_t p[C::kN / 16][4];
    SoftmaxState state = {{0, 0}, {0, 0}};
#pragma unroll
    for (int i = 0; i < C::kD / 2; ++i) o[i] = 0;

    Wait(q_full, q_phase);
    Wait(&shared.k_full[at.index], at.phase);
    TakeTurn(warpgroup);
    KeepInRegisters(s);
    KeepInRegisters(o);
    WgmmaFence();
    IssueScores<C>(q, shared.k[at.index], s);
    WgmmaCommit();
    EndTurn<0>();
    // Invariant: the scores of `tile` are in flight, and the values of the tile before.
    for (int tile = 0; tile < tiles.count - 1; ++tile) {
      const uint32_t stage = at.index, phase = at.phase;
      at.Advance();
      WgmmaWait<0>();
      KeepInRegisters(s);
      KeepInRegisters(o);
      Release(&shared.k_empty[stage]);
      if (tile > 0) Release(&shared.v_empty[stage == 0 ? C::kStages - 1 : stage - 1]);
      Weigh(item, tile, tile >= tiles.unmasked, stage, phase, s, state, p, o);
      Wait(&shared.k_full[at.index], at.phase);
      TakeTurn(warpgroup);
      KeepInRegisters(s);
      KeepInRegisters(o);
      WgmmaFence();
      IssueScores<C>(q, shared.k[at.index], s);
      WgmmaCommit();
      IssueValues<C>(p, shared.v[stage], o);
      WgmmaCommit();
      EndTurn<1>();
    }
    const uint32_t stage = at.index, phase = at.phase;
    at.Advance();
    WgmmaWait<0>();
    KeepInRegisters(s);
    KeepInRegisters(o);
    Release(q_empty);
    Release(&shared.k_empty[stage]);
    if (tiles.count > 1) Release(&shared.v_empty[stage == 0 ? C::kStages - 1 : stage - 1]);
    Weigh(item, tiles.count - 1, true, stage, phase, s, state, p, o);
    TakeTurn(warpgroup);
    KeepInRegisters(o);
    WgmmaFence();
    IssueValues<C>(p, shared.v[stage], o);
    WgmmaCommit();
    EndTurn<0>();
    WgmmaWait<0>();
    KeepInRegisters(o);
    Release(&shared.v_empty[stage]);
    for (int tile = tiles.count; tile < key_tiles; ++tile) SkipTile();
    StoreOutput<C>(launch.params, item, warpgroup, state, o);
  }
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1) PrefillKernel(const __grid_constant__ PrefillLaunch launch) {
  extern __shared__ __align__(1024) uint8_t memory[];
  PrefillShared<C>& shared = *reinterpret_cast<PrefillShared<C>*>(memory);
  if (threadIdx.x == 0) {
    if (SharedAddress(memory) % 1024 != 0) __trap();  // the swizzle counts from there
    TmaPrefetchMap(&launch.q);
    TmaPrefetchMap(&launch.k);
    TmaPrefetchMap(&launch.v);
    for (int i = 0; i < C::kQStages; ++i) {
      MbarrierInit(&shared.q_full[i], 1);
      MbarrierInit(&shared.q_empty[i], 4 * C::kWarpgroups);
    }
    for (int i = 0; i < C::kItems; ++i) {
      MbarrierInit(&shared.item_full[i], 1);
      MbarrierInit(&shared.item_empty[i], 4 * C::kWarpgroups + 4);  // consumer warps, the threads that load K and V
    }
    MbarrierInit(&shared.ending, 1);
    for (int i = 0; i < C::kStages; ++i) {
      MbarrierInit(&shared.k_full[i], 2);
      MbarrierInit(&shared.v_full[i], 2);
      MbarrierInit(&shared.k_empty[i], 4 * C::kWarpgroups);
      MbarrierInit(&shared.v_empty[i], 4 * C::kWarpgroups);
    }
    MbarrierInitFence();
  }
  __syncthreads();
  // Plan and tables are older than the kernel before: the first item is looked up beside its end.
  PrefillItem first = {};
  if (threadIdx.x == kItemThread) first = DecodeItem<C>(launch, static_cast<int>(blockIdx.x));
  PdlWait();
  PdlTrigger();
  const int role = Uniform(static_cast<int>(threadIdx.x) / 128);
  if (role == 0) {
    RegistersDecrease<C::kProducerRegisters>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0 && warp < 2) {
      ProducePages<C>(shared, {launch, launch.k, launch.k_run, shared.k, shared.k_full, shared.k_empty, warp,
                               warp == 0 ? &shared.ending : nullptr});
    } else if (lane == 0) {
      ProducePages<C>(shared,
                      {launch, launch.v, launch.v_run, shared.v, shared.v_full, shared.v_empty, warp - 2, nullptr});
    } else if (threadIdx.x == kItemThread) {
      ProduceItems<C>(launch, shared, first);
    }
  } else {
    RegistersIncrease<C::kConsumerRegisters>();
    const int warpgroup = role - 1;
    if (warpgroup == C::kWarpgroups - 1) PassTurn<C>(warpgroup);
    Consumer<C> consumer{launch, shared, warpgroup};
    RingPosition<C::kQStages> q_at;
    RingPosition<C::kItems> item_at;
    while (true) {
      Wait(&shared.item_full[item_at.index], item_at.phase);
      const PrefillItem& item = shared.items[item_at.index];
      if (Uniform(item.key_tiles) == 0) break;
      consumer.Run(item, shared.q[q_at.index], &shared.q_full[q_at.index], q_at.phase, &shared.q_empty[q_at.index]);
      __syncwarp();
      consumer.Release(&shared.item_empty[item_at.index]);
      q_at.Advance();
      item_at.Advance();
    }
  }
}

template <typename C>
cudaError_t LaunchPrefill(const PrefillLaunch& launch, const LaunchContext& context) {
  static const cudaError_t configured =
      cudaFuncSetAttribute(PrefillKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(PrefillShared<C>));
  if (configured != cudaSuccess) return configured;
  const dim3 grid(static_cast<unsigned>(std::min(launch.items, context.num_sms)));
  return Launch(context, PrefillKernel<C>, grid, dim3(C::kThreads), sizeof(PrefillShared<C>), 1, launch);
}

}  // namespace agentserve::kernels::cuda
