#include "kernels/gemm/gemm.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm/gemm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include "hwy/highway.h"
#include "kernels/simd/simd-inl.h"

#ifndef AGENTSERVE_KERNELS_GEMM_ONCE_
#define AGENTSERVE_KERNELS_GEMM_ONCE_
namespace agentserve::kernels {

inline constexpr size_t kStep = 32;            // elements of k per two-register step
inline constexpr size_t kTaskColumns = 32;     // columns of W per task
inline constexpr size_t kBlockK = 2048;        // k per pass; partial sums are kept between passes
inline constexpr size_t kBlockRows = 48;       // rows of x per pass: 48 * 2048 floats stay in a 1 MiB L2
inline constexpr size_t kSmallWork = 1 << 16;  // multiply-adds below which waking a helper costs more than it saves

// One job, with x packed tile by tile: tile t holds rows [t * tile_rows, ...), stored as [k / 16][rows of tile][16],
// with the sixteen even elements of each 32 before the sixteen odd ones. Zero beyond k.
struct GemmJob {
  const GemmParams* params = nullptr;
  GemmWorkspace* workspace = nullptr;
  size_t padded_k = 0;
  size_t tile_rows = 0;
};

}  // namespace agentserve::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace agentserve::kernels::HWY_NAMESPACE {

// Register tile: rows x columns of 16-lane accumulators, leaving room for operands.
inline constexpr size_t kTileRows = kParts == 1 ? 6 : (kParts == 2 ? 3 : 1);
inline constexpr size_t kPrefetchRows = 5;
inline constexpr size_t kTileCols = kParts == 1 ? 4 : (kParts == 2 ? 2 : 1);

// Advances accumulators over `steps` of 32. Columns past the end of `w` are never read.
// With few rows the loop is bound by memory: then the lines `ahead` elements on (the next tile's) are asked for early,
// as the hardware's own prefetch stops at each 4 KiB page, which is one row of a 2048-wide matrix.
template <size_t kRows, size_t kCols>
HWY_INLINE void Steps(const float* HWY_RESTRICT x, const uint16_t* const* w, size_t steps, size_t ahead,
                      V16 (&acc)[kRows][kCols]) {
  const uint16_t* wp[kCols];
  for (size_t c = 0; c < kCols; ++c) wp[c] = w[c];
  for (size_t s = 0; s < steps; ++s) {
    if constexpr (kRows <= kPrefetchRows) {
#pragma GCC unroll 8
      for (size_t c = 0; c < kCols; ++c) __builtin_prefetch(wp[c] + ahead, 0, 2);  // into L2: 1.9 times the rate of L1
    }
    V16 wv[kCols];
#pragma GCC unroll 8
    for (size_t c = 0; c < kCols; ++c) wv[c] = LoadBf16Half<false>(wp[c]);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const V16 xv = LoadF(x + r * 16);
#pragma GCC unroll 8
      for (size_t c = 0; c < kCols; ++c) acc[r][c] = Fma(wv[c], xv, acc[r][c]);
    }
#pragma GCC unroll 8
    for (size_t c = 0; c < kCols; ++c) wv[c] = LoadBf16Half<true>(wp[c]);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const V16 xv = LoadF(x + (kRows + r) * 16);
#pragma GCC unroll 8
      for (size_t c = 0; c < kCols; ++c) acc[r][c] = Fma(wv[c], xv, acc[r][c]);
    }
    x += 2 * kRows * 16;
#pragma GCC unroll 8
    for (size_t c = 0; c < kCols; ++c) wp[c] += kStep;
  }
}

struct TileArgs {
  const float* x;     // packed tile, already at the pass's first k
  const uint16_t* w;  // first column of the tile, at the pass's first k
  size_t k;           // row length of W
  size_t pass_k;      // elements of this pass
  float* partial;     // [rows][cols][16]
  bool first, last;   // pass
  const GemmOutput* out;
  size_t row, col;  // of y
};

template <size_t kRows, size_t kCols>
HWY_NOINLINE void Tile(const TileArgs& t) {
  V16 acc[kRows][kCols];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t c = 0; c < kCols; ++c) {
      acc[r][c] = t.first ? Splat(0.0f) : LoadF(t.partial + (r * kCols + c) * 16);
    }
  }
  const uint16_t* w[kCols];
  for (size_t c = 0; c < kCols; ++c) w[c] = t.w + c * t.k;
  const size_t steps = t.pass_k / kStep;
  Steps<kRows, kCols>(t.x, w, steps, kCols * t.k, acc);
  if (const size_t rest = t.pass_k % kStep; rest != 0) {
    alignas(64) uint16_t tail[kCols][kStep] = {};
    const uint16_t* tails[kCols];
    for (size_t c = 0; c < kCols; ++c) {
      std::memcpy(tail[c], w[c] + steps * kStep, rest * sizeof(uint16_t));
      tails[c] = tail[c];
    }
    Steps<kRows, kCols>(t.x + steps * 2 * kRows * 16, tails, 1, 0, acc);
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    float* y = t.out->y + (t.row + r) * t.out->ldy + t.col;
#pragma GCC unroll 8
    for (size_t c = 0; c < kCols; ++c) {
      if (!t.last) {
        StoreF(acc[r][c], t.partial + (r * kCols + c) * 16);
      } else {
        const float dot = ReduceSum(acc[r][c]);
        y[c] = t.out->add ? y[c] + dot : dot;
      }
    }
  }
}

