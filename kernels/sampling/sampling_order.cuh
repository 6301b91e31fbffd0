// The candidates of one row in the order of sampling, never sorted: counts of equal keys, held by all blocks of a
// cluster, plus the sorted list of logits with an edit. The first block finds cuts in it: after k tokens, at a mass, at
// a weight.
//
// Equal keys have equal weights, so a mass is count * weight, in double, in a fixed order: exact, and the same in every
// run. Three levels: regions of 64 keys with running totals, the 64 keys of a region, the tokens of one key.
#pragma once

#include "kernels/sampling/sampling_row.cuh"

namespace agentserve::kernels::cuda {

// A search stops at the first token ...
enum class Until {
  kCount,        // with which there are `count` tokens
  kMassReached,  // with which the mass is at least `value`
  kMassPassed,   // with which the mass is above `value`
  kWeightBelow,  // whose weight is below `value`; the place is then that of the token before
};
struct Target {
  Until until;
  uint32_t count;
  double value;
};

struct Order {
  SampleShared& s;
  int blocks;         // of the cluster
  int edit_count;     // length of items
  uint64_t* items;    // sorted; in shared or global memory
  double* item_mass;  // of the items before; edit_count + 1 values
  double max, inverse_temperature;

  __device__ __forceinline__ double Weight(uint32_t key32) const {
    return exp((static_cast<double>(ValueOfKey(key32)) - max) * inverse_temperature);
  }
  // Items before a key (or any number above all keys).
  __device__ int ItemsBefore(uint64_t item) const {
    int low = 0, high = edit_count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (items[middle] < item) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  __device__ int ItemsBeforeKey16(uint32_t key16) const {
    return edit_count == 0 ? 0 : ItemsBefore(static_cast<uint64_t>(key16) << 48);
  }
};

// What one lane knows of its two keys of a region.
struct KeyPair {
  uint32_t count[2];   // logits without an edit
  double weight[2];    // of one of them
  int items_begin[3];  // items of key i are [items_begin[i], items_begin[i + 1])
  double mass[2];      // all

  __device__ __forceinline__ uint32_t Tokens(int i) const {
    return count[i] + static_cast<uint32_t>(items_begin[i + 1] - items_begin[i]);
  }
};

__device__ inline KeyPair ReadKeys(const Order& order, uint32_t region) {
  namespace cg = cooperative_groups;
  const uint32_t word = region * 32 + threadIdx.x % 32, key = word * 2;
  uint32_t words[kMaxClusterSize];
#pragma unroll
  for (int r = 0; r < kMaxClusterSize; ++r) {
    words[r] = r < order.blocks ? *cg::this_cluster().map_shared_rank(&order.s.counts[word], r) : 0u;
  }
  KeyPair pair = {};
#pragma unroll
  for (int r = 0; r < kMaxClusterSize; ++r) {
    pair.count[0] += words[r] & 0xffffu;
    pair.count[1] += words[r] >> 16;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (pair.count[i] > 0) pair.weight[i] = order.Weight(WidenKey(key + i));
    pair.mass[i] = pair.count[i] * pair.weight[i];
  }
  if (order.edit_count > 0) {
#pragma unroll
    for (int i = 0; i < 3; ++i) pair.items_begin[i] = order.ItemsBeforeKey16(key + i);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      pair.mass[i] += order.item_mass[pair.items_begin[i + 1]] - order.item_mass[pair.items_begin[i]];
    }
  }
  return pair;
}

// Lists the regions that have tokens and their running counts and masses. All threads of the first block; ends with a
// barrier.
__device__ inline void BuildRegions(const Order& order) {
  namespace cg = cooperative_groups;
  SampleShared& s = order.s;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    uint32_t words[kMaxClusterSize], bits = 0;
#pragma unroll
    for (int r = 0; r < kMaxClusterSize; ++r) {
      words[r] = r < order.blocks ? *cg::this_cluster().map_shared_rank(&s.touched_bits[lane], r) : 0u;
    }
#pragma unroll
    for (int r = 0; r < kMaxClusterSize; ++r) bits |= words[r];
    const int mine = __popc(bits), upto = WarpScan(mine);
    int at = upto - mine;
    for (; bits != 0; bits &= bits - 1)
      s.region[at++] = static_cast<uint16_t>(lane * 32 + __ffs(static_cast<int>(bits)) - 1);
    if (lane == 31) s.regions = upto;
  }
  __syncthreads();
  for (int i = warp; i < s.regions; i += kSampleWarps) {
    const KeyPair pair = ReadKeys(order, s.region[i]);
    const uint32_t count = __reduce_add_sync(0xffffffffu, pair.Tokens(0) + pair.Tokens(1));
    const double mass = WarpSumDouble(pair.mass[0] + pair.mass[1]);
    if (lane == 0) {
      s.region_count[i] = count;
      s.region_mass[i] = mass;
    }
  }
  __syncthreads();
  if (warp == 0) {
    uint32_t count = 0;
    double mass = 0;
    for (int base = 0; base < s.regions; base += 32) {
      const bool mine = base + lane < s.regions;
      const uint32_t counts = count + WarpScan(mine ? s.region_count[base + lane] : 0u);
      const double masses = mass + WarpScan(mine ? s.region_mass[base + lane] : 0.0);
      if (mine) {
        s.region_count[base + lane] = counts;
        s.region_mass[base + lane] = masses;
      }
      count = __shfl_sync(0xffffffffu, counts, 31);
      mass = __shfl_sync(0xffffffffu, masses, 31);
    }
  }
  __syncthreads();
}

