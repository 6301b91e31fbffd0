#include "kernels/attention/decode_plan.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace agentserve::kernels::cuda {
namespace {

// Thread blocks of the decode kernel that run on an SM at once.
constexpr int kBlocksPerSm = 2;
// Shortest unit: one 16-position tile for each of 8 warps. Shorter ones only add partial results.
constexpr int kMinChunk = 128;
// Work that a unit costs beyond its positions (start, merge of the warps, partial result), in positions.
constexpr int kUnitOverhead = 96;
// Units beyond one a row that an adaptive plan may make, in multiples of what runs at once.
constexpr int kMaxWaves = 4;

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
int RoundUp(int a, int multiple) { return CeilDiv(a, multiple) * multiple; }
// Units that run at once: a unit is one thread block per KV head.
int Slots(int num_sms, int kv_heads) { return std::max(1, num_sms * kBlocksPerSm / std::max(1, kv_heads)); }

int CountUnits(const int32_t* kv_lengths, int rows, int chunk) {
  int units = 0;
  for (int i = 0; i < rows; ++i) units += CeilDiv(kv_lengths[i], chunk);
  return units;
}

// Positions that the busiest slot gets if unit u runs on slot u % slots.
int64_t BusiestSlot(const int32_t* kv_lengths, int rows, int chunk, std::vector<int64_t>& load) {
  std::fill(load.begin(), load.end(), 0);
  size_t slot = 0;
  for (int i = 0; i < rows; ++i) {
    for (int begin = 0; begin < kv_lengths[i]; begin += chunk) {
      load[slot] += std::min(chunk, kv_lengths[i] - begin) + kUnitOverhead;
      if (++slot == load.size()) slot = 0;
    }
  }
  return *std::max_element(load.begin(), load.end());
}

// The chunk with the least work on the busiest slot, among those that make 1 to kMaxWaves units a slot.
int AdaptiveChunk(const int32_t* kv_lengths, int rows, int block_tokens, int slots, int max_units) {
  int64_t total = 0;
  int longest = 0;
  for (int i = 0; i < rows; ++i) {
    total += kv_lengths[i];
    longest = std::max(longest, kv_lengths[i]);
  }
  const int shortest = RoundUp(kMinChunk, block_tokens);
  std::vector<int64_t> load(static_cast<size_t>(slots));
  int best = RoundUp(std::max(longest, shortest), block_tokens);
  int64_t best_load = BusiestSlot(kv_lengths, rows, best, load);
  // Quarters of a wave: the longest rows decide how many positions of a slot are whole chunks.
  for (int quarter = 4; quarter <= 4 * kMaxWaves; ++quarter) {
    const int chunk = std::max(shortest, RoundUp(CeilDiv(total * 4, int64_t{quarter} * slots), block_tokens));
    if (chunk >= best && quarter > 4) continue;
    if (CountUnits(kv_lengths, rows, chunk) > max_units) continue;
    const int64_t candidate = BusiestSlot(kv_lengths, rows, chunk, load);
    if (candidate < best_load) {
      best = chunk;
      best_load = candidate;
    }
  }
  return best;
}

}  // namespace

DecodePlanLimits DecodeLimits(int max_rows, int max_context, int num_sms, int fixed_chunk, int kv_heads) {
  DecodePlanLimits limits;
  limits.max_rows = max_rows;
  limits.max_context = max_context;
  limits.kv_heads = kv_heads;
  limits.max_units =
      fixed_chunk > 0 ? max_rows * CeilDiv(max_context, fixed_chunk) : max_rows + kMaxWaves * Slots(num_sms, kv_heads);
  return limits;
}

int PlanDecode(const int32_t* kv_lengths, int rows, int block_tokens, int num_sms, int fixed_chunk,
               const DecodePlanLimits& limits, DecodeUnit* units, int32_t* splits) {
  const int chunk = fixed_chunk > 0 ? RoundUp(fixed_chunk, block_tokens)
                                    : AdaptiveChunk(kv_lengths, rows, block_tokens, Slots(num_sms, limits.kv_heads),
                                                    limits.max_units);
  if (CountUnits(kv_lengths, rows, chunk) > limits.max_units) return -1;
  int count = 0;
  for (int row = 0; row < rows; ++row) {
    splits[row] = count;
    int split = 0;
    for (int begin = 0; begin < kv_lengths[row]; begin += chunk) {
      units[count++] = {row, begin, std::min(begin + chunk, kv_lengths[row]), split++};
    }
  }
  splits[rows] = count;
  std::fill(units + count, units + limits.max_units, DecodeUnit{-1, 0, 0, 0});
  return count;
}

}  // namespace agentserve::kernels::cuda