template <size_t kRows>
HWY_INLINE void TileOfRows(size_t cols, const TileArgs& t) {
  if (cols == kTileCols) return Tile<kRows, kTileCols>(t);
  TileArgs one = t;
  for (size_t c = 0; c < cols; ++c) {
    one.col = t.col + c;
    one.w = t.w + c * t.k;
    one.partial = t.partial + c * kRows * 16;
    Tile<kRows, 1>(one);
  }
}

// Only the row counts that this target's tiles have are instantiated: each costs compile time.
template <size_t kRows = kTileRows>
HWY_INLINE void AnyTile(size_t rows, size_t cols, const TileArgs& t) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return AnyTile<kRows - 1>(rows, cols, t);
  }
  TileOfRows<kRows>(cols, t);
}

// Columns [begin, end) of one output, all rows.
HWY_INLINE void Columns(const GemmJob& job, const GemmOutput& out, size_t begin, size_t end, float* partial) {
  const GemmParams& p = *job.params;
  const size_t row_tiles_per_block = std::max<size_t>(1, kBlockRows / job.tile_rows);
  const size_t rows_per_block = row_tiles_per_block * job.tile_rows;
  for (size_t row0 = 0; row0 < p.m; row0 += rows_per_block) {
    const size_t row1 = std::min(p.m, row0 + rows_per_block);
    for (size_t k0 = 0; k0 < p.k; k0 += kBlockK) {
      const size_t pass_k = std::min(kBlockK, p.k - k0);
      float* slot = partial;
      for (size_t col = begin; col < end; col += kTileCols) {
        const size_t cols = std::min(kTileCols, end - col);
        for (size_t row = row0; row < row1; row += job.tile_rows) {
          const size_t rows = std::min(job.tile_rows, p.m - row);
          const TileArgs t = {job.workspace->packed_x.data() + row * job.padded_k + k0 * rows,
                              out.w + col * p.k + k0,
                              p.k,
                              pass_k,
                              slot,
                              k0 == 0,
                              k0 + pass_k == p.k,
                              &out,
                              row,
                              col};
          AnyTile(rows, cols, t);
          slot += rows * cols * 16;
        }
      }
    }
  }
}

// Rows [row, row + rows) of x into their tile.
HWY_INLINE void PackTile(const GemmParams& p, size_t padded_k, size_t row, size_t rows, float* tile) {
  for (size_t r = 0; r < rows; ++r) {
    const float* x = p.x + (row + r) * p.ldx;
    for (size_t s = 0; s < padded_k; s += kStep) {
      float* even = tile + s * rows + r * 16;
      float* odd = even + rows * 16;
      if (s + kStep <= p.k) {
        for (size_t i = 0; i < 16; ++i) {
          even[i] = x[s + 2 * i];
          odd[i] = x[s + 2 * i + 1];
        }
      } else {
        for (size_t i = 0; i < 16; ++i) {
          even[i] = s + 2 * i < p.k ? x[s + 2 * i] : 0.0f;
          odd[i] = s + 2 * i + 1 < p.k ? x[s + 2 * i + 1] : 0.0f;
        }
      }
    }
  }
}

void GemmImpl(const GemmParams& p, ThreadPool& pool, GemmWorkspace& ws) {
  GemmJob job = {&p, &ws, (p.k + kStep - 1) / kStep * kStep, kTileRows};
  size_t columns = 0, tasks = 0;
  for (const GemmOutput& out : p.outputs) {
    columns += out.n;
    tasks += (out.n + kTaskColumns - 1) / kTaskColumns;
  }
  if (ws.packed_x.size() < p.m * job.padded_k) ws.packed_x.resize(p.m * job.padded_k);
  if (ws.partials.size() < static_cast<size_t>(pool.threads())) ws.partials.resize(pool.threads());
  const size_t partial_floats = p.k > kBlockK ? (kBlockRows + kTileRows) * kTaskColumns * 16 : 0;
  for (std::vector<float>& partial : ws.partials) {
    if (partial.size() < partial_floats) partial.resize(partial_floats);
  }
  const size_t tiles = (p.m + job.tile_rows - 1) / job.tile_rows;
  const auto pack = [&](size_t tile, int) HWY_ATTR {
    const size_t row = tile * job.tile_rows;
    PackTile(p, job.padded_k, row, std::min(job.tile_rows, p.m - row), ws.packed_x.data() + row * job.padded_k);
  };
  const auto run = [&](size_t task, int thread) HWY_ATTR {
    for (const GemmOutput& out : p.outputs) {
      const size_t own = (out.n + kTaskColumns - 1) / kTaskColumns;
      if (task < own) {
        const size_t begin = task * kTaskColumns;
        return Columns(job, out, begin, std::min(out.n, begin + kTaskColumns), ws.partials[thread].data());
      }
      task -= own;
    }
  };
  const bool small = p.m * p.k * columns < kSmallWork;
  if (tiles > 4 && !small) {
    pool.Run(tiles, pack);
  } else {
    for (size_t i = 0; i < tiles; ++i) pack(i, 0);
  }
  if (small) {
    for (size_t i = 0; i < tasks; ++i) run(i, 0);
  } else {
    pool.Run(tasks, run);
  }
}

}  // namespace agentserve::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentserve::kernels {

HWY_EXPORT(GemmImpl);

void Gemm(const GemmParams& params, ThreadPool& pool, GemmWorkspace& workspace) {
  HWY_DYNAMIC_DISPATCH(GemmImpl)(params, pool, workspace);
}

}  // namespace agentserve::kernels
#endif
