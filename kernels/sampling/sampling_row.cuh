// One row of logits, cut into the slices of a cluster's blocks: shared memory, access with edits applied, the pass that
// finds the best and counts keys, and the two searches over a slice in id order.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "kernels/sampling/sampling_key.cuh"
#include "kernels/tile/reduce.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kSampleThreads = 512;
inline constexpr int kSampleWarps = kSampleThreads / 32;
inline constexpr int kMaxClusterSize = 8;
inline constexpr int kMaxSliceVectors = 8191;  // of 8 logits, so that a count fits into 16 bits
inline constexpr int kMaxChunks = 256;         // of 256 neighbouring ids: what a warp reads in one turn
inline constexpr int kRegions = 1024;          // of 64 neighbouring 16-bit keys
inline constexpr int kSharedItems = 4096;      // edits of a row beyond this are sorted in global memory

// What a block tells the others of its cluster about its slice.
struct SliceSummary {
  uint64_t best;        // item
  uint32_t candidates;  // logits above -infinity, edits applied
  uint32_t finite;      // some logit as given is finite
  uint32_t infinite;    // some logit as given is +infinity
  uint32_t raw_key;     // 16 bits, of the best logit as given
  double mass;
};

// Where the drawn token is: the `index`-th (by id) of block `rank`'s logits with this key.
struct Decision {
  uint32_t key;
  uint32_t index;
  uint32_t rank;
};

// Tokens whose key is in neither window of sampling_window.cuh.
struct Outside {
  uint32_t gap, tail;
  uint64_t gap_mass;
  uint64_t all_mass;  // of all tokens of the slice or row, not only those outside
};
inline constexpr int kWindowKeys = 4096;
// A place in the order of sampling, with masses in fixed point.
struct WindowPlace {
  uint32_t key, index;  // the token's, and its index among the tokens with this key, by id
  uint32_t bin;
  uint32_t count;  // tokens up to and with it
  uint64_t mass;   // their mass
};

// A place in the order of sampling.
struct Place {
  uint32_t key = 0;    // of the token
  uint32_t index = 0;  // among the tokens with its key, by id
  uint32_t count = 0;  // tokens up to and with it
  double mass = 0;     // their mass
};

struct SampleShared {
  uint32_t counts[32768];  // per 16-bit key, two to a word; the fast way keeps the slice's logits here
  uint8_t touched[kRegions];
  uint32_t touched_bits[kRegions / 32];
  uint8_t edited[kMaxSliceVectors + 1];  // one bit a logit
  double chunk_mass[kMaxChunks];
  uint32_t chunk_count[kMaxChunks];
  uint64_t scratch[kSampleWarps];
  SliceSummary summary;
  Decision decision;
  int32_t token;
  double log_sum;
  uint64_t top[kMaxTopLogprobs];
  // Only used by the first block of a cluster (sampling_order.cuh).
  int regions, item_count;
  uint16_t region[kRegions];
  uint32_t region_count[kRegions];
  double region_mass[kRegions];
  uint64_t items[kSharedItems];
  double item_mass[kSharedItems + 1];
  // Of the fast way (sampling_window.cuh).
  Outside outside[kSampleWarps], slice_outside;
  uint32_t scan_count[kSampleWarps];
  uint64_t scan_mass[kSampleWarps];
  uint64_t row_best;
  uint32_t row_raw_key;
  Outside row_outside;
  WindowPlace cut[4];
  uint32_t weight_cut;

  __device__ uint32_t* Bins() { return reinterpret_cast<uint32_t*>(items); }
  __device__ uint64_t* EditItems() { return reinterpret_cast<uint64_t*>(item_mass); }
};

__device__ __forceinline__ uint64_t WarpMin64(uint64_t x) {
  const uint32_t high = static_cast<uint32_t>(x >> 32), least = __reduce_min_sync(0xffffffffu, high);
  const uint32_t low = __reduce_min_sync(0xffffffffu, high == least ? static_cast<uint32_t>(x) : 0xffffffffu);
  return static_cast<uint64_t>(least) << 32 | low;
}
__device__ __forceinline__ uint64_t WarpSum64(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
// All threads get the minimum; ends with every thread past a barrier, scratch free after the next one.
__device__ inline uint64_t BlockMin64(uint64_t x, uint64_t* scratch) {
  x = WarpMin64(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  return WarpMin64(lane < kSampleWarps ? scratch[lane] : kNoItem);
}
__device__ __forceinline__ double WarpSumDouble(double x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
// Inclusive over the lanes.
template <typename T>
__device__ __forceinline__ T WarpScan(T x) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, x, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) x += other;
  }
  return x;
}

