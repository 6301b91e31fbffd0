// The fast way for rows without edits: logits kept in shared memory, tokens counted only in two windows of neighbouring
// 16-bit keys. The first starts at the best logit and reaches sixteen powers of two towards zero, the second does the
// same from there on the other side of zero; for real logits they hold all but a few. What lies between the windows
// ("gap") and beyond the second ("tail") is only summed. Every block of a cluster reads all counts and decides for
// itself, so no block waits for another's decision. Where a cut or the draw falls between or beyond the windows, and
// where rounding leaves a doubt, the row goes the general way (sampling_order.cuh).
#pragma once

#include "kernels/sampling/sampling_order.cuh"

namespace agentserve::kernels::cuda {

static_assert(kWindowKeys == 4 * kSampleThreads, "a thread has four neighbouring keys");

struct Window {
  uint32_t first, second;  // 16-bit keys at which the windows start
  float max;
  float scale;     // log2(e) / temperature
  double inverse;  // 1 / temperature

  __device__ Window(uint32_t best_key, float temperature) : first(best_key), second(best_key + kWindowKeys / 2) {
    max = ValueOfKey(WidenKey(best_key));
    inverse = 1.0 / temperature;
    scale = static_cast<float>(1.4426950408889634 * inverse);
    if (best_key < 0x8000u) {
      const uint32_t exponent = (best_key ^ 0x7fffu) >> 7;  // of the best; at least 1 for the other side's sake
      second = 0x8000u + ((umax(exponent, 127u) - 12) << 7);
    }
  }
  static __device__ __forceinline__ uint32_t umax(uint32_t a, uint32_t b) { return a > b ? a : b; }
  __device__ __forceinline__ uint32_t KeyOf(uint32_t bin) const {
    return bin < kWindowKeys / 2 ? first + bin : second + (bin - kWindowKeys / 2);
  }
  __device__ __forceinline__ double Weight(uint32_t bin) const {
    return exp((static_cast<double>(ValueOfKey(WidenKey(KeyOf(bin)))) - max) * inverse);
  }
};

__device__ __forceinline__ uint32_t MaxBits(uint4 v) {
  const auto pair = [](uint32_t x) { return *reinterpret_cast<const __nv_bfloat162*>(&x); };
  const __nv_bfloat162 two = __hmax2(__hmax2(pair(v.x), pair(v.y)), __hmax2(pair(v.z), pair(v.w)));
  return __bfloat16_as_ushort(__hmax(two.x, two.y));
}

// Copies the slice to shared memory and puts its best item into s.summary: 0 if some logit is +infinity, kNoItem if
// none is finite. Ends with the cluster's barrier.
__device__ inline void LoadSlice(Slice& slice, SampleShared& s) {
  constexpr int kUnroll = 4;
  uint4* cache = reinterpret_cast<uint4*>(s.counts);
  uint32_t best_key = kNoKey;
  int best_vector = 0;
  bool infinite = false;
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
      const uint32_t key = Key16(MaxBits(v[u]));
      infinite |= key == kInfinityKey16;
      if (IsFiniteKey16(key) && key < best_key) {
        best_key = key;
        best_vector = vector;
      }
    }
  }
  uint64_t best = kNoItem;
  if (best_key != kNoKey) {
    const uint4 v = cache[best_vector];
    int at = 7;
#pragma unroll
    for (int i = 6; i >= 0; --i) at = Key16(BitsAt(v, i)) == best_key ? i : at;
    best = MakeItem(WidenKey(best_key), (slice.first + best_vector) * 8 + at);
  }
  best = BlockMin64(infinite ? 0 : best, s.scratch);
  if (threadIdx.x == 0) s.summary.best = best;
  slice.cache = cache;
  cooperative_groups::this_cluster().sync();
}

// Counts the slice's tokens in the windows and sums those outside. Ends with the cluster's barrier.
__device__ inline void CountWindow(const Slice& slice, SampleShared& s, const Window& window, bool sum_tail) {
  uint32_t gap = 0, tail = 0;
  float gap_mass = 0, tail_mass = 0;
  uint32_t* bins = s.Bins();
  for (int vector = threadIdx.x; vector < slice.count; vector += kSampleThreads) {
    const uint4 v = slice.cache[vector];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t bits = BitsAt(v, i), key = Key16(bits);
      const uint32_t in_first = key - window.first, in_second = key - window.second;
      if (!IsFiniteKey16(key)) continue;
      if (in_first < kWindowKeys / 2) {
        atomicAdd(&bins[in_first], 1u);
      } else if (in_second < kWindowKeys / 2) {
        atomicAdd(&bins[kWindowKeys / 2 + in_second], 1u);
      } else if (key < window.second) {
        ++gap;
        gap_mass += exp2f((__uint_as_float(bits << 16) - window.max) * window.scale);
      } else {
        ++tail;
        if (sum_tail) tail_mass += exp2f((__uint_as_float(bits << 16) - window.max) * window.scale);
      }
    }
  }
  if (__syncthreads_or(gap + tail > 0) != 0) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const double gap_sum = WarpSumDouble(gap_mass), tail_sum = WarpSumDouble(tail_mass);
    const uint32_t gaps = __reduce_add_sync(0xffffffffu, gap), tails = __reduce_add_sync(0xffffffffu, tail);
    if (lane == 0) s.outside[warp] = {gaps, tails, gap_sum, tail_sum};
    __syncthreads();
    if (warp == 0) {
      const Outside mine = lane < kSampleWarps ? s.outside[lane] : Outside{0, 0, 0, 0};
      const Outside sum = {__reduce_add_sync(0xffffffffu, mine.gap), __reduce_add_sync(0xffffffffu, mine.tail),
                           WarpSumDouble(mine.gap_mass), WarpSumDouble(mine.tail_mass)};
      if (lane == 0) s.slice_outside = sum;
    }
  } else if (threadIdx.x == 0) {
    s.slice_outside = {0, 0, 0, 0};
  }
  cooperative_groups::this_cluster().sync();
}

