#include <bit>
#include <string>

#include "kernels/cuda/pdl.cuh"
#include "kernels/sampling/sampling_cuda.h"
#include "kernels/sampling/sampling_decide.cuh"
#include "kernels/sampling/sampling_logprobs.cuh"

namespace agentserve::kernels::cuda {
namespace {

namespace cg = cooperative_groups;

// Of each row: the sorted edits and the mass before each, for rows with too many for shared memory.
size_t RowWorkspaceBytes(int vocab) {
  if (vocab <= kSharedItems) return 0;
  return (std::bit_ceil(static_cast<size_t>(vocab)) * 2 + 2) * sizeof(uint64_t);
}

struct Spill {
  uint64_t* items;
  double* mass;
};

// What all blocks of a cluster know after the first pass.
struct RowSummary {
  uint64_t best;
  uint32_t candidates, raw_key;
  bool finite, infinite;
};

__device__ RowSummary ReadSummaries(SampleShared& s, int blocks) {
  const int lane = threadIdx.x % 32;
  SliceSummary slice = {kNoItem, 0, 0, 0, kNoKey, 0};
  if (lane < blocks) slice = *cg::this_cluster().map_shared_rank(&s.summary, lane);
  return {WarpMin64(slice.best), __reduce_add_sync(0xffffffffu, slice.candidates),
          __reduce_min_sync(0xffffffffu, slice.raw_key), __any_sync(0xffffffffu, slice.finite != 0) != 0,
          __any_sync(0xffffffffu, slice.infinite != 0) != 0};
}

__device__ void ClearCounts(SampleShared& s) {
  uint4* counts = reinterpret_cast<uint4*>(s.counts);
  for (int i = threadIdx.x; i < 32768 / 4; i += kSampleThreads) counts[i] = make_uint4(0, 0, 0, 0);
  uint32_t* touched = reinterpret_cast<uint32_t*>(s.touched);
  for (int i = threadIdx.x; i < kRegions / 4; i += kSampleThreads) touched[i] = 0;
}

// First pass over the slice, its result in s.summary and s.touched_bits for the cluster.
__device__ void Summarize(const Slice& slice, SampleShared& s, bool count) {
  if (slice.edit_count > 0) MarkEdits(slice, s);
  __syncthreads();
  const Findings f = count ? ScanSlice<true>(slice, s) : ScanSlice<false>(slice, s);
  uint64_t best = f.best_key == kNoKey ? kNoItem : MakeItem(WidenKey(f.best_key), f.best_id);
  if (f.best_edited < best) best = f.best_edited;
  best = BlockMin64(best, s.scratch);
  const bool finite = __syncthreads_or(f.finite) != 0, infinite = __syncthreads_or(f.infinite) != 0;
  const uint32_t warp_candidates = __reduce_add_sync(0xffffffffu, f.candidates);
  const uint32_t raw_key = __reduce_min_sync(0xffffffffu, min(f.best_key, f.best_raw_edited));
  const int lane = threadIdx.x % 32;
  if (lane == 0) s.scratch[threadIdx.x / 32] = static_cast<uint64_t>(warp_candidates) << 32 | raw_key;
  for (int i = threadIdx.x; i < kRegions; i += kSampleThreads) {
    const uint32_t bits = __ballot_sync(0xffffffffu, s.touched[i] != 0);
    if (lane == 0) s.touched_bits[i / 32] = bits;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const uint64_t packed = lane < kSampleWarps ? s.scratch[lane] : 0xffffffffu;
  const uint32_t candidates = __reduce_add_sync(0xffffffffu, static_cast<uint32_t>(packed >> 32));
  const uint32_t raw = __reduce_min_sync(0xffffffffu, static_cast<uint32_t>(packed));
  if (lane == 0) s.summary = {best, candidates, finite ? 1u : 0u, infinite ? 1u : 0u, raw, 0};
}

// No filter: the draw walks all tokens by id. The token in the first warp of the block that has it, -1 elsewhere.
__device__ int DrawById(const Slice& slice, SampleShared& s, int blocks, float max) {
  const float scale = static_cast<float>(1.4426950408889634 / slice.row.temperature);
  WeighSlice(slice, s, max, scale);
  cg::this_cluster().sync();
  if (threadIdx.x >= 32) return -1;
  const int lane = threadIdx.x % 32;
  const double mass = lane < blocks ? cg::this_cluster().map_shared_rank(&s.summary, lane)->mass : 0.0;
  const double upto = WarpScan(mass), total = __shfl_sync(0xffffffffu, upto, 31);
  const double target = UniformAt(slice.row.seed, slice.row.position) * total;
  const uint32_t hit = __ballot_sync(0xffffffffu, upto > target && mass > 0);
  const uint32_t any = __ballot_sync(0xffffffffu, mass > 0);
  const int owner = hit != 0 ? __ffs(static_cast<int>(hit)) - 1 : 31 - __clz(static_cast<int>(any));
  if (owner != static_cast<int>(cg::this_cluster().block_rank())) return -1;
  return FindByMass(slice, s, max, scale, target - __shfl_sync(0xffffffffu, upto - mass, owner));
}

// top-k, top-p or min-p: the draw walks the tokens from the best on. As DrawById.
__device__ int DrawByOrder(const Slice& slice, SampleShared& s, int blocks, const RowSummary& summary,
                           const Spill& spill) {
  const int rank = static_cast<int>(cg::this_cluster().block_rank());
  if (rank == 0) {
    Order order{s,
                blocks,
                0,
                s.items,
                s.item_mass,
                ValueOfKey(static_cast<uint32_t>(summary.best >> 32)),
                1.0 / slice.row.temperature};
    if (slice.edit_count > kSharedItems) {
      order.items = spill.items;
      order.item_mass = spill.mass;
    }
    if (slice.edit_count > 0) SortEdits(slice, order);
    BuildRegions(order);
    if (threadIdx.x < 32) {
      const Place place = DrawPlace(order, slice.row, summary.candidates);
      const Decision decision = Locate(order, place, slice.slice_vectors);
      if (threadIdx.x == 0) s.decision = decision;
    }
  }
  cg::this_cluster().sync();
  const Decision decision = *cg::this_cluster().map_shared_rank(&s.decision, 0);
  if (static_cast<int>(decision.rank) != rank) return -1;
  return FindByKey(slice, s, decision.key, decision.index);
}

struct Choice {
  int token = -1;  // in the first warp of one block (greedy, or no finite logit: of the first), -1 elsewhere
  bool ok = true;  // false: no logit is finite, or one is +infinity
  float raw_max = 0;
};

__device__ __forceinline__ bool IsFiltered(const SamplingRow& row, int vocab) {
  return (row.top_k > 0 && row.top_k < static_cast<uint32_t>(vocab)) || row.top_p < 1.0f || row.min_p > 0.0f;
}

// False: the row has to go the general way.
__device__ bool ChooseFast(Slice& slice, SampleShared& s, int blocks, const VectorBest& loaded, Choice& choice) {
  const SamplingRow& row = slice.row;
  const int rank = static_cast<int>(cg::this_cluster().block_rank());
  FindBest(slice, s, blocks, loaded);
  const uint64_t best = s.row_best;
  choice.ok = best != kInfiniteLogit && (best != kNoItem || slice.edit_count > 0);
  if (!choice.ok) return true;
  if (best == kInfiniteAdjusted || best == kNoItem) return false;
  choice.raw_max = ValueOfKey(slice.edit_count > 0 ? WidenKey(s.row_raw_key) : static_cast<uint32_t>(best >> 32));
  if (row.temperature == 0.0f) {
    if (rank == 0) choice.token = static_cast<int>(best & 0xffffffffu);
    return true;
  }
  if (!IsFiltered(row, slice.vocab)) {
    choice.token = DrawById(slice, s, blocks, choice.raw_max);
    return true;
  }
  const Window window(static_cast<uint32_t>(best >> 32), row.temperature);
  const uint32_t top_k = row.top_k < static_cast<uint32_t>(slice.vocab) ? row.top_k : 0;
  CountWindow(slice, s, window, top_k, top_k == 0 && row.top_p < 1.0f);
  WindowPlace place;
  if (!WindowSearch(slice, s, window, blocks).Decide(&place)) return false;
  choice.token = TokenAt(slice, s, blocks, place);
  return true;
}

__device__ Choice Choose(Slice& slice, SampleShared& s, int blocks, const VectorBest& loaded, const Spill& spill) {
  const SamplingRow& row = slice.row;
  Choice choice;
  // Edits are listed in shared memory, which a draw by id has no use for.
  if (slice.edit_count == 0 ||
      (slice.edit_count <= kSharedItems && (row.temperature == 0.0f || IsFiltered(row, slice.vocab)))) {
    if (ChooseFast(slice, s, blocks, loaded, choice)) return choice;
    cg::this_cluster().sync();
  }
  slice.cache = nullptr;
  __syncthreads();
  const bool filtered = row.temperature != 0.0f && IsFiltered(row, slice.vocab);
  RowSummary summary;
  for (;;) {
    ClearCounts(s);
    Summarize(slice, s, filtered);
    cg::this_cluster().sync();
    summary = ReadSummaries(s, blocks);
    choice.ok = summary.finite && !summary.infinite;
    const bool useless = summary.best == kNoItem || static_cast<uint32_t>(summary.best >> 32) == kInfinityKey32;
    if (!choice.ok || !useless || slice.edit_count == 0) break;
    slice.edit_count = 0;  // biases and masks leave nothing to choose from: they give way
    cg::this_cluster().sync();
  }
  if (!choice.ok) return choice;
  choice.raw_max = ValueOfKey(WidenKey(summary.raw_key));
  if (row.temperature == 0.0f) {
    if (cg::this_cluster().block_rank() == 0) choice.token = static_cast<int>(summary.best & 0xffffffffu);
    return choice;
  }
  const bool ordered = (row.top_k > 0 && row.top_k < summary.candidates) || row.top_p < 1.0f || row.min_p > 0.0f;
  choice.token = ordered ? DrawByOrder(slice, s, blocks, summary, spill)
                         : DrawById(slice, s, blocks, ValueOfKey(static_cast<uint32_t>(summary.best >> 32)));
  return choice;
}

__global__ __launch_bounds__(kSampleThreads, 1) void SampleKernel(const SampleParams p, size_t spill_bytes) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  SampleShared& s = *reinterpret_cast<SampleShared*>(shared_bytes);
  const cg::cluster_group cluster = cg::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks()), rank = static_cast<int>(cluster.block_rank());
  const int row = static_cast<int>(blockIdx.x) / blocks, vectors = (p.vocab + 7) / 8;
  for (int i = threadIdx.x; i < kWindowKeys / 4; i += kSampleThreads) {
    reinterpret_cast<uint4*>(s.Bins())[i] = make_uint4(0, 0, 0, 0);
  }
  if (threadIdx.x == 0) s.weight_cut = kWindowKeys;
  PdlWait();
  PdlTrigger();
  Slice slice;
  slice.row = p.settings[row];  // arrives while the logits do
  slice.logits = p.logits + static_cast<size_t>(row) * p.vocab;
  slice.vocab = p.vocab;
  slice.slice_vectors = (vectors + blocks - 1) / blocks;
  slice.first = min(rank * slice.slice_vectors, vectors);
  slice.count = min(slice.slice_vectors, vectors - slice.first);
  const VectorBest loaded = CacheSlice(slice, s);
  slice.edits = p.edits + slice.row.edits_begin;
  slice.edit_count = slice.row.edits_end - slice.row.edits_begin;
  Spill spill;
  spill.items = reinterpret_cast<uint64_t*>(static_cast<std::byte*>(p.workspace) + row * spill_bytes);
  spill.mass = reinterpret_cast<double*>(spill.items + spill_bytes / 16 - 1);
  SampledRow* out = p.out + row;
  const Choice choice = Choose(slice, s, blocks, loaded, spill);
  if (threadIdx.x == 0 && (choice.token >= 0 || (!choice.ok && rank == 0))) {
    out->token = choice.token;
    if (p.tokens != nullptr) p.tokens[row] = max(choice.token, 0);
    *cluster.map_shared_rank(&s.token, 0) = choice.token;
  }
  if (choice.ok && slice.row.top_logprobs >= 0) {
    const int n = min(slice.row.top_logprobs, kMaxTopLogprobs);
    if (slice.edit_count > 0) slice.cache = nullptr;  // it has the adjusted logits
    slice.edit_count = 0;
    cluster.sync();
    SliceLogprobs(slice, s, choice.raw_max, n);
    cluster.sync();
    if (rank == 0) WriteLogprobs(slice, s, blocks, choice.raw_max, n, out);
  }
  cluster.sync();  // shared memory stays until all have read it
}

// How many clusters of `size` blocks the GPU holds at once. The blocks of a cluster share a group of SMs, and the
// groups are not all a multiple of 4 or 8, so this is less than SMs / size.
int ResidentClusters(int size) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(size));
  config.blockDim = dim3(kSampleThreads);
  config.dynamicSmemBytes = sizeof(SampleShared);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, SampleKernel, &config) != cudaSuccess) return 0;
  return clusters;
}