__device__ __forceinline__ bool Reached(const Target& target, uint32_t count, double mass) {
  switch (target.until) {
    case Until::kCount:
      return count >= target.count;
    case Until::kMassReached:
      return mass >= target.value;
    case Until::kMassPassed:
      return mass > target.value;
    case Until::kWeightBelow:
      return false;
  }
  return false;
}

// How many of `group` equal tokens after (count, mass) it takes to reach the target; 0 = they do not.
__device__ inline uint32_t TokensToReach(const Target& target, uint32_t count, double mass, uint32_t group,
                                         double weight) {
  if (group == 0 || !Reached(target, count + group, mass + group * weight)) return 0;
  if (target.until == Until::kCount) return target.count - count;
  const double guess = weight > 0 ? (target.value - mass) / weight : 0;
  uint32_t n = guess < 1 ? 1 : guess >= group ? group : static_cast<uint32_t>(guess);
  while (n > 1 && Reached(target, count + n - 1, mass + (n - 1) * weight)) --n;
  while (n < group && !Reached(target, count + n, mass + n * weight)) ++n;
  return n;
}

// The tokens of one 16-bit key: those without an edit, which share one 32-bit key, between its items.
struct KeyTokens {
  uint32_t key16, count;
  int items_begin, items_end;
  uint32_t count_before;
  double mass_before;
};

__device__ inline Place FindInKey(const Order& order, const KeyTokens& tokens, const Target& target) {
  const uint32_t plain = WidenKey(tokens.key16);
  uint32_t left = tokens.count;
  Place place;
  place.count = tokens.count_before;
  place.mass = tokens.mass_before;
  for (int at = tokens.items_begin; at < tokens.items_end || left > 0;) {
    uint32_t key = at < tokens.items_end ? static_cast<uint32_t>(order.items[at] >> 32) : kNoKey, group = 0;
    if (left > 0 && plain <= key) {
      key = plain;
      group = left;
      left = 0;
    }
    for (; at < tokens.items_end && static_cast<uint32_t>(order.items[at] >> 32) == key; ++at) ++group;
    const double weight = order.Weight(key);
    if (target.until == Until::kWeightBelow && weight < target.value) return place;
    const uint32_t n = TokensToReach(target, place.count, place.mass, group, weight);
    place.key = key;
    place.index = (n > 0 ? n : group) - 1;
    place.count += n > 0 ? n : group;
    place.mass += (n > 0 ? n : group) * weight;
    if (n > 0) return place;
  }
  return place;  // rounding: the last token of the key
}

// First region in which the target may be met; the number of regions if none.
__device__ inline int FindRegion(const Order& order, const Target& target) {
  const SampleShared& s = order.s;
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < s.regions; base += 32) {
    bool hit = base + lane < s.regions;
    if (hit && target.until == Until::kWeightBelow) {
      hit = order.Weight(uint32_t{s.region[base + lane]} << 22 | 0x3fffffu) <
            target.value;  // of the lowest logit it may have
    } else if (hit) {
      hit = Reached(target, s.region_count[base + lane], s.region_mass[base + lane]);
    }
    const uint32_t hits = __ballot_sync(0xffffffffu, hit);
    if (hits != 0) return base + __ffs(static_cast<int>(hits)) - 1;
  }
  return s.regions;
}

