// The decision of the fast way: every block of a cluster reads the counts of all blocks, best keys first, and finds the
// cuts and the drawn token for itself, so that none waits for another. A turn covers kSampleThreads neighbouring keys,
// one per thread; nearly always the first turn holds everything.
#pragma once

#include "kernels/sampling/sampling_window.cuh"

namespace agentserve::kernels::cuda {

// Exclusive over the block's threads, of both at once. One barrier inside; another must come before the next call.
struct Running {
  uint32_t count;
  uint64_t mass;
};
__device__ __forceinline__ Running BlockScan(Running x, SampleShared& s, Running* total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Running upto = {WarpScan(x.count), WarpScan(x.mass)};
  if (lane == 31) {
    s.scan_count[warp] = upto.count;
    s.scan_mass[warp] = upto.mass;
  }
  __syncthreads();
  const bool valid = lane < kSampleWarps;
  const Running warps = {WarpScan(valid ? s.scan_count[lane] : 0u), WarpScan(valid ? s.scan_mass[lane] : uint64_t{0})};
  *total = {__shfl_sync(0xffffffffu, warps.count, 31), __shfl_sync(0xffffffffu, warps.mass, 31)};
  const Running before = {__shfl_sync(0xffffffffu, warps.count, warp == 0 ? 0 : warp - 1),
                          __shfl_sync(0xffffffffu, warps.mass, warp == 0 ? 0 : warp - 1)};
  return {(warp == 0 ? 0 : before.count) + upto.count - x.count, (warp == 0 ? 0 : before.mass) + upto.mass - x.mass};
}

class WindowSearch {
 public:
  __device__ WindowSearch(const Slice& slice, SampleShared& s, const Window& window, int blocks)
      : slice_(slice), s_(s), window_(window), blocks_(blocks) {
    if (threadIdx.x < 32) {
      const int lane = static_cast<int>(threadIdx.x);
      Outside mine = {0, 0, 0, 0};
      if (lane < blocks) mine = *cooperative_groups::this_cluster().map_shared_rank(&s.slice_outside, lane);
      const Outside sum = {__reduce_add_sync(0xffffffffu, mine.gap), __reduce_add_sync(0xffffffffu, mine.tail),
                           WarpSum64(mine.gap_mass), WarpSum64(mine.all_mass)};
      if (lane == 0) s.row_outside = sum;
    }
    __syncthreads();
    outside_ = s.row_outside;
  }

  // top-k, top-p, min-p and the draw; all threads get the same place. False: go the general way.
  __device__ bool Decide(WindowPlace* drawn) {
    const SamplingRow& row = slice_.row;
    uint32_t keep = 0xffffffffu;
    uint64_t total = outside_.all_mass;
    if (row.top_k > 0 && row.top_k < static_cast<uint32_t>(slice_.vocab)) {
      if (!Find(0, row.top_k, 0)) return false;
      // Exactly as many candidates as top-k would be no filter.
      if (row.top_p >= 1.0f && row.min_p <= 0.0f && before_.count + turn_total_.count <= row.top_k) return false;
      keep = row.top_k;
      total = s_.cut[0].mass;
    }
    if (row.top_p < 1.0f) {
      const uint64_t target = static_cast<uint64_t>(ceil(static_cast<double>(row.top_p) * static_cast<double>(total)));
      if (!Find(1, 0, target > 0 ? target : 1)) return false;
      keep = s_.cut[1].count;
      total = s_.cut[1].mass;
    }
    if (row.min_p > 0.0f && !CutByWeight(row.min_p, &keep, &total)) return false;
    const double share = UniformAt(row.seed, row.position) * static_cast<double>(total);
    const uint64_t target = static_cast<uint64_t>(share) + 1;
    if (!Find(3, 0, target < total ? target : total)) return false;
    *drawn = s_.cut[3];
    return true;
  }