// Exclusive over the block's threads; `scratch` is used by this call only. Has one barrier inside.
template <typename T>
__device__ __forceinline__ T BlockScan(T x, T* scratch, T* total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T upto = WarpScan(x);
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  const T warps = WarpScan(lane < kSampleWarps ? scratch[lane] : T{0});
  *total = __shfl_sync(0xffffffffu, warps, 31);
  const T before = __shfl_sync(0xffffffffu, warps, warp == 0 ? 0 : warp - 1);
  return (warp == 0 ? T{0} : before) + (upto - x);
}

// This thread's four keys, only as many tokens as top-k leaves, and what precedes them.
struct Bins {
  uint32_t take[4];
  double weight[4];
  uint32_t count_before;
  double mass_before;
};

// The first key with tokens for which `hit(i, count before, mass before, mass with it)` holds; kWindowKeys if none. Has
// a barrier; its owner then publishes what it found in s.cut[slot], which takes another.
template <typename Hit>
__device__ __forceinline__ uint32_t FirstBin(const Bins& bins, SampleShared& s, int slot, Hit hit) {
  uint32_t mine = kWindowKeys;
  double mass = bins.mass_before;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    mass += bins.take[i] * bins.weight[i];
    if (mine == kWindowKeys && bins.take[i] > 0 && hit(i, mass)) mine = threadIdx.x * 4 + i;
  }
  const uint32_t lowest = __reduce_min_sync(0xffffffffu, mine);
  if (threadIdx.x % 32 == 0 && lowest < kWindowKeys) atomicMin(&s.hit[slot], lowest);
  __syncthreads();
  return s.hit[slot];
}

// Count and mass before key `i` of this thread.
__device__ __forceinline__ Place Before(const Bins& bins, int i) {
  Place place;
  place.count = bins.count_before;
  place.mass = bins.mass_before;
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    if (j >= i) break;
    place.count += bins.take[j];
    place.mass += bins.take[j] * bins.weight[j];
  }
  return place;
}

// What all searches of a row share.
struct WindowRow {
  uint32_t first_count;  // tokens in the first window
  Outside outside;       // of the whole row
  bool top_k;
  uint32_t keep;  // tokens left by top-k
  double total;   // their mass
};

// Sums the cluster's counts, applies top-k, weighs. False: the windows do not hold what is needed.
__device__ inline bool ReadWindow(const SamplingRow& row, SampleShared& s, int blocks, const Window& window, int vocab,
                                  Bins& bins, WindowRow& sums) {
  namespace cg = cooperative_groups;
  uint4 words[kMaxClusterSize];
#pragma unroll
  for (int r = 0; r < kMaxClusterSize; ++r) {
    words[r] = r < blocks ? reinterpret_cast<const uint4*>(cg::this_cluster().map_shared_rank(s.Bins(), r))[threadIdx.x]
                          : make_uint4(0, 0, 0, 0);
  }
  const int lane = threadIdx.x % 32;
  Outside mine = {0, 0, 0, 0};
  if (lane < blocks) mine = *cg::this_cluster().map_shared_rank(&s.slice_outside, lane);
  uint32_t count[4] = {0, 0, 0, 0};
#pragma unroll
  for (int r = 0; r < kMaxClusterSize; ++r) {
    count[0] += words[r].x;
    count[1] += words[r].y;
    count[2] += words[r].z;
    count[3] += words[r].w;
  }
  sums.outside = {__reduce_add_sync(0xffffffffu, mine.gap), __reduce_add_sync(0xffffffffu, mine.tail),
                  WarpSumDouble(mine.gap_mass), WarpSumDouble(mine.tail_mass)};
  const bool second = threadIdx.x >= kSampleThreads / 2;
  uint32_t all = 0;
  bins.count_before = BlockScan(count[0] + count[1] + count[2] + count[3], s.scan_count, &all);
  if (threadIdx.x == kSampleThreads / 2) s.first_count = bins.count_before;
  if (second) bins.count_before += sums.outside.gap;
  all += sums.outside.gap;
  const bool top_k = row.top_k > 0 && row.top_k < static_cast<uint32_t>(vocab);
  sums.top_k = top_k;
  sums.keep = top_k ? row.top_k : all + sums.outside.tail;
  double mass = 0;
  uint32_t before = bins.count_before;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bins.take[i] = before >= sums.keep ? 0 : min(count[i], sums.keep - before);
    bins.weight[i] = bins.take[i] > 0 ? window.Weight(threadIdx.x * 4 + i) : 0.0;
    mass += bins.take[i] * bins.weight[i];
    before += count[i];
  }
  bins.mass_before = BlockScan(mass, s.scan_mass, &sums.total);
  sums.first_count = s.first_count;
  if (second) bins.mass_before += sums.outside.gap_mass;
  if (sums.keep > sums.first_count) sums.total += sums.outside.gap_mass;
  if (!top_k) sums.total += sums.outside.tail_mass;
  const bool in_gap =
      sums.keep > sums.first_count && sums.keep <= sums.first_count + sums.outside.gap && sums.outside.gap > 0 && top_k;
  return !(top_k && sums.keep >= all) && !in_gap;
}