// Where the target is first met; the last place of all if nowhere (its key is then not set). For one warp, all lanes
// get the result.
__device__ inline Place Find(const Order& order, const Target& target) {
  const SampleShared& s = order.s;
  const int lane = threadIdx.x % 32, region = FindRegion(order, target);
  Place start;
  if (region > 0) {
    start.count = s.region_count[region - 1];
    start.mass = s.region_mass[region - 1];
  }
  if (region == s.regions) return start;
  const KeyPair pair = ReadKeys(order, s.region[region]);
  const uint32_t tokens[2] = {pair.Tokens(0), pair.Tokens(1)};
  uint32_t count = WarpScan(tokens[0] + tokens[1]) - tokens[0] - tokens[1] + start.count;
  double mass = WarpScan(pair.mass[0] + pair.mass[1]) - (pair.mass[0] + pair.mass[1]) + start.mass;
  int mine = -1;       // the first of this lane's keys that meets the target
  KeyTokens found[2];  // both, in case nothing does (rounding)
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t key16 = (uint32_t{s.region[region]} * 32 + lane) * 2 + i;
    found[i] = {key16, pair.count[i], pair.items_begin[i], pair.items_begin[i + 1], count, mass};
    count += tokens[i];
    mass += pair.mass[i];
    bool hit = tokens[i] > 0 && Reached(target, count, mass);
    if (target.until == Until::kWeightBelow) {
      hit = pair.count[i] > 0 && pair.weight[i] < target.value;
      if (pair.items_begin[i] < pair.items_begin[i + 1]) {
        hit |= order.Weight(static_cast<uint32_t>(order.items[pair.items_begin[i + 1] - 1] >> 32)) < target.value;
      }
    }
    if (hit && mine < 0) mine = i;
  }
  const uint32_t hits = __ballot_sync(0xffffffffu, mine >= 0);
  const uint32_t any = __ballot_sync(0xffffffffu, tokens[0] + tokens[1] > 0);
  const int owner = hits != 0 ? __ffs(static_cast<int>(hits)) - 1 : 31 - __clz(static_cast<int>(any));
  if (mine < 0) mine = tokens[1] > 0 ? 1 : 0;
  KeyTokens chosen = mine == 0 ? found[0] : found[1];
  chosen.key16 = __shfl_sync(0xffffffffu, chosen.key16, owner);
  chosen.count = __shfl_sync(0xffffffffu, chosen.count, owner);
  chosen.items_begin = __shfl_sync(0xffffffffu, chosen.items_begin, owner);
  chosen.items_end = __shfl_sync(0xffffffffu, chosen.items_end, owner);
  chosen.count_before = __shfl_sync(0xffffffffu, chosen.count_before, owner);
  chosen.mass_before = __shfl_sync(0xffffffffu, chosen.mass_before, owner);
  return FindInKey(order, chosen, target);
}

// top-k, top-p, min-p, then the draw, as Sampler::Draw.
__device__ inline Place DrawPlace(const Order& order, const SamplingRow& row, uint32_t candidates) {
  uint32_t keep = candidates;
  double total = order.s.region_mass[order.s.regions - 1];
  if (row.top_k > 0 && row.top_k < keep) {
    keep = row.top_k;
    total = Find(order, {Until::kCount, keep, 0}).mass;
  }
  if (row.top_p < 1.0f) {
    const Place cut = Find(order, {Until::kMassReached, 0, static_cast<double>(row.top_p) * total});
    if (cut.count < keep) {
      keep = cut.count;
      total = cut.mass;
    }
  }
  if (row.min_p > 0.0f) {
    const Place cut = Find(order, {Until::kWeightBelow, 0, static_cast<double>(row.min_p)});
    if (cut.count < keep) {
      const Place best = Find(order, {Until::kCount, 1, 0});
      keep = cut.count > 0 ? cut.count : 1;
      total = cut.count > 0 ? cut.mass : best.mass;
    }
  }
  const double target = UniformAt(row.seed, row.position) * total;
  Place drawn = Find(order, {Until::kMassPassed, 0, target});
  if (drawn.count > keep || !(drawn.mass > target)) {  // rounding: the last token with any mass
    const uint32_t heavy = Find(order, {Until::kWeightBelow, 0, 4.9406564584124654e-324}).count;
    drawn = Find(order, {Until::kCount, heavy < keep ? heavy : keep, 0});
  }
  return drawn;
}

// Which block has the token at `place`, and the index within it. For one warp.
__device__ inline Decision Locate(const Order& order, const Place& place, int slice_vectors) {
  namespace cg = cooperative_groups;
  const int lane = threadIdx.x % 32;
  uint32_t mine = 0;
  if (lane < order.blocks) {
    const uint32_t key16 = place.key >> 16;
    if (WidenKey(key16) == place.key) {
      const uint32_t word = *cg::this_cluster().map_shared_rank(&order.s.counts[key16 / 2], lane);
      mine = key16 % 2 == 0 ? word & 0xffffu : word >> 16;
    }
    if (order.edit_count > 0) {
      const uint32_t begin = lane * slice_vectors * 8, end = begin + slice_vectors * 8;
      mine += order.ItemsBefore(MakeItem(place.key, end)) - order.ItemsBefore(MakeItem(place.key, begin));
    }
  }
  const uint32_t upto = WarpScan(mine);
  const int rank = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, upto > place.index))) - 1;
  const uint32_t before = __shfl_sync(0xffffffffu, upto - mine, rank);
  return {place.key, place.index - before, static_cast<uint32_t>(rank)};
}

}  // namespace agentserve::kernels::cuda