 private:
  // Reads a turn's counts and weighs them. The running sums before it are in before_.
  __device__ void Load(uint32_t turn) {
    if (turn == turn_) return;
    if (turn == 0) {
      before_ = {0, 0};
    } else {
      before_ = {before_.count + turn_total_.count, before_.mass + turn_total_.mass};
      if (turn == kGapTurn) before_ = {before_.count + outside_.gap, before_.mass + outside_.gap_mass};
    }
    turn_ = turn;
    const uint32_t bin = turn * kSampleThreads + threadIdx.x;
    uint32_t counts[kMaxClusterSize];
#pragma unroll
    for (int r = 0; r < kMaxClusterSize; ++r) {
      counts[r] = r < blocks_ ? cooperative_groups::this_cluster().map_shared_rank(s_.Bins(), r)[bin] : 0u;
    }
    plain_ = 0;
#pragma unroll
    for (int r = 0; r < kMaxClusterSize; ++r) plain_ += counts[r];
    const uint32_t key = window_.KeyOf(bin);
    weight_ = plain_ > 0 ? FixedMass(window_.Weight(WidenKey(key))) : 0;
    own_ = {plain_, plain_ * weight_};
    items_begin_ = items_end_ = ItemsBefore(static_cast<uint64_t>(key) << 48);
    for (; items_end_ < slice_.item_count && s_.EditItems()[items_end_] >> 48 == key; ++items_end_) {
      own_ = {own_.count + 1, own_.mass + ItemMass(items_end_)};
    }
    const Running running = BlockScan(own_, s_, &turn_total_);
    at_ = {before_.count + running.count, before_.mass + running.mass};
  }

