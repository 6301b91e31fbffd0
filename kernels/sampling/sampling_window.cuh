// The fast way to a token. Logits stay in shared memory after one read; tokens are counted only in two windows of
// neighbouring 16-bit keys. The first starts at the best logit and reaches sixteen powers of two towards zero, the
// second does the same on the other side of zero; for real logits they hold all but a few. What lies between the
// windows
// ("gap") and beyond the second ("tail") is only summed. Where a cut or the draw falls there the row goes the general
// way (sampling_order.cuh).
#pragma once

#include "kernels/sampling/sampling_edits.cuh"

namespace agentserve::kernels::cuda {

// Values of SliceSummary::best that are no items.
inline constexpr uint64_t kInfiniteLogit = 0, kInfiniteAdjusted = 1;

// Masses are sums of weights in units of 2^-40 of the best token's: exact in every order of summing.
__device__ __forceinline__ uint64_t FixedMass(double weight) { return __double2ull_rn(weight * 0x1.0p40); }

struct Window {
  uint32_t first, second;  // 16-bit keys at which the windows start
  float max;
  float scale;     // log2(e) / temperature
  double inverse;  // 1 / temperature

  __device__ Window(uint32_t best_key32, float temperature)
      : first(best_key32 >> 16), second(first + kWindowKeys / 2), max(ValueOfKey(best_key32)) {
    inverse = 1.0 / temperature;
    scale = static_cast<float>(1.4426950408889634 * inverse);
    if (first < 0x8000u) {
      const uint32_t exponent = max >= 1.0f ? (first ^ 0x7fffu) >> 7 : 127;
      second = 0x8000u + ((exponent - 12) << 7);
    }
  }
  __device__ __forceinline__ uint32_t KeyOf(uint32_t bin) const {
    return bin < kWindowKeys / 2 ? first + bin : second + (bin - kWindowKeys / 2);
  }
  // Of a 16-bit key; kWindowKeys for the gap, one more for the tail.
  __device__ __forceinline__ uint32_t BinOf(uint32_t key) const {
    const uint32_t in_first = key - first, in_second = key - second;
    const uint32_t bin = in_second < kWindowKeys / 2 ? kWindowKeys / 2 + in_second : kWindowKeys + (key >= second);
    return in_first < kWindowKeys / 2 ? in_first : bin;
  }
  __device__ __forceinline__ double Weight(uint32_t key32) const {
    return exp((static_cast<double>(ValueOfKey(key32)) - max) * inverse);
  }
  __device__ __forceinline__ float RoughWeight(float logit) const { return exp2f((logit - max) * scale); }
};

__device__ __forceinline__ uint32_t MaxBits(uint4 v) {
  const auto pair = [](uint32_t x) { return *reinterpret_cast<const __nv_bfloat162*>(&x); };
  const __nv_bfloat162 two = __hmax2(__hmax2(pair(v.x), pair(v.y)), __hmax2(pair(v.z), pair(v.w)));
  return __bfloat16_as_ushort(__hmax(two.x, two.y));
}

// The best of the vectors a thread has seen.
struct VectorBest {
  uint32_t key = kNoKey;  // 16 bits
  int vector = 0;
  bool infinite = false;

  __device__ __forceinline__ void Add(uint4 v, int at) {
    const uint32_t candidate = Key16(MaxBits(v));
    infinite |= candidate == kInfinityKey16;
    if (IsFiniteKey16(candidate) && candidate < key) {
      key = candidate;
      vector = at;
    }
  }
  __device__ __forceinline__ uint64_t Item(const Slice& slice, const uint4* cache) const {
    if (key == kNoKey) return kNoItem;
    const uint4 v = cache[vector];
    int at = 7;
#pragma unroll
    for (int i = 6; i >= 0; --i) at = Key16(BitsAt(v, i)) == key ? i : at;
    return MakeItem(WidenKey(key), (slice.first + vector) * 8 + at);
  }
};

// Applies the edits: logits whose adjusted value is a bf16 are replaced in shared memory, the others are taken out
// there and listed in s.EditItems(), sorted. Every block of the cluster makes the whole list. Ends with a barrier.
__device__ inline void PatchEdits(Slice& slice, SampleShared& s) {
  uint64_t* items = s.EditItems();
  uint16_t* cached = reinterpret_cast<uint16_t*>(s.counts);
  int padded = 2, valid = 0;
  while (padded < slice.edit_count) padded *= 2;
  if (threadIdx.x == 0) s.item_count = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < padded; e += kSampleThreads) {
    uint64_t item = kNoItem;
    const LogitEdit edit = e < slice.edit_count ? slice.edits[e] : LogitEdit{-1, 0, 0, 0};
    if (edit.token >= 0 && edit.token < slice.vocab) {
      const uint32_t key = Key32(Adjust(slice.row, edit, __bfloat162float(slice.logits[edit.token]))), high = key >> 16;
      uint16_t bits = 0x7fff;
      if (key == kNoKey) {
        bits = 0xff80;
      } else if (WidenKey(high) == key || key == kInfinityKey32) {
        bits = static_cast<uint16_t>((high & 0x8000u) != 0 ? high : high ^ 0x7fffu);
      } else {
        item = MakeItem(key, static_cast<uint32_t>(edit.token));
        ++valid;
      }
      const int at = edit.token - slice.first * 8;
      if (at >= 0 && at < slice.count * 8) cached[at] = bits;
    }
    items[e] = item;
  }
  if (valid > 0) atomicAdd(&s.item_count, valid);
  __syncthreads();
  BitonicSort(items, padded);
  slice.item_count = s.item_count;
}

