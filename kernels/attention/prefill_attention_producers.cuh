// Producers of the prefill attention kernel (prefill_attention_kernel.cuh): shape of a block's work, its shared memory,
// and the threads that hand out items and load Q, K and V by TMA.
#pragma once

#include <cuda.h>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/prefill_attention_hopper.h"
#include "kernels/attention/prefill_plan.h"
#include "kernels/tile/mbarrier.cuh"
#include "kernels/tile/tma.cuh"

namespace agentserve::kernels::cuda {

template <int kHeadDim, int kWarpgroupCount, int kQueryStages, int kStageCount>
struct PrefillConfig {
  static constexpr int kD = kHeadDim;
  static constexpr int kWarpgroups = kWarpgroupCount;
  static constexpr int kM = 64 * kWarpgroups;
  static constexpr int kN = 128;  // a multiple of every page_rows
  static constexpr int kQStages = kQueryStages;
  static constexpr int kItems = 3;
  static constexpr int kStages = kStageCount;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = kWarpgroups == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kWarpgroups == 2 ? 232 : 160;
  static constexpr int kHalves = kD / 64;  // tiles are stored as halves of 64 columns, 128 bytes a row
  static constexpr int kQBytes = kM * kD * 2;
  static constexpr int kKvBytes = kN * kD * 2;
};

struct PrefillItem {
  int head, kv_head;
  int row0, rows;  // of q; valid rows
  int position;    // of row0
  int key_tiles;   // 0: no more work
  int sequence;
};

template <typename C>
struct alignas(1024) PrefillShared {
  uint8_t q[C::kQStages][C::kQBytes];
  uint8_t k[C::kStages][C::kKvBytes];
  uint8_t v[C::kStages][C::kKvBytes];
  PrefillItem items[C::kItems];
  uint64_t item_full[C::kItems], item_empty[C::kItems];
  uint64_t ending;  // the keys of an item are nearly all sent for
  uint64_t q_full[C::kQStages], q_empty[C::kQStages];
  uint64_t k_full[C::kStages], k_empty[C::kStages], v_full[C::kStages], v_empty[C::kStages];
};

// MbarrierWait without its trap, which would make ptxas ignore the consumers' larger register share.
__device__ __forceinline__ void Wait(uint64_t* barrier, uint32_t phase) {
  while (!MbarrierTryWait(barrier, phase)) {
  }
}

// The same value in all lanes, known as such to the compiler (addresses and loop bounds in uniform registers).
__device__ __forceinline__ int Uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

template <typename C>
__device__ __forceinline__ PrefillItem DecodeItem(const PrefillLaunch& launch, int index) {
  PrefillItem item = {};
  if (index >= launch.items) return item;
  const PrefillAttentionParams& p = launch.params;
  const int tile_index = index / p.q_heads;
  const int32_t packed = p.tiles[tile_index];
  item.sequence = PrefillTileSequence(packed);
  const int first = p.cu_tokens[item.sequence];
  const PrefillRows rows = PrefillTileExtent(p.cu_tokens[item.sequence + 1] - first, PrefillTileIndex(packed), C::kM);
  item.head = index - tile_index * p.q_heads;
  item.kv_head = item.head / (p.q_heads / static_cast<int>(p.kv.kv_heads));
  item.row0 = first + rows.begin;
  item.rows = rows.end - rows.begin;
  item.position = p.starts[item.sequence] + rows.begin;
  item.key_tiles = (item.position + item.rows + C::kN - 1) / C::kN;
  return item;
}

// An item is drawn when the one before has this many tiles left to be sent for, and a ring full to be worked off: late,
// so that blocks in the middle of long items leave the short ones to others.
inline constexpr int kTilesAhead = 3;

// Walks the key tiles of one item and brings one half of the rows of K or V of each into its ring; one thread. A warp
// issues a box of 2 KB only every 200 ns or so: hence two threads of different warps for each of K and V, and one box
// for pages that are neighbours in the pool.
template <typename C>
struct PageLoader {
  static constexpr int kMaxPages = C::kN / 2 / 16;
  const PrefillLaunch& launch;
  const CUtensorMap& map;      // boxes of one page
  const CUtensorMap& run_map;  // boxes of half a tile of pages in neighbouring blocks
  uint8_t (&stages)[C::kStages][C::kKvBytes];
  uint64_t (&full)[C::kStages];
  uint64_t (&empty)[C::kStages];
  int part;          // 0 or 1
  uint64_t* ending;  // null but for one loader
  RingPosition<C::kStages> at = {};

  // Blocks of the pages of half a tile; -1 past the end, which reads as zeros.
  __device__ __forceinline__ void ReadBlocks(const int32_t* table, int first_page, int end_page, int pages,
                                             int (&blocks)[kMaxPages]) {
    const int pages_per_block = launch.pages_per_block;
#pragma unroll
    for (int i = 0; i < kMaxPages; ++i) {
      const int page = first_page + i;
      blocks[i] = -1;
      if (i < pages && page < end_page) blocks[i] = table[pages_per_block == 1 ? page : page / pages_per_block];
    }
  }

