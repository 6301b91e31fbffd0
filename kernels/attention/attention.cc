#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include "hwy/highway.h"
#include "kernels/simd/simd-inl.h"

#ifndef AGENTSERVE_KERNELS_ATTENTION_ONCE_
#define AGENTSERVE_KERNELS_ATTENTION_ONCE_
namespace agentserve::kernels {

inline constexpr uint32_t kQueryRows = 16;  // positions per task: K and V are widened once for 16 * group rows

// Scratch of one task. Row r = (position - first) * group + head in group.
struct AttentionState {
  float* k = nullptr;       // [kAttentionTile][d] fp32
  float* v = nullptr;       // [kAttentionTile][d]
  float* out = nullptr;     // [rows][d], not yet divided by sum
  float* most = nullptr;    // [rows]
  float* sum = nullptr;     // [rows]
  float* weight = nullptr;  // [kAttentionTile]
};

inline size_t AttentionScratchFloats(size_t d, uint32_t group) {
  return 2 * kAttentionTile * d + size_t{kQueryRows} * group * (d + 2) + kAttentionTile;
}

inline AttentionState CarveAttentionState(float* scratch, size_t d, uint32_t group) {
  AttentionState s;
  s.k = scratch;
  s.v = s.k + kAttentionTile * d;
  s.out = s.v + kAttentionTile * d;
  s.most = s.out + size_t{kQueryRows} * group * d;
  s.sum = s.most + size_t{kQueryRows} * group;
  s.weight = s.sum + size_t{kQueryRows} * group;
  return s;
}

}  // namespace agentserve::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace agentserve::kernels::HWY_NAMESPACE {

// Widens positions [begin, begin + n) of one head.
HWY_INLINE void LoadTile(const PagedKv& kv, const uint32_t* blocks, uint32_t begin, uint32_t n, uint32_t head,
                         const AttentionState& s) {
  const size_t d = kv.head_dim;
  for (uint32_t j = 0; j < n; ++j) {
    const uint16_t* k = kv.Row(blocks, begin + j, kv.k_offset, head);
    const uint16_t* v = kv.Row(blocks, begin + j, kv.v_offset, head);
    for (size_t i = 0; i < d; i += 16) {
      StoreF(LoadBf16(k + i), s.k + j * d + i);
      StoreF(LoadBf16(v + i), s.v + j * d + i);
    }
  }
}

// kKeys scores of one query at once; each is its own 16-lane dot product.
template <uint32_t kKeys>
HWY_INLINE void Scores(const float* q, const float* k, size_t d, float scale, float* out) {
  V16 acc[kKeys];
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kKeys; ++j) acc[j] = Splat(0.0f);
  for (size_t i = 0; i < d; i += 16) {
    const V16 qv = LoadF(q + i);
#pragma GCC unroll 8
    for (uint32_t j = 0; j < kKeys; ++j) acc[j] = Fma(qv, LoadF(k + j * d + i), acc[j]);
  }
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kKeys; ++j) out[j] = ReduceSum(acc[j]) * scale;
}

// out = out * decay + sum over j of weight[j] * v[j], kChunks * 16 elements.
template <size_t kChunks>
HWY_INLINE void Accumulate(const float* weight, const float* v, size_t d, uint32_t n, float decay, float* out) {
  V16 acc[kChunks];
  const V16 decays = Splat(decay);
#pragma GCC unroll 8
  for (size_t c = 0; c < kChunks; ++c) acc[c] = Mul(LoadF(out + c * 16), decays);
  for (uint32_t j = 0; j < n; ++j) {
    const V16 w = Splat(weight[j]);
#pragma GCC unroll 8
    for (size_t c = 0; c < kChunks; ++c) acc[c] = Fma(w, LoadF(v + j * d + c * 16), acc[c]);
  }
#pragma GCC unroll 8
  for (size_t c = 0; c < kChunks; ++c) StoreF(acc[c], out + c * 16);
}