// Copies the slice to shared memory. No barrier: a thread finds there what it has put there.
__device__ inline VectorBest CacheSlice(Slice& slice, SampleShared& s) {
  constexpr int kUnroll = 4;
  uint4* cache = reinterpret_cast<uint4*>(s.counts);
  VectorBest best;
  for (int base = threadIdx.x; base < slice.count; base += kUnroll * kSampleThreads) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (base + u * kSampleThreads < slice.count) v[u] = slice.Load(base + u * kSampleThreads);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int vector = base + u * kSampleThreads;
      if (vector >= slice.count) break;
      cache[vector] = v[u];
      best.Add(v[u], vector);
    }
  }
  slice.cache = cache;
  return best;
}

// Applies edits and puts the slice's best item into s.summary (or kNoItem, kInfiniteLogit, kInfiniteAdjusted) with the
// best key of the logits as given; then the row's into s.row_best, s.row_raw_key. Has the cluster's barrier inside.
__device__ inline void FindBest(Slice& slice, SampleShared& s, int blocks, const VectorBest& best) {
  const uint4* cache = slice.cache;
  uint64_t item;
  uint32_t thread_best = best.key;
  if (slice.edit_count > 0) {
    const uint32_t raw_key = __reduce_min_sync(0xffffffffu, best.key);
    if (threadIdx.x % 32 == 0) s.scan_count[threadIdx.x / 32] = raw_key;
    PatchEdits(slice, s);
    if (threadIdx.x < 32) {
      const uint32_t key =
          __reduce_min_sync(0xffffffffu, threadIdx.x < kSampleWarps ? s.scan_count[threadIdx.x] : kNoKey);
      if (threadIdx.x == 0) s.summary.raw_key = key;
    }
    VectorBest adjusted;
    for (int v = threadIdx.x; v < slice.count; v += kSampleThreads) adjusted.Add(cache[v], v);
    item = adjusted.Item(slice, cache);
    thread_best = adjusted.key;
    if (slice.item_count > 0 && s.EditItems()[0] < item) item = s.EditItems()[0];
    if (adjusted.infinite) item = kInfiniteAdjusted;
  } else {
    item = best.Item(slice, cache);
  }
  slice.thread_best = thread_best;
  item = BlockMin64(best.infinite ? kInfiniteLogit : item, s.scratch);
  if (threadIdx.x == 0) s.summary.best = item;
  cooperative_groups::this_cluster().sync();
  if (threadIdx.x < 32) {
    SliceSummary mine = {kNoItem, 0, 0, 0, kNoKey, 0};
    const int lane = static_cast<int>(threadIdx.x);
    if (lane < blocks) mine = *cooperative_groups::this_cluster().map_shared_rank(&s.summary, lane);
    const uint64_t row_best = WarpMin64(mine.best);
    const uint32_t raw_key = __reduce_min_sync(0xffffffffu, mine.raw_key);
    if (lane == 0) {
      s.row_best = row_best;
      s.row_raw_key = raw_key;
    }
  }
  __syncthreads();
}