  // Whether the pages are whole blocks that follow each other in the pool.
  __device__ __forceinline__ bool IsRun(const int (&blocks)[kMaxPages], int pages) {
    bool run = launch.pages_per_block == 1 && blocks[0] >= 0;
#pragma unroll
    for (int i = 1; i < kMaxPages; ++i) run = run && (i >= pages || blocks[i] == blocks[0] + i);
    return run;
  }

  __device__ __forceinline__ void Load(const PrefillItem& item) {
    const int page_rows = launch.page_rows, pages = C::kN / 2 / page_rows, pages_per_block = launch.pages_per_block;
    const int end_page = (item.position + item.rows + page_rows - 1) / page_rows;
    const int32_t* table =
        launch.params.block_tables + static_cast<int64_t>(item.sequence) * launch.params.table_stride;
    const int head_row = item.kv_head * static_cast<int>(launch.params.kv.block_tokens);
    int blocks[kMaxPages];
    ReadBlocks(table, part * pages, end_page, pages, blocks);
    for (int tile = 0; tile < item.key_tiles; ++tile) {
      if (ending != nullptr && tile == max(0, item.key_tiles - kTilesAhead)) MbarrierArrive(ending);
      const int first_page = (2 * tile + part) * pages;
      Wait(&empty[at.index], at.phase ^ 1);
      MbarrierArriveExpect(&full[at.index], C::kKvBytes / 2);
      uint8_t* to = stages[at.index] + part * (C::kN / 2 * 128);
      if (IsRun(blocks, pages)) {
#pragma unroll
        for (int half = 0; half < C::kHalves; ++half) {
          TmaLoad3d(to + half * (C::kN * 128), &run_map, &full[at.index], half * 64, head_row, blocks[0]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kMaxPages; ++i) {
          if (i >= pages) break;
          const int row = pages_per_block == 1 ? head_row : head_row + (first_page + i) % pages_per_block * page_rows;
#pragma unroll
          for (int half = 0; half < C::kHalves; ++half) {
            TmaLoad3d(to + half * (C::kN * 128) + i * page_rows * 128, &map, &full[at.index], half * 64, row,
                      blocks[i]);
          }
        }
      }
      ReadBlocks(table, first_page + 2 * pages, end_page, pages, blocks);
      at.Advance();
    }
  }
};

inline constexpr int kItemThread = 112;  // no lane 0: those load K and V

// One thread: hands out the items, one ahead, and loads Q.
template <typename C>
__device__ __forceinline__ void ProduceItems(const PrefillLaunch& launch, PrefillShared<C>& shared, PrefillItem item) {
  RingPosition<C::kQStages> q_at;
  RingPosition<C::kItems> item_at;
  for (int round = 1;; ++round) {
    Wait(&shared.item_empty[item_at.index], item_at.phase ^ 1);
    shared.items[item_at.index] = item;
    MbarrierArrive(&shared.item_full[item_at.index]);
    if (item.key_tiles == 0) break;
    Wait(&shared.q_empty[q_at.index], q_at.phase ^ 1);
    MbarrierArriveExpect(&shared.q_full[q_at.index], C::kQBytes);
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      TmaLoad3d(shared.q[q_at.index] + half * (C::kM * 128), &launch.q, &shared.q_full[q_at.index], half * 64,
                item.head, item.row0);
    }
    q_at.Advance();
    item_at.Advance();
    Wait(&shared.ending, (round & 1) ^ 1);
    if (launch.counters != nullptr) {
      item = DecodeItem<C>(launch, atomicAdd(&launch.counters[0], 1) + static_cast<int>(gridDim.x));
    } else {
      // Back and forth, so that the blocks with the longest tile of one round get the shortest of the next.
      const int column = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
      item = DecodeItem<C>(launch, round * static_cast<int>(gridDim.x) + column);
    }
  }
  // The last block to finish leaves the counters zero.
  if (launch.counters != nullptr) {
    __threadfence();
    if (atomicAdd(&launch.counters[1], 1) == static_cast<int>(gridDim.x) - 1) {
      atomicExch(&launch.counters[0], 0);
      atomicExch(&launch.counters[1], 0);
    }
  }
}

// Two threads each for K and V.
template <typename C>
__device__ __forceinline__ void ProducePages(PrefillShared<C>& shared, PageLoader<C> loader) {
  RingPosition<C::kItems> item_at;
  while (true) {
    Wait(&shared.item_full[item_at.index], item_at.phase);
    const PrefillItem item = shared.items[item_at.index];
    if (item.key_tiles == 0) break;
    MbarrierArrive(&shared.item_empty[item_at.index]);
    loader.Load(item);
    item_at.Advance();
  }
}

}  // namespace agentserve::kernels::cuda
