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
// The rest is the cost model, in the time in which a thread block alone on the GPU reads one position; fitted to
// measurements on an H200 (README.md). With n blocks running, a position takes 1 + n / kSharing: they share the
// memory's bandwidth. A unit costs kUnitOverhead positions beside its own. A row that is split must be put together
// again, which costs more the more parts there are.
constexpr int kSharing = 42;
constexpr int kUnitOverhead = 32;
constexpr int kCombineCost = 870;
constexpr int kPartCost = 30;
// Most units a slot of an adaptive plan gets, beyond one a row.
constexpr int kMaxWaves = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int RoundUp(int64_t a, int multiple) { return static_cast<int>(CeilDiv(a, multiple) * multiple); }

// Units that run at once: a unit is one cluster per `heads` KV heads. Clusters of 8 and 16 do not fit everywhere: a
// tenth of the blocks stays free.
int Slots(int num_sms, int kv_heads, int cluster, int heads) {
  const int blocks = num_sms * kBlocksPerSm;
  const int clusters = (cluster >= 4 ? blocks * 9 / 10 : blocks) / cluster;
  return std::max(1, clusters / std::max(1, kv_heads / heads));
}

int64_t CountUnits(const int32_t* kv_lengths, int rows, int chunk) {
  int64_t units = 0;
  for (int i = 0; i < rows; ++i) units += CeilDiv(kv_lengths[i], chunk);
  return units;
}

struct Batch {
  const int32_t* kv_lengths;
  int rows;
  int64_t total = 0;
  int32_t longest = 0;
};

// Estimated time of a plan with this chunk; unit u runs on slot u % slots.
int64_t Cost(const Batch& batch, int chunk, const DecodePlanLimits& limits, std::vector<int64_t>& load) {
  std::fill(load.begin(), load.end(), 0);
  size_t slot = 0;
  for (int i = 0; i < batch.rows; ++i) {
    for (int begin = 0; begin < batch.kv_lengths[i]; begin += chunk) {
      load[slot] +=
          CeilDiv(std::min(chunk, batch.kv_lengths[i] - begin), limits.cluster) * limits.heads + kUnitOverhead;
      if (++slot == load.size()) slot = 0;
    }
  }
  std::sort(load.begin(), load.end());
  int64_t time = 0, done = 0;
  for (size_t i = 0; i < load.size(); ++i) {
    const int64_t blocks = static_cast<int64_t>(load.size() - i) * limits.cluster * (limits.kv_heads / limits.heads);
    time += (load[i] - done) * (kSharing + blocks);
    done = load[i];
  }
  const int64_t parts = CeilDiv(batch.longest, chunk);
  return time / kSharing + (parts > 1 ? kCombineCost + kPartCost * parts : 0);
}

// The cheapest chunk among: the longest row in 1, 2, 3, ... even parts, and those that make about a quarter, two
// quarters, ... of kMaxWaves units a slot.
int AdaptiveChunk(const Batch& batch, int block_tokens, int num_sms, const DecodePlanLimits& limits) {
  constexpr int kMaxParts = 33;
  const int slots = Slots(num_sms, limits.kv_heads, limits.cluster, limits.heads);
  const int shortest = RoundUp(kMinChunk * limits.cluster, block_tokens);
  std::vector<int64_t> load(static_cast<size_t>(slots));
  int best = RoundUp(std::max(batch.longest, shortest), block_tokens);
  int64_t best_cost = Cost(batch, best, limits, load);
  // False if no shorter chunk is possible.
  const auto consider = [&](int64_t positions) {
    const int chunk = std::max(shortest, RoundUp(positions, block_tokens));
    const int64_t units = CountUnits(batch.kv_lengths, batch.rows, chunk);
    if (units > limits.max_units) return false;
    // Clusters of 8 that do not fill the GPU land unevenly on its parts; measured slower than none or all of them.
    const bool uneven = limits.cluster == 8 && units < slots;
    const int64_t cost = uneven || chunk >= batch.longest ? best_cost : Cost(batch, chunk, limits, load);
    if (cost < best_cost) {
      best = chunk;
      best_cost = cost;
    }
    return chunk > shortest;
  };
  for (int parts = 2; parts <= kMaxParts && consider(CeilDiv(batch.longest, parts)); ++parts) continue;
  for (int quarter = 1; quarter <= 4 * kMaxWaves; ++quarter) {
    if (!consider(CeilDiv(batch.total * 4, int64_t{quarter} * slots))) break;
  }
  return best;
}

// As many blocks a head as keep the GPU busy without splitting rows; longer contexts prefer more, smaller clusters.
int ClusterFor(int max_rows, int max_context, int num_sms, int kv_heads, int head_dim) {
  const int64_t heads = int64_t{max_rows} * kv_heads * 132 / std::max(1, num_sms);
  if (heads <= 8) return 8;
  if (heads <= 16) return 4;
  if (heads <= 32) return head_dim > 64 && max_context <= 2048 ? 4 : 2;
  return heads <= 64 ? 2 : 1;
}

// Two heads a block if then one unit a row is one task a block: 28 us of 1.55 ms at 64 rows and 1,024 positions. More
// heads at 128 and 256 rows made a step 0.3 to 0.7 % slower.
int HeadsFor(int max_rows, int num_sms, int kv_heads) {
  const int blocks = num_sms * kBlocksPerSm, tasks = max_rows * kv_heads / 2;
  return kv_heads % 2 == 0 && tasks <= blocks && tasks * 10 >= blocks * 9 ? 2 : 1;
}

}  // namespace

DecodePlanLimits DecodeLimits(int max_rows, int max_context, int num_sms, int fixed_chunk, int kv_heads, int head_dim) {
  DecodePlanLimits limits;
  limits.max_rows = max_rows;
  limits.max_context = max_context;
  limits.kv_heads = kv_heads;
  if (fixed_chunk > 0) {
    limits.max_units = static_cast<int>(max_rows * CeilDiv(max_context, fixed_chunk));
    limits.combine_kernel = true;
  } else {
    limits.cluster = ClusterFor(max_rows, max_context, num_sms, kv_heads, head_dim);
    if (limits.cluster == 1) limits.heads = HeadsFor(max_rows, num_sms, kv_heads);
    limits.max_units = max_rows + kMaxWaves * Slots(num_sms, kv_heads, limits.cluster, limits.heads);
  }
  return limits;
}

int PlanDecode(const int32_t* kv_lengths, int rows, int block_tokens, int num_sms, int fixed_chunk,
               const DecodePlanLimits& limits, DecodeUnit* units, int32_t* splits) {
  Batch batch{kv_lengths, rows};
  for (int i = 0; i < rows; ++i) {
    batch.total += kv_lengths[i];
    batch.longest = std::max(batch.longest, kv_lengths[i]);
  }
  const int chunk =
      fixed_chunk > 0 ? RoundUp(fixed_chunk, block_tokens) : AdaptiveChunk(batch, block_tokens, num_sms, limits);
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