// A 16-bit key that at least `k` of the slice's tokens are not worse than, given the best key of each thread's vectors:
// the k-th of these, so hardly more than `k` tokens are not worse. kNoKey if there are fewer. All threads; barriers.
__device__ __forceinline__ uint32_t BoundOfBest(uint32_t thread_best, uint32_t k) {
  if (k > kSampleThreads) return kNoKey;
  uint32_t low = 0, high = 0x10000;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (static_cast<uint32_t>(__syncthreads_count(thread_best <= middle)) >= k) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low < 0x10000 ? low : kNoKey;
}

// Mass of the slice's tokens that are counted in its own windows, in all threads.
__device__ inline uint64_t SumOwnBins(SampleShared& s, const Window& window) {
  uint64_t mass = 0;
  for (uint32_t bin = threadIdx.x; bin < kWindowKeys; bin += kSampleThreads) {
    const uint32_t count = s.Bins()[bin];
    if (count > 0) mass += count * FixedMass(window.RoughWeight(ValueOfKey(WidenKey(window.KeyOf(bin)))));
  }
  return mass;
}

// Counts the slice's tokens in the windows and sums those outside (s.slice_outside); with sum_all also the mass of all.
// The first block adds the listed edits to the sums. With top_k tokens that cannot be among the best top_k may be left
// out. Ends with the cluster's barrier.
__device__ inline void CountWindow(const Slice& slice, SampleShared& s, const Window& window, uint32_t top_k,
                                   bool sum_all) {
  const uint32_t bound = top_k > 0 ? BoundOfBest(slice.thread_best, top_k) : kNoKey;
  uint32_t gap = 0, tail = 0;
  float gap_mass = 0, tail_mass = 0;
  uint64_t own_mass = 0;
  const auto outside = [&](bool in_gap, float logit) {
    const float weight = in_gap || sum_all ? window.RoughWeight(logit) : 0.0f;
    gap += in_gap ? 1 : 0;
    tail += in_gap ? 0 : 1;
    gap_mass += in_gap ? weight : 0.0f;
    tail_mass += in_gap ? 0.0f : weight;
  };
  for (int vector = threadIdx.x; vector < slice.count; vector += kSampleThreads) {
    const uint4 v = slice.cache[vector];
    if (bound != kNoKey && Key16(MaxBits(v)) > bound) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t bits = BitsAt(v, i), key = Key16(bits);
      if (key > bound) continue;
      const uint32_t bin = window.BinOf(key);
      if (bin < kWindowKeys && IsFiniteKey16(key)) {
        atomicAdd(&s.Bins()[bin], 1u);
      } else if (IsFiniteKey16(key)) {
        outside(bin == kWindowKeys, __uint_as_float(bits << 16));
      }
    }
  }
  if (cooperative_groups::this_cluster().block_rank() == 0) {
    for (int e = threadIdx.x; e < slice.item_count; e += kSampleThreads) {
      const uint32_t key = static_cast<uint32_t>(s.EditItems()[e] >> 32), bin = window.BinOf(key >> 16);
      if (bin >= kWindowKeys) outside(bin == kWindowKeys, ValueOfKey(key));
      if (bin < kWindowKeys && sum_all) own_mass += FixedMass(window.RoughWeight(ValueOfKey(key)));
    }
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool any = __syncthreads_or(gap + tail > 0 || own_mass > 0) != 0;
  if (sum_all) own_mass += SumOwnBins(s, window);
  if (!any && !sum_all) {
    if (threadIdx.x == 0) s.slice_outside = {0, 0, 0, 0};
  } else {
    const uint32_t gaps = __reduce_add_sync(0xffffffffu, gap), tails = __reduce_add_sync(0xffffffffu, tail);
    const uint64_t gap_fixed = gaps == 0 ? 0 : FixedMass(LaneSum(gap_mass));
    uint64_t all = gap_fixed;
    if (sum_all) all += WarpSum64(own_mass) + FixedMass(LaneSum(tail_mass));
    if (lane == 0) s.outside[warp] = {gaps, tails, gap_fixed, all};
    __syncthreads();
    if (warp == 0) {
      const Outside mine = lane < kSampleWarps ? s.outside[lane] : Outside{0, 0, 0, 0};
      const Outside sum = {__reduce_add_sync(0xffffffffu, mine.gap), __reduce_add_sync(0xffffffffu, mine.tail),
                           WarpSum64(mine.gap_mass), WarpSum64(mine.all_mass)};
      if (lane == 0) s.slice_outside = sum;
    }
  }
  cooperative_groups::this_cluster().sync();
}

}  // namespace agentserve::kernels::cuda