// Blocks per row: as many as the GPU holds at once for all rows, since a row is one chain of dependent steps; at most
// 8, the largest portable cluster, and enough that a slice fits.
int ClusterSize(int rows, int vocab) {
  static const int resident8 = ResidentClusters(8), resident4 = ResidentClusters(4);
  int size = rows <= resident8 ? 8 : rows <= resident4 ? 4 : 2;
  while (size < kMaxClusterSize && (vocab + 8 * size - 1) / (8 * size) > kMaxSliceVectors) size *= 2;
  return size;
}

}  // namespace

size_t SampleWorkspaceBytes(int max_rows, int vocab) {
  return static_cast<size_t>(max_rows) * RowWorkspaceBytes(vocab);
}

absl::Status Sample(const SampleParams& p, const LaunchContext& context) {
  if (p.rows == 0) return absl::OkStatus();
  const int most = kMaxClusterSize * (kMaxSliceVectors - 1) * 8;
  if (p.rows < 0 || p.vocab < 1 || p.vocab > most || p.workspace_bytes < SampleWorkspaceBytes(p.rows, p.vocab)) {
    return absl::InvalidArgumentError("Sample: rows " + std::to_string(p.rows) + ", vocabulary " +
                                      std::to_string(p.vocab) + " (at most " + std::to_string(most) +
                                      "), workspace of " + std::to_string(p.workspace_bytes) + " bytes");
  }
  cudaError_t error = cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(sizeof(SampleShared)));
  if (error == cudaSuccess) {
    const int cluster = ClusterSize(p.rows, p.vocab);
    error = Launch(context, SampleKernel, dim3(p.rows * cluster), dim3(kSampleThreads), sizeof(SampleShared), cluster,
                   p, RowWorkspaceBytes(p.vocab));
  }
  return ToStatus(error, "sample");
}

}  // namespace agentserve::kernels::cuda