// The slice of a row that this block works on. Vectors are 8 logits; `first` and `count` are in vectors.
struct Slice {
  const __nv_bfloat16* logits;  // of the row
  const LogitEdit* edits;       // of the row
  SamplingRow row;
  int vocab;
  int first, count;
  int slice_vectors;         // of every block of the cluster but the last
  int edit_count = 0;        // 0 also where edits are ignored
  int item_count = 0;        // of SampleShared::EditItems
  uint32_t thread_best = 0;  // 16-bit key of the best of this thread's logits, edits applied; kNoKey if none is finite
  const uint4* cache = nullptr;  // the slice in shared memory, or null; edits are then applied (sampling_window.cuh)

  // Bits of eight logits; beyond the vocabulary NaN. Aligned rows are read 16 bytes at once.
  __device__ __forceinline__ uint4 Load(int vector) const {
    if (cache != nullptr) return cache[vector];
    const int id = (first + vector) * 8;
    if (vocab % 8 == 0) return *reinterpret_cast<const uint4*>(logits + id);
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(logits);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = id + 2 * i < vocab ? bits[id + 2 * i] : 0x7fffu;
      const uint32_t high = id + 2 * i + 1 < vocab ? bits[id + 2 * i + 1] : 0x7fffu;
      words[i] = low | high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
  // Bits of those of a vector's logits whose edit is still to be applied.
  __device__ __forceinline__ uint32_t EditedBits(const uint8_t* edited, int vector) const {
    return edit_count > 0 && cache == nullptr ? edited[vector] : 0u;
  }
  // The adjusted logit of a token that has an edit.
  __device__ inline float Edited(uint32_t id, uint32_t bits) const {
    int low = 0, high = edit_count - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (static_cast<uint32_t>(edits[middle].token) < id) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return Adjust(row, edits[low], __uint_as_float(bits << 16));
  }
};

__device__ __forceinline__ uint32_t BitsAt(const uint4& v, int i) {
  const uint32_t word = i < 2 ? v.x : i < 4 ? v.y : i < 6 ? v.z : v.w;
  return i % 2 == 0 ? word & 0xffffu : word >> 16;
}

// Sets the bits of edited tokens. Ends with a barrier.
__device__ inline void MarkEdits(const Slice& slice, SampleShared& s) {
  uint32_t* words = reinterpret_cast<uint32_t*>(s.edited);
  for (int i = threadIdx.x; i < (slice.count + 3) / 4; i += kSampleThreads) words[i] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < slice.edit_count; e += kSampleThreads) {
    const int token = slice.edits[e].token, vector = token / 8 - slice.first;
    if (token < 0 || token >= slice.vocab || vector < 0 || vector >= slice.count) continue;
    atomicOr(&words[vector / 4], 1u << (vector % 4 * 8 + token % 8));
  }
  __syncthreads();
}

// One thread's findings of the first pass.
struct Findings {
  uint32_t best_key = kNoKey;  // 16 bits, of logits without an edit
  uint32_t best_id = 0;
  uint64_t best_edited = kNoItem;
  uint32_t best_raw_edited = kNoKey;  // 16 bits, as given, of those with an edit
  uint32_t candidates = 0;
  bool finite = false, infinite = false;
};