  __device__ int ItemsBefore(uint64_t item) const {
    int low = 0, high = slice_.item_count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (s_.EditItems()[middle] < item) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  __device__ uint64_t ItemMass(int i) const {
    return FixedMass(window_.Weight(static_cast<uint32_t>(s_.EditItems()[i] >> 32)));
  }

  // The first token with which there are `count` tokens (if not 0) or at least `mass`; s.cut[slot]. All threads.
  __device__ bool Find(int slot, uint32_t count, uint64_t mass) {
    for (uint32_t turn = 0; turn < kWindowKeys / kSampleThreads; ++turn) {
      const Running gap_begin = {before_.count + turn_total_.count, before_.mass + turn_total_.mass};
      Load(turn);
      if (turn == kGapTurn && outside_.gap > 0 &&
          (count > 0 ? gap_begin.count < count && count <= before_.count
                     : gap_begin.mass < mass && mass <= before_.mass)) {
        return false;
      }
      const bool mine = count > 0 ? at_.count < count && count <= at_.count + own_.count
                                  : at_.mass < mass && mass <= at_.mass + own_.mass;
      if (mine) s_.cut[slot] = WithinKey(count, mass);
      if (__syncthreads_or(mine) != 0) return true;
    }
    return false;
  }

  // The same among this thread's tokens: those without an edit share one 32-bit key, between the listed ones.
  __device__ WindowPlace WithinKey(uint32_t count, uint64_t mass) const {
    const uint32_t bin = turn_ * kSampleThreads + threadIdx.x, plain_key = WidenKey(window_.KeyOf(bin));
    WindowPlace place = {plain_key, 0, bin, at_.count, at_.mass};
    uint32_t left = plain_;
    for (int i = items_begin_; i < items_end_ || left > 0;) {
      uint32_t key = i < items_end_ ? static_cast<uint32_t>(s_.EditItems()[i] >> 32) : kNoKey, group = 0;
      uint64_t weight = weight_;
      if (left > 0 && plain_key <= key) {
        key = plain_key;
        group = left;
        left = 0;
      } else {
        weight = ItemMass(i);
        for (; i < items_end_ && s_.EditItems()[i] >> 32 == key; ++i) ++group;
      }
      uint64_t n = group;
      if (count > 0) {
        n = min(n, static_cast<uint64_t>(count - place.count));
      } else if (weight > 0 && mass <= place.mass + group * weight) {
        n = group == 1 ? 1 : (mass - place.mass + weight - 1) / weight;
      }
      place.key = key;
      place.index = static_cast<uint32_t>(n) - 1;
      place.count += static_cast<uint32_t>(n);
      place.mass += n * weight;
      if (count > 0 ? place.count >= count : place.mass >= mass) break;
    }
    return place;
  }

  // Leaves the tokens whose weight is at least `least`, but the best one in any case.
  __device__ bool CutByWeight(float least, uint32_t* keep, uint64_t* total) {
    for (uint32_t turn = 0; turn < kWindowKeys / kSampleThreads; ++turn) {
      if (turn == kGapTurn && outside_.gap > 0) return false;
      Load(turn);
      const uint32_t bin = turn * kSampleThreads + threadIdx.x;
      const uint32_t lowest = window_.KeyOf(bin) << 16 | 0xffffu;  // the least logit with this key
      const bool below = own_.count > 0 && window_.Weight(lowest) < static_cast<double>(least);
      const uint32_t first = __reduce_min_sync(0xffffffffu, below ? bin : kWindowKeys);
      if (threadIdx.x % 32 == 0 && first < kWindowKeys) atomicMin(&s_.weight_cut, first);
      __syncthreads();
      if (s_.weight_cut == bin) s_.cut[2] = BeforeWeight(static_cast<double>(least));
      __syncthreads();
      if (s_.weight_cut < kWindowKeys) {
        const WindowPlace& cut = s_.cut[2];
        if (cut.count < *keep) {
          *keep = cut.count > 0 ? cut.count : 1;
          *total = cut.count > 0 ? cut.mass : FixedMass(1.0);
        }
        return true;
      }
      if (before_.count + turn_total_.count >= *keep) return true;
    }
    return false;
  }
  // What precedes the first of this thread's tokens that weighs less.
  __device__ WindowPlace BeforeWeight(double least) const {
    const uint32_t plain_key = WidenKey(window_.KeyOf(turn_ * kSampleThreads + threadIdx.x));
    WindowPlace place = {0, 0, 0, at_.count, at_.mass};
    if (plain_ > 0 && !(window_.Weight(plain_key) < least)) {
      place.count += plain_;
      place.mass += plain_ * weight_;
    }
    for (int i = items_begin_; i < items_end_; ++i) {
      if (window_.Weight(static_cast<uint32_t>(s_.EditItems()[i] >> 32)) < least) break;
      ++place.count;
      place.mass += ItemMass(i);
    }
    return place;
  }

  static constexpr uint32_t kGapTurn = kWindowKeys / 2 / kSampleThreads;  // the first turn beyond the gap
  static_assert(kWindowKeys / 2 % kSampleThreads == 0);

  const Slice& slice_;
  SampleShared& s_;
  const Window& window_;
  const int blocks_;
  Outside outside_;
  uint32_t turn_ = 0xffffffffu;
  Running before_ = {0, 0}, turn_total_ = {0, 0};
  // This thread's key of the turn.
  uint32_t plain_ = 0;   // tokens without an edit
  uint64_t weight_ = 0;  // of one of them
  int items_begin_ = 0, items_end_ = 0;
  Running own_ = {0, 0}, at_ = {0, 0};  // all its tokens; what precedes them
};

// The token at `place`: in the first warp of the block that has it, -1 elsewhere. All threads of all blocks.
__device__ inline int TokenAt(const Slice& slice, SampleShared& s, int blocks, const WindowPlace& place) {
  const int lane = threadIdx.x % 32, rank = static_cast<int>(cooperative_groups::this_cluster().block_rank());
  if (WidenKey(place.key >> 16) != place.key) {  // of the list, which every block has
    if (rank != 0) return -1;
    int low = 0, high = slice.item_count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (s.EditItems()[middle] < MakeItem(place.key, 0)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return static_cast<int>(s.EditItems()[low + static_cast<int>(place.index)] & 0xffffffffu);
  }
  const uint32_t mine =
      lane < blocks ? cooperative_groups::this_cluster().map_shared_rank(s.Bins(), lane)[place.bin] : 0;
  const uint32_t upto = WarpScan(mine);
  const int owner = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, upto > place.index))) - 1;
  const uint32_t before = __shfl_sync(0xffffffffu, upto - mine, owner);
  return owner == rank ? FindByKey(slice, s, place.key, place.index - before) : -1;
}

}  // namespace agentserve::kernels::cuda