// True if a target that is first met at this key (of which `before` precedes) may be met in the gap already.
__device__ __forceinline__ bool MayBeInGap(const WindowRow& sums, uint32_t bin, const Place& before) {
  return bin >= kWindowKeys / 2 && sums.outside.gap > 0 && before.count == sums.first_count + sums.outside.gap;
}

// top-k, top-p, min-p and the draw on the windows; all threads get the same. False: go the general way.
__device__ inline bool DecideInWindow(const SamplingRow& row, SampleShared& s, int blocks, const Window& window,
                                      int vocab, Decision* decision) {
  namespace cg = cooperative_groups;
  Bins bins;
  WindowRow sums;
  if (!ReadWindow(row, s, blocks, window, vocab, bins, sums)) return false;
  uint32_t keep = sums.keep;
  double total = sums.total;
  const auto search = [&](int slot, const Target& target) -> const WindowCut& {
    const uint32_t bin = FirstBin(bins, s, slot, [&](int i, double mass) {
      return target.until == Until::kWeightBelow ? bins.weight[i] < target.value : Reached(target, 0, mass);
    });
    if (bin / 4 == threadIdx.x) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (static_cast<int>(bin % 4) != i) continue;
        const Place before = Before(bins, i);
        const uint32_t n = TokensToReach(target, 0, before.mass, bins.take[i], bins.weight[i]);
        s.cut[slot] = {before.count + n, n, before.mass + n * bins.weight[i], MayBeInGap(sums, bin, before)};
      }
    }
    if (bin == kWindowKeys && threadIdx.x == 0) s.cut[slot].doubtful = true;
    __syncthreads();
    return s.cut[slot];
  };
  bool bounded = sums.outside.tail == 0 || sums.top_k;  // the last token kept is in a window
  if (row.top_p < 1.0f) {
    const WindowCut& cut = search(0, {Until::kMassReached, 0, static_cast<double>(row.top_p) * total});
    if (cut.doubtful) return false;
    keep = cut.count;
    total = cut.mass;
    bounded = true;
  }
  if (row.min_p > 0.0f) {
    const WindowCut& cut = search(1, {Until::kWeightBelow, 0, static_cast<double>(row.min_p)});
    if (s.hit[1] == kWindowKeys ? !bounded || (sums.outside.gap > 0 && keep > sums.first_count) : cut.doubtful)
      return false;
    if (s.hit[1] < kWindowKeys && cut.count < keep) {
      keep = cut.count > 0 ? cut.count : 1;
      total = cut.count > 0 ? cut.mass : 1.0;
    }
  }
  const WindowCut& drawn = search(2, {Until::kMassPassed, 0, UniformAt(row.seed, row.position) * total});
  if (drawn.doubtful || drawn.count > keep) return false;
  if (s.hit[2] / 4 == threadIdx.x) {  // which block has it
    uint32_t index = drawn.in_key - 1, counts[kMaxClusterSize], rank = 0;
#pragma unroll
    for (int r = 0; r < kMaxClusterSize; ++r) {
      counts[r] = r < blocks ? cg::this_cluster().map_shared_rank(s.Bins(), r)[s.hit[2]] : 0;
    }
    bool found = false;
#pragma unroll
    for (int r = 0; r < kMaxClusterSize; ++r) {
      found |= index < counts[r];
      if (!found) {
        index -= counts[r];
        rank = r + 1;
      }
    }
    s.decision = {WidenKey(window.KeyOf(s.hit[2])), index, rank};
  }
  __syncthreads();
  *decision = s.decision;
  return true;
}

}  // namespace agentserve::kernels::cuda