template <bool kCount>
__device__ __forceinline__ void ScanVector(const Slice& slice, uint4 v, int vector, uint32_t edited, SampleShared& s,
                                           Findings& f) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t bits = BitsAt(v, i), key = Key16(bits), id = (slice.first + vector) * 8 + i;
    const bool valid = IsFiniteKey16(key);
    f.finite |= valid;
    f.infinite |= key == kInfinityKey16;
    if ((edited >> i & 1) != 0) {
      if (valid && key < f.best_raw_edited) f.best_raw_edited = key;
      const uint32_t key32 = Key32(slice.Edited(id, bits));
      if (key32 == kNoKey) continue;
      ++f.candidates;
      const uint64_t item = MakeItem(key32, id);
      f.best_edited = item < f.best_edited ? item : f.best_edited;
    } else if (valid) {
      ++f.candidates;
      if (key < f.best_key) {
        f.best_key = key;
        f.best_id = id;
      }
      if constexpr (kCount) {
        atomicAdd(&s.counts[key / 2], key % 2 == 0 ? 1u : 0x10000u);
        s.touched[key / 64] = 1;
      }
    }
  }
}

// The first pass: the best candidate, and with kCount how often each key occurs. Logits with an edit are not counted.
template <bool kCount>
__device__ __forceinline__ Findings ScanSlice(const Slice& slice, SampleShared& s) {
  constexpr int kUnroll = 4;
  Findings f;
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
      ScanVector<kCount>(slice, v[u], vector, slice.EditedBits(s.edited, vector), s, f);
    }
  }
  return f;
}

// Bit i: logit i of the vector has this 32-bit key.
__device__ __forceinline__ uint32_t MatchVector(const Slice& slice, const SampleShared& s, int vector, uint32_t key) {
  const uint4 v = slice.Load(vector);
  const uint32_t edited = slice.EditedBits(s.edited, vector), key16 = key >> 16;
  uint32_t matches = 0;
  if (WidenKey(key16) == key) {
    const uint32_t bits = (key16 & 0x8000u) != 0 ? key16 : key16 ^ 0x7fffu;
    const uint32_t mask = bits == 0 ? 0x7fff7fffu : 0xffffffffu;  // -0 and +0 are equals
    const auto equal = [&](uint32_t word) {                       // bits 15 and 31: of the two halves
      const uint32_t x = (word ^ (bits | bits << 16)) & mask;
      return ~(((x & 0x7fff7fffu) + 0x7fff7fffu) | x) & 0x80008000u;
    };
    const uint32_t found[4] = {equal(v.x), equal(v.y), equal(v.z), equal(v.w)};
    if ((found[0] | found[1] | found[2] | found[3]) != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) matches |= (found[i] >> 15 & 1u) << (2 * i) | (found[i] >> 31) << (2 * i + 1);
    }
  }
  for (uint32_t left = edited; left != 0; left &= left - 1) {
    const int i = __ffs(static_cast<int>(left)) - 1;
    const bool equal = Key32(slice.Edited((slice.first + vector) * 8 + i, BitsAt(v, i))) == key;
    matches = (matches & ~(1u << i)) | (equal ? 1u << i : 0u);
  }
  return matches;
}

// Id of the `index`-th logit of the slice with this key; in all threads of the first warp, -1 in the others. All
// threads of the block take part; there must be more than `index`.
__device__ inline int FindByKey(const Slice& slice, SampleShared& s, uint32_t key, uint32_t index) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = (slice.count + 31) / 32;
#pragma unroll 4
  for (int c = warp; c < chunks; c += kSampleWarps) {
    const int vector = c * 32 + lane;
    uint32_t all = vector < slice.count ? __popc(MatchVector(slice, s, vector, key)) : 0;
    if (__any_sync(0xffffffffu, all != 0)) all = __reduce_add_sync(0xffffffffu, all);
    if (lane == 0) s.chunk_count[c] = all;
  }
  __syncthreads();
  if (warp != 0) return -1;
  constexpr int kEach = kMaxChunks / 32;
  uint32_t counts[kEach], mine = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    counts[j] = lane * kEach + j < chunks ? s.chunk_count[lane * kEach + j] : 0;
    mine += counts[j];
  }
  uint32_t upto = WarpScan(mine), before = upto - mine;
  int owner = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, upto > index))) - 1, chunk = lane * kEach;
