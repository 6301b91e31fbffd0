// What happens to the warps' results of decode attention: merged over a block, over a cluster, over the splits of a
// row. The whole is described in decode_kernel.cuh.
#pragma once

#include "kernels/attention/decode_tile.cuh"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

// Where partial results lie in the workspace: counters [row][kv_head], then (max, sum) [unit][q_head], then O
// [unit][q_head][head_dim].
struct DecodeWorkspace {
  int* counters;
  float2* stats;
  float* o;
};
__host__ __device__ __forceinline__ DecodeWorkspace CarveDecodeWorkspace(void* base, int max_units, int q_heads) {
  DecodeWorkspace w;
  w.counters = static_cast<int*>(base);
  w.stats = reinterpret_cast<float2*>(static_cast<char*>(base) + kWorkspaceZeroBytes);
  const size_t stats = (static_cast<size_t>(max_units) * q_heads + 15) / 16 * 16;
  w.o = reinterpret_cast<float*>(w.stats + stats);
  return w;
}

// Two neighbouring dims of one q row, merged over the `count` warps of its head.
struct MergedPair {
  float2 o;
  float max, sum;
};
template <typename C>
__device__ __forceinline__ MergedPair MergeWarps(const char* shared, const float2* stats, int first, int count, int row,
                                                 int dim) {
  MergedPair m{{0, 0}, kNoScore, 0};
#pragma unroll
  for (int i = 0; i < C::kWarps; ++i) {
    if (i < count) m.max = fmaxf(m.max, stats[(first + i) * C::kMaxGroup + row].x);
  }
#pragma unroll
  for (int i = 0; i < C::kWarps; ++i) {
    if (i >= count) continue;
    const int w = first + i;
    const float2 stat = stats[w * C::kMaxGroup + row];
    const float weight = Exp2(stat.x - m.max);  // 0 for a warp without tiles
    const float* o =
        reinterpret_cast<const float*>(shared + w * C::kRingBytes + C::kMergeO) + row * C::kMergeStride + dim;
    const float2 value = *reinterpret_cast<const float2*>(o);
    m.o.x += value.x * weight;
    m.o.y += value.y * weight;
    m.sum += stat.y * weight;
  }
  return m;
}

// The same over the blocks of the cluster, each of which has merged its warps.
template <typename C>
__device__ __forceinline__ MergedPair MergeBlocks(uint32_t shared_o, uint32_t shared_stats, int blocks, int row,
                                                  int dim) {
  constexpr int kMaxBlocks = 8;
  float2 o[kMaxBlocks], stats[kMaxBlocks];
  MergedPair m{{0, 0}, kNoScore, 0};
#pragma unroll
  for (int b = 0; b < kMaxBlocks; ++b) {
    stats[b] = {kNoScore, 0};
    o[b] = {0, 0};
    if (b >= blocks) continue;
    stats[b] = LoadPeer8(PeerAddress(shared_stats + row * 8, b));
    o[b] = LoadPeer8(PeerAddress(shared_o + (row * C::kHeadDim + dim) * 4, b));
    m.max = fmaxf(m.max, stats[b].x);
  }
#pragma unroll
  for (int b = 0; b < kMaxBlocks; ++b) {
    const float weight = Exp2(stats[b].x - m.max);
    m.o.x += o[b].x * weight;
    m.o.y += o[b].y * weight;
    m.sum += stats[b].y * weight;
  }
  return m;
}

// Adds up the parts of a row's head group, several threads a value: thread group j takes
// splits j, j + n, ..., and the groups are added in their order.
template <typename C>
__device__ __forceinline__ void CombineSplits(const DecodeAttentionParams& p, const DecodeWorkspace& workspace,
                                              int first_unit, int splits, int first_head, int group, int64_t row,
                                              char* scratch) {
  constexpr int kVectors = C::kHeadDim / 4;
  const int items = group * kVectors;
  const int lanes = min(items, C::kThreads);  // values worked on at once
  const int parts = C::kThreads / lanes;
  const int part = static_cast<int>(threadIdx.x) / lanes;
  float4* shared_o = reinterpret_cast<float4*>(scratch);
  float2* shared_stats = reinterpret_cast<float2*>(scratch + C::kThreads * sizeof(float4));
  for (int base = 0; base < items; base += lanes) {
    const int item = base + static_cast<int>(threadIdx.x) % lanes;
    const int head = first_head + item / kVectors;
    float4 o = {0, 0, 0, 0};
    float max = kNoScore, sum = 0;
    const auto add = [&](float4 value, float2 stat) {
      const float new_max = fmaxf(max, stat.x);
      const float keep = Exp2(max - new_max), weight = Exp2(stat.x - new_max);
      o.x = o.x * keep + value.x * weight;
      o.y = o.y * keep + value.y * weight;
      o.z = o.z * keep + value.z * weight;
      o.w = o.w * keep + value.w * weight;
      sum = sum * keep + stat.y * weight;
      max = new_max;
    };
    if (part < parts && item < items) {
#pragma unroll 4
      for (int s = part; s < splits; s += parts) {
        const int64_t index = static_cast<int64_t>(first_unit + s) * p.q_heads + head;
        const float2 stat = __ldcg(workspace.stats + index);
        const float4 value =
            __ldcg(reinterpret_cast<const float4*>(workspace.o + index * C::kHeadDim) + item % kVectors);
        add(value, stat);
      }
    }
    shared_o[threadIdx.x] = o;
    shared_stats[threadIdx.x] = {max, sum};
    __syncthreads();
    if (part == 0 && item < items) {
      for (int other = 1; other < min(parts, splits); ++other) {
        add(shared_o[other * lanes + threadIdx.x], shared_stats[other * lanes + threadIdx.x]);
      }
      const float inverse = 1.0f / sum;
      const uint2 packed = {PackBf16(o.x * inverse, o.y * inverse), PackBf16(o.z * inverse, o.w * inverse)};
      reinterpret_cast<uint2*>(p.out + (row * p.q_heads + head) * C::kHeadDim)[item % kVectors] = packed;
    }
    __syncthreads();
  }
}

// True in every thread of the block that is the last of `splits` to get here; it then sees what the others wrote
// before. Leaves the counter zero.
__device__ __forceinline__ bool LastToArrive(int* counter, int splits, int* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const bool last = atomicAdd(counter, 1) == splits - 1;
    if (last) *counter = 0;
    __threadfence();
    *flag = last;
  }
  __syncthreads();
  return *flag != 0;
}

}  // namespace agentserve::kernels::cuda
