// The decode attention kernel: one query row a sequence against its paged KV, split over the KV positions.
//
// A task is (unit, KV head): the q rows of one head group against the unit's positions; or several heads of a unit, the
// warps divided among them. A cluster of 1 to 8 blocks runs one task at a time; all its warps (of a head) take the
// unit's 16-position tiles in turn, each with an own ring of shared memory
// filled by asynchronous copies (the next task's first ones start before this one's results are merged), so no barrier
// is needed until then. Per tile a warp computes
//   S[8][16] = q K^T, online softmax, O[8][head_dim] += P V
// with m16n8k16 products whose A rows 8-15 are zero (a group has at most 8 q rows). The warps are merged through shared
// memory, the blocks of a cluster by reading each other's. If a row has one unit, that is the output; else it goes to
// the workspace as (O, max, sum) in fp32, and the block that arrives last at the row's counter, or a second kernel,
// adds up the parts in an order fixed by their number. Nothing depends on timing: same inputs, same bits.
//
// Under programmatic dependent launch the plan, the tables and all KV but each sequence's newest row are read before
// the wait: they are older than the kernel before (attention_cuda.h says so to callers).
#pragma once

#include <algorithm>
#include <climits>

#include "kernels/attention/decode_merge.cuh"

namespace agentserve::kernels::cuda {

// Two merged dims of a row: the output if the row has no other unit, else a part in the workspace.
template <typename C>
__device__ __forceinline__ void StorePair(const DecodeAttentionParams& p, const DecodeWorkspace& workspace,
                                          const MergedPair& m, int unit_index, int unit_row, bool only, int q_head,
                                          int dim) {
  if (only) {
    const float inverse = 1.0f / m.sum;
    const int64_t index = (static_cast<int64_t>(unit_row) * p.q_heads + q_head) * C::kHeadDim + dim;
    *reinterpret_cast<uint32_t*>(p.out + index) = PackBf16(m.o.x * inverse, m.o.y * inverse);
  } else {
    const int64_t index = static_cast<int64_t>(unit_index) * p.q_heads + q_head;
    *reinterpret_cast<float2*>(workspace.o + index * C::kHeadDim + dim) = m.o;
    if (dim == 0) workspace.stats[index] = {m.max, m.sum};
  }
}

// This warp's result -> shared memory, for MergeUnit.
template <typename C>
__device__ __forceinline__ void StoreWarp(const DecodeAccumulator<C::kHeadDim>& acc, int group, char* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane / 4 >= group) return;
  float* o = reinterpret_cast<float*>(shared + warp * C::kRingBytes + C::kMergeO) + (lane / 4) * C::kMergeStride +
             2 * (lane % 4);
#pragma unroll
  for (int j = 0; j < C::kHeadDim / 8; ++j) {
    *reinterpret_cast<float2*>(o + 8 * j) = make_float2(acc.o[j][0], acc.o[j][1]);
  }
  if (lane % 4 != 0) return;
  reinterpret_cast<float2*>(shared + C::kStats)[warp * C::kMaxGroup + lane / 4] = {acc.max, acc.sum};
}