#pragma unroll
  for (int j = 0; j < kEach - 1; ++j) {
    if (chunk != lane * kEach + j || before + counts[j] > index) continue;
    before += counts[j];
    ++chunk;
  }
  chunk = __shfl_sync(0xffffffffu, chunk, owner);
  before = __shfl_sync(0xffffffffu, before, owner);
  const int vector = chunk * 32 + lane;
  uint32_t matches = vector < slice.count ? MatchVector(slice, s, vector, key) : 0;
  upto = before + WarpScan(static_cast<uint32_t>(__popc(matches)));
  owner = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, upto > index))) - 1;
  uint32_t skip = index - (upto - __popc(matches));
  for (; lane == owner && skip > 0; --skip) matches &= matches - 1;
  return __shfl_sync(0xffffffffu, (slice.first + vector) * 8 + __ffs(static_cast<int>(matches)) - 1, owner);
}

// exp((logit - max) / temperature) of a vector's logits. fp32: relative errors near 1e-6.
__device__ __forceinline__ void WeighVector(const Slice& slice, const SampleShared& s, int vector, float max,
                                            float scale, float (&weight)[8]) {
  const uint4 v = slice.Load(vector);
  const uint32_t edited = slice.EditedBits(s.edited, vector);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t bits = BitsAt(v, i);
    float x = __uint_as_float(bits << 16);
    if ((edited >> i & 1) != 0) x = slice.Edited((slice.first + vector) * 8 + i, bits);
    weight[i] = x > -INFINITY ? exp2f((x - max) * scale) : 0.0f;
  }
}

__device__ __forceinline__ float Sum8(const float (&x)[8]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// Mass of each chunk and of the whole slice (s.summary.mass); ends with a barrier.
__device__ inline void WeighSlice(const Slice& slice, SampleShared& s, float max, float scale) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = (slice.count + 31) / 32;
  for (int c = warp; c < chunks; c += kSampleWarps) {
    float weight[8] = {};
    const int vector = c * 32 + lane;
    if (vector < slice.count) WeighVector(slice, s, vector, max, scale, weight);
    const double mine = WarpSumDouble(Sum8(weight));
    if (lane == 0) s.chunk_mass[c] = mine;
  }
  __syncthreads();
  if (warp == 0) {
    double mine = 0;
    for (int c = lane; c < chunks; c += 32) mine += s.chunk_mass[c];
    mine = WarpSumDouble(mine);
    if (lane == 0) s.summary.mass = mine;
  }
  __syncthreads();
}

// Id of the first logit (by id) of the slice at which the mass exceeds `target`, else the last one with any mass. For
// the first warp, after WeighSlice.
__device__ inline int FindByMass(const Slice& slice, SampleShared& s, float max, float scale, double target) {
  const int lane = threadIdx.x % 32, chunks = (slice.count + 31) / 32;
  double before = 0, chunk_before = 0;
  int chunk = 0;
  for (int base = 0; base < chunks; base += 32) {
    const double mine = base + lane < chunks ? s.chunk_mass[base + lane] : 0.0;
    const double upto = before + WarpScan(mine);
    const uint32_t hit = __ballot_sync(0xffffffffu, upto > target && mine > 0);
    const uint32_t any = __ballot_sync(0xffffffffu, mine > 0);
    const int last = hit != 0 ? __ffs(static_cast<int>(hit)) - 1 : 31 - __clz(static_cast<int>(any));
    if (hit != 0 || any != 0) {
      chunk = base + last;
      const double until = __shfl_sync(0xffffffffu, upto - mine, last);
      chunk_before = until;
    }
    if (hit != 0) break;
    before = __shfl_sync(0xffffffffu, upto, 31);
  }
  float weight[8] = {};
  const int vector = chunk * 32 + lane;
  if (vector < slice.count) WeighVector(slice, s, vector, max, scale, weight);
  const double mine = Sum8(weight);
  double mass = chunk_before + (WarpScan(mine) - mine);
  int first = -1, last = -1;  // first beyond the target, last with any mass
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    mass += static_cast<double>(weight[i]);
    if (first < 0 && mass > target && weight[i] > 0) first = i;
    if (weight[i] > 0) last = i;
  }
  const uint32_t hit = __ballot_sync(0xffffffffu, first >= 0), any = __ballot_sync(0xffffffffu, last >= 0);
  const int owner = hit != 0 ? __ffs(static_cast<int>(hit)) - 1 : 31 - __clz(static_cast<int>(any));
  return __shfl_sync(0xffffffffu, (slice.first + vector) * 8 + (hit != 0 ? first : last), owner);
}

}  // namespace agentserve::kernels::cuda
