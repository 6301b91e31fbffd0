// Log probabilities of the raw softmax: of the chosen token and of the best ones.
#pragma once

#include "kernels/sampling/sampling_window.cuh"

namespace agentserve::kernels::cuda {

// The first item of this thread's logits (as given, NaN left out) after `after`.
__device__ inline uint64_t NextRawItem(const Slice& slice, uint64_t after) {
  uint64_t next = kNoItem;
  for (int vector = threadIdx.x; vector < slice.count; vector += kSampleThreads) {
    const uint4 v = slice.Load(vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t key = Key16(BitsAt(v, i));
      if (key - 0x7fu > 0xff80u - 0x7fu) continue;
      const uint64_t item = MakeItem(WidenKey(key), (slice.first + vector) * 8 + i);
      if (item > after && item < next) next = item;
    }
  }
  return next;
}

inline constexpr int kMaxListed = 1024;

// The slice's best `n` into s.top, by listing all that are not worse than a bound and ranking them. False, in all
// threads: there is no bound, or too many are not worse.
__device__ inline bool RankBest(const Slice& slice, SampleShared& s, int n) {
  VectorBest best;
  for (int v = threadIdx.x; v < slice.count; v += kSampleThreads) best.Add(slice.Load(v), v);
  if (threadIdx.x == 0) s.item_count = 0;
  const uint32_t bound = BoundOfBest(best.key, static_cast<uint32_t>(n));
  if (bound == kNoKey) return false;
  for (int vector = threadIdx.x; best.key <= bound && vector < slice.count; vector += kSampleThreads) {
    const uint4 v = slice.Load(vector);
    if (Key16(MaxBits(v)) > bound) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t key = Key16(BitsAt(v, i));
      if (key > bound || !IsFiniteKey16(key)) continue;
      const int at = atomicAdd(&s.item_count, 1);
      if (at < kMaxListed) s.items[at] = MakeItem(WidenKey(key), (slice.first + vector) * 8 + i);
    }
  }
  __syncthreads();
  const int listed = s.item_count;
  if (listed > kMaxListed) return false;
  for (int mine = threadIdx.x; mine < listed; mine += kSampleThreads) {
    const uint64_t item = s.items[mine];
    int rank = 0;
    for (int i = 0; i < listed; ++i) rank += s.items[i] < item ? 1 : 0;
    if (rank < n) s.top[rank] = item;
  }
  return true;
}

// Sum of exp(logit - max) of the slice into s.summary.mass, its best `n` into s.top. All threads of every block; the
// caller shows both to the cluster by a barrier.
__device__ inline void SliceLogprobs(const Slice& slice, SampleShared& s, float max, int n) {
  WeighSlice(slice, s, max, 1.4426950408889634f);
  if (n == 0 || RankBest(slice, s, n)) return;
  uint64_t mine = NextRawItem(slice, 0);
  for (int i = 0; i < n; ++i) {
    const uint64_t best = BlockMin64(mine, s.scratch);
    if (best != kNoItem && mine == best) mine = NextRawItem(slice, best);
    if (threadIdx.x == 0) s.top[i] = best;
    __syncthreads();
  }
}

// Joins the slices' results; first block of the cluster, s.token is set.
__device__ inline void WriteLogprobs(const Slice& slice, SampleShared& s, int blocks, float max, int n,
                                     SampledRow* out) {
  namespace cg = cooperative_groups;
  double sum = 0;
  for (int r = 0; r < blocks; ++r) sum += cg::this_cluster().map_shared_rank(&s.summary, r)->mass;
  const double log_total = max + log(sum);
  if (threadIdx.x == 0) {
    out->logprob = static_cast<float>(__bfloat162float(slice.logits[s.token]) - log_total);
  }
  const int mine = threadIdx.x, all = blocks * n;
  uint64_t item = kNoItem;
  if (mine < all) item = *cg::this_cluster().map_shared_rank(&s.top[mine % n], mine / n);
  if (mine < all) s.items[mine] = item;
  if (mine < n) out->top_tokens[mine] = -1;
  __syncthreads();
  if (item == kNoItem) return;
  int rank = 0;
  for (int i = 0; i < all; ++i) rank += s.items[i] < item ? 1 : 0;
  if (rank >= n) return;
  out->top_tokens[rank] = static_cast<int32_t>(item & 0xffffffffu);
  out->top_logprobs[rank] = static_cast<float>(ValueOfKey(static_cast<uint32_t>(item >> 32)) - log_total);
}

}  // namespace agentserve::kernels::cuda