// Merges the warps of the block, then the blocks of the cluster, into the output or the workspace. With a cluster the
// caller waits at its barrier before the scratch is used again.
template <typename C>
__device__ __forceinline__ void MergeUnit(const DecodeAttentionParams& p, const DecodeWorkspace& workspace,
                                          int unit_index, int unit_row, bool only, int first_head, int group,
                                          char* shared) {
  const float2* stats = reinterpret_cast<const float2*>(shared + C::kStats);
  float2* block_stats = reinterpret_cast<float2*>(shared + C::kStats) + C::kWarps * C::kMaxGroup;
  float2* block_o = reinterpret_cast<float2*>(shared + C::kScratch);
  const int blocks = static_cast<int>(ClusterSize());
  const int items = p.heads * group * (C::kHeadDim / 2), warps = C::kWarps / p.heads;
  for (int item = threadIdx.x; item < items; item += C::kThreads) {
    const int row = item / (C::kHeadDim / 2), dim = item % (C::kHeadDim / 2) * 2;
    const MergedPair m = MergeWarps<C>(shared, stats, row / group * warps, warps, row % group, dim);
    if (blocks == 1) {
      StorePair<C>(p, workspace, m, unit_index, unit_row, only, first_head + row, dim);
    } else {
      block_o[item] = m.o;
      if (dim == 0) block_stats[row] = {m.max, m.sum};
    }
  }
  if (blocks == 1) return;
  ClusterArrive();
  ClusterWait();
  const int share = (items + blocks - 1) / blocks;
  const int first = static_cast<int>(ClusterRank()) * share;
  for (int item = first + threadIdx.x; item < min(first + share, items); item += C::kThreads) {
    const int row = item / (C::kHeadDim / 2), dim = item % (C::kHeadDim / 2) * 2;
    const MergedPair m = MergeBlocks<C>(SharedAddress(block_o), SharedAddress(block_stats), blocks, row, dim);
    StorePair<C>(p, workspace, m, unit_index, unit_row, only, first_head + row, dim);
  }
  ClusterArrive();
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 2) DecodeAttentionKernel(DecodeAttentionParams p, int group) {
  extern __shared__ __align__(1024) char shared[];
  const DecodeWorkspace workspace = CarveDecodeWorkspace(p.workspace, p.max_units, p.q_heads);
  const int kv_heads = static_cast<int>(p.kv.kv_heads);
  const int blocks = static_cast<int>(ClusterSize());
  const int per_unit = kv_heads / p.heads;  // tasks
  const int tasks = p.max_units * per_unit, stride = static_cast<int>(gridDim.x) / blocks;
  const uint32_t ring = SharedAddress(shared) + threadIdx.x / 32 * C::kRingBytes;
  const auto load_unit = [&](int i) { return i < tasks ? p.units[i / per_unit] : DecodeUnit{-1, 0, 0, 0}; };

  int task = static_cast<int>(blockIdx.x) / blocks;
  DecodeUnit unit = load_unit(task);
  WarpTiles<C> tiles;
  if (unit.row >= 0) {
    const int parts = p.splits[unit.row + 1] - p.splits[unit.row];
    const int newest = unit.split == parts - 1 ? unit.end - 1 : INT_MAX;
    tiles.Start(p, unit, task % per_unit * p.heads);
    tiles.CopyFirst(p, ring, newest);
    PdlWait();
    tiles.CopySkipped(p, ring, newest);
  } else {
    PdlWait();  // the next kernel may rely on all before this one
  }
  PdlTrigger();
  while (unit.row >= 0) {
    const int unit_index = task / per_unit, head = task % per_unit * p.heads;
    const int my_head = head + static_cast<int>(threadIdx.x / 32) / (C::kWarps / p.heads);
    const int parts = p.splits[unit.row + 1] - p.splits[unit.row];
    task += stride;
    const DecodeUnit next = load_unit(task);
    uint32_t q[C::kHeadDim / 16][2];
    LoadQ<C>(p.q + (static_cast<int64_t>(unit.row) * p.q_heads + my_head * group) * C::kHeadDim, group, q);
    DecodeAccumulator<C::kHeadDim> acc = {};
    acc.max = kNoScore;
    AttendTiles<C>(p, tiles, ring, q, acc);
    StoreWarp<C>(acc, group, shared);
    if (next.row >= 0) {
      tiles.Start(p, next, task % per_unit * p.heads);
      tiles.CopyFirst(p, ring, INT_MAX);
    }
    __syncthreads();
    MergeUnit<C>(p, workspace, unit_index, unit.row, parts == 1, head * group, group, shared);
    const bool combine = parts > 1 && !p.combine_kernel &&
                         LastToArrive(workspace.counters + unit.row * kv_heads + head, parts * blocks,
                                      reinterpret_cast<int*>(shared + C::kFlag));
    if (blocks > 1) ClusterWait();
    if (combine) {
      CombineSplits<C>(p, workspace, unit_index - unit.split, parts, head * group, group * p.heads, unit.row,
                       shared + C::kScratch);
    }
    __syncthreads();  // the last stages and the scratch are free
    unit = next;
  }
}

// For many short units: the counters' fences would hold up the copies in flight, a kernel boundary does not.
template <typename C>
__global__ void __launch_bounds__(C::kThreads) CombineSplitsKernel(DecodeAttentionParams p, int group) {
  extern __shared__ __align__(1024) char shared[];  // kScratchBytes
  PdlWait();
  PdlTrigger();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int first_unit = p.splits[row], parts = p.splits[row + 1] - first_unit;
  if (parts < 2) return;
  const DecodeWorkspace workspace = CarveDecodeWorkspace(p.workspace, p.max_units, p.q_heads);
  CombineSplits<C>(p, workspace, first_unit, parts, head * group, group, row, shared);
}

template <typename C>
cudaError_t LaunchDecodeAttention(const DecodeAttentionParams& params, const LaunchContext& context) {
  const auto kernel = DecodeAttentionKernel<C>;
  static_assert(2 * (C::kSharedBytes + 1024) <= 228 * 1024);  // two blocks fit on an SM
  cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  if (error != cudaSuccess) return error;
  const int kv_heads = static_cast<int>(params.kv.kv_heads), group = params.q_heads / kv_heads;
  const int clusters =
      std::min(params.max_units * kv_heads / params.heads, std::max(1, context.num_sms * 2 / params.cluster));
  error = Launch(context, kernel, dim3(static_cast<unsigned>(clusters * params.cluster)), dim3(C::kThreads),
                 C::kSharedBytes, params.cluster, params, group);
  if (error != cudaSuccess || !params.combine_kernel) return error;
  return Launch(context, CombineSplitsKernel<C>, dim3(static_cast<unsigned>(params.rows), kv_heads), dim3(C::kThreads),
                C::kScratchBytes, 1, params, group);
}

}  // namespace agentserve::kernels::cuda