// Folds n keys of the tile into row r.
HWY_INLINE void UpdateRow(const float* q, size_t d, float scale, uint32_t n, size_t r, const AttentionState& s) {
  uint32_t j = 0;
  for (; j + 4 <= n; j += 4) Scores<4>(q, s.k + j * d, d, scale, s.weight + j);
  for (; j < n; ++j) Scores<1>(q, s.k + j * d, d, scale, s.weight + j);
  const uint32_t padded = (n + 15) / 16 * 16;
  for (; j < padded; ++j) s.weight[j] = -std::numeric_limits<float>::infinity();

  V16 most = Splat(s.most[r]);
  for (uint32_t i = 0; i < padded; i += 16) most = Max(most, LoadF(s.weight + i));
  const float new_most = ReduceMax(most);
  const V16 minus = Splat(-new_most);
  V16 sums = Splat(0.0f);
  for (uint32_t i = 0; i < padded; i += 16) {
    const V16 e = ExpOf(Add(LoadF(s.weight + i), minus));
    StoreF(e, s.weight + i);
    sums = Add(sums, e);
  }
  float decay_lanes[16];
  StoreF(ExpOf(Splat(s.most[r] - new_most)), decay_lanes);
  const float decay = decay_lanes[0];
  s.sum[r] = s.sum[r] * decay + ReduceSum(sums);
  s.most[r] = new_most;
  size_t c = 0;
  for (; c + 64 <= d; c += 64) Accumulate<4>(s.weight, s.v + c, d, n, decay, s.out + r * d + c);
  for (; c < d; c += 16) Accumulate<1>(s.weight, s.v + c, d, n, decay, s.out + r * d + c);
}

HWY_INLINE void RunTask(const AttentionParams& p, const AttentionWorkspace::Task& task, float* scratch) {
  const AttentionSeq& seq = p.seqs[task.seq];
  const size_t d = p.kv.head_dim;
  const uint32_t group = p.heads / p.kv.kv_heads;
  const AttentionState s = CarveAttentionState(scratch, d, group);
  const size_t rows = size_t{task.rows} * group;
  std::fill_n(s.out, rows * d, 0.0f);
  std::fill_n(s.most, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(s.sum, rows, 0.0f);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const uint32_t first = seq.start + task.row;  // position of the task's first row
  const uint32_t end = first + task.rows;
  for (uint32_t tile = 0; tile < end; tile += kAttentionTile) {
    LoadTile(p.kv, seq.blocks, tile, std::min(kAttentionTile, end - tile), task.head, s);
    for (uint32_t position = std::max(first, tile); position < end; ++position) {
      const uint32_t n = std::min(kAttentionTile, position + 1 - tile);
      const float* q = seq.q + (position - seq.start) * p.ld + size_t{task.head} * group * d;
      for (uint32_t g = 0; g < group; ++g) UpdateRow(q + g * d, d, scale, n, size_t{position - first} * group + g, s);
    }
  }
  for (uint32_t i = 0; i < task.rows; ++i) {
    for (uint32_t g = 0; g < group; ++g) {
      const size_t r = size_t{i} * group + g;
      const V16 inverse = Splat(1.0f / s.sum[r]);
      float* out = seq.out + (task.row + i) * p.ld + (size_t{task.head} * group + g) * d;
      for (size_t c = 0; c < d; c += 16) StoreF(Mul(LoadF(s.out + r * d + c), inverse), out + c);
    }
  }
}

void AttentionImpl(const AttentionParams& p, ThreadPool& pool, AttentionWorkspace& ws) {
  const size_t floats = AttentionScratchFloats(p.kv.head_dim, p.heads / p.kv.kv_heads);
  if (ws.scratch.size() < static_cast<size_t>(pool.threads())) ws.scratch.resize(pool.threads());
  for (std::vector<float>& scratch : ws.scratch) {
    if (scratch.size() < floats) scratch.resize(floats);
  }
  const auto run = [&](size_t i, int thread) HWY_ATTR { RunTask(p, ws.tasks[i], ws.scratch[thread].data()); };
  pool.Run(ws.tasks.size(), run);
}

}  // namespace agentserve::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace agentserve::kernels {

HWY_EXPORT(AttentionImpl);

void Attention(const AttentionParams& params, ThreadPool& pool, AttentionWorkspace& workspace) {
  workspace.tasks.clear();
  for (uint32_t seq = 0; seq < params.seqs.size(); ++seq) {
    const auto rows = static_cast<uint32_t>(params.seqs[seq].rows);
    // Later rows cost more; taking them first evens out the threads' finish.
    for (uint32_t block = (rows + kQueryRows - 1) / kQueryRows; block-- > 0;) {
      const uint32_t row = block * kQueryRows;
      for (uint32_t head = 0; head < params.kv.kv_heads; ++head) {
        workspace.tasks.push_back({seq, head, row, std::min(kQueryRows, rows - row)});
      }
    }
  }
  HWY_DYNAMIC_DISPATCH(AttentionImpl)(params, pool, workspace);
}

}  // namespace agentserve::kernels
#endif
