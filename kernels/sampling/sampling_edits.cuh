// The sorted list of a row's logits that have an edit, for Order. All threads of one block.
#pragma once

#include "kernels/sampling/sampling_order.cuh"

namespace agentserve::kernels::cuda {

// Ascending; n a power of two. A warp's 32 pairs lie in 64 neighbouring items while the step is at most 32, so only the
// longer steps need the block's barrier. Ends with one.
__device__ inline void BitonicSort(uint64_t* items, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < n / 2; i += kSampleThreads) {
        const int low = (i & ~(step - 1)) * 2 + (i & (step - 1)), high = low + step;
        const uint64_t a = items[low], b = items[high];
        if ((a > b) == ((low & size) == 0)) {
          items[low] = b;
          items[high] = a;
        }
      }
      const int next = step > 1 ? step / 2 : size;
      if (step > 32 || next > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

// Exclusive over the threads of the block; scratch is free again after the next barrier.
__device__ inline double BlockScanExclusive(double x, double* scratch) {
  const double upto = WarpScan(x);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 31) scratch[warp] = upto;
  __syncthreads();
  double before = 0;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  return before + (upto - x);
}

// Fills order.items and order.item_mass, sets order.edit_count to the number of candidates among the edits and marks
// their regions as touched. Ends with a barrier.
__device__ inline void SortEdits(const Slice& slice, Order& order) {
  SampleShared& s = order.s;
  int padded = 1;
  while (padded < slice.edit_count) padded *= 2;
  int valid = 0;
  for (int e = threadIdx.x; e < padded; e += kSampleThreads) {
    uint64_t item = kNoItem;
    if (e < slice.edit_count) {
      const LogitEdit edit = slice.edits[e];
      if (edit.token >= 0 && edit.token < slice.vocab) {
        const uint32_t key = Key32(Adjust(slice.row, edit, __bfloat162float(slice.logits[edit.token])));
        if (key != kNoKey) item = MakeItem(key, static_cast<uint32_t>(edit.token));
      }
    }
    order.items[e] = item;
    if (item == kNoItem) continue;
    ++valid;
    const uint32_t region = static_cast<uint32_t>(item >> 54);
    atomicOr(&s.touched_bits[region / 32], 1u << (region % 32));
  }
  if (threadIdx.x == 0) s.item_count = 0;
  __syncthreads();
  if (valid > 0) atomicAdd(&s.item_count, valid);
  BitonicSort(order.items, padded);
  __syncthreads();
  order.edit_count = s.item_count;
  const int each = (order.edit_count + kSampleThreads - 1) / kSampleThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, order.edit_count);
  const int end = min(begin + each, order.edit_count);
  double mine = 0;
  for (int e = begin; e < end; ++e) mine += order.Weight(static_cast<uint32_t>(order.items[e] >> 32));
  double mass = BlockScanExclusive(mine, s.chunk_mass);
  for (int e = begin; e < end; ++e) {
    order.item_mass[e] = mass;
    mass += order.Weight(static_cast<uint32_t>(order.items[e] >> 32));
  }
  if (end == order.edit_count && begin < end) order.item_mass[end] = mass;
  if (order.edit_count == 0 && threadIdx.x == 0) order.item_mass[0] = 0;
  __syncthreads();
}

}  // namespace agentserve::kernels::cuda
