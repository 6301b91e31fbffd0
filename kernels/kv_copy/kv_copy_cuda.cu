#include <cooperative_groups.h>

#include <string>

#include "kernels/cuda/pdl.cuh"
#include "kernels/kv_copy/kv_copy_cuda.h"
#include "kernels/kv_copy/kv_digest.h"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

namespace cg = cooperative_groups;

// A link's latency is about 2 us: 64 KiB in flight from one SM are more than its share of 371 GB/s over 32 SMs needs.
constexpr int kGatherThreads = 512, kGatherVectors = 8;

// All pieces in a row form one range of vectors, of which every block takes an equal share.
__global__ __launch_bounds__(kGatherThreads) void GatherKernel(const KvGatherParams p) {
  PdlWait();
  PdlTrigger();
  const uint32_t piece_vectors = static_cast<uint32_t>(p.bytes / 16);
  const uint64_t all = static_cast<uint64_t>(p.count) * piece_vectors;
  const uint64_t warps = (all + 31) / 32, share = (warps + gridDim.x - 1) / gridDim.x * 32;
  const uint64_t end = min(all, (blockIdx.x + 1) * share);
  for (uint64_t base = blockIdx.x * share; base < end; base += kGatherThreads * kGatherVectors) {
    uint64_t first = base + threadIdx.x;
    uint32_t block = static_cast<uint32_t>(first / piece_vectors), at = static_cast<uint32_t>(first % piece_vectors);
    const std::byte* from[kGatherVectors];
    std::byte* to[kGatherVectors];
#pragma unroll
    for (int i = 0; i < kGatherVectors; ++i, first += kGatherThreads) {
      to[i] = nullptr;
      if (first < end) {
        const size_t inside = p.offset + static_cast<size_t>(at) * 16;
        from[i] = p.src + p.src_blocks[block] * p.block_bytes + inside;
        to[i] = p.dst + p.dst_blocks[block] * p.block_bytes + inside;
      }
      for (at += kGatherThreads; at >= piece_vectors; at -= piece_vectors) ++block;
    }
    uint4 data[kGatherVectors];
#pragma unroll
    for (int i = 0; i < kGatherVectors; ++i) {
      if (to[i] != nullptr) data[i] = LoadStreamCoherent16(from[i]);
    }
#pragma unroll
    for (int i = 0; i < kGatherVectors; ++i) {
      if (to[i] != nullptr) Store16(to[i], data[i]);
    }
  }
}

constexpr int kDigestThreads = 512, kDigestVectors = 8;
constexpr int kDigestCluster = 8;  // blocks that share one KV block where there are few
constexpr int kManyDigests = 256;

__device__ __forceinline__ uint64_t MixVector(uint4 v, uint64_t index) {
  const uint64_t i = index + 1;
  const uint64_t a = (static_cast<uint64_t>(v.y) << 32 | v.x) ^ (i * kKvDigestKeyA);
  const uint64_t b = (static_cast<uint64_t>(v.w) << 32 | v.z) ^ (i * kKvDigestKeyB);
  return (a * b) ^ __umul64hi(a, b);
}

__device__ __forceinline__ uint64_t WarpSum64(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Sum over this block's share of the valid vectors of a KV block.
__device__ __forceinline__ uint64_t SumShare(const KvDigestParams& p, uint32_t block, uint32_t tokens, uint32_t rank,
                                             uint32_t ranks) {
  const std::byte* base = p.pool + static_cast<size_t>(block) * p.block_bytes;
  const uint32_t piece = static_cast<uint32_t>(p.piece_bytes / 16);
  const uint32_t valid = tokens * static_cast<uint32_t>(p.row_bytes / 16);
  const uint32_t all = valid * static_cast<uint32_t>(p.block_bytes / p.piece_bytes);
  const uint32_t stride = ranks * kDigestThreads;
  uint64_t sum = 0;
  for (uint32_t from = rank * kDigestThreads + threadIdx.x; from < all; from += stride * kDigestVectors) {
    uint4 data[kDigestVectors];
    uint32_t at[kDigestVectors];
#pragma unroll
    for (int i = 0; i < kDigestVectors; ++i) {
      const uint32_t n = from + i * stride;
      at[i] = valid == piece ? n : n / valid * piece + n % valid;
      if (n < all) data[i] = LoadStreamCoherent16(base + static_cast<size_t>(at[i]) * 16);
    }
#pragma unroll
    for (int i = 0; i < kDigestVectors; ++i) {
      if (from + i * stride < all) sum += MixVector(data[i], at[i]);
    }
  }
  return sum;
}

// A cluster per KV block; sums of integers are the same in every order.
__global__ __launch_bounds__(kDigestThreads) void DigestKernel(const KvDigestParams p) {
  __shared__ uint64_t warp_sums[kDigestThreads / 32];
  __shared__ uint64_t block_sum;
  const cg::cluster_group cluster = cg::this_cluster();
  PdlWait();
  PdlTrigger();
  const uint32_t ranks = cluster.num_blocks(), rank = cluster.block_rank(), n = blockIdx.x / ranks;
  const uint32_t tokens = p.tokens[n];
  const uint64_t mine = WarpSum64(SumShare(p, p.blocks[n], tokens, rank, ranks));
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x < 32) {
    const uint64_t sum = WarpSum64(threadIdx.x < kDigestThreads / 32 ? warp_sums[threadIdx.x] : 0);
    if (threadIdx.x == 0) block_sum = sum;
  }
  cluster.sync();
  if (rank == 0 && threadIdx.x == 0) {
    uint64_t sum = 0;
    for (uint32_t r = 0; r < ranks; ++r) sum += *cluster.map_shared_rank(&block_sum, r);
    uint64_t z = sum ^ ((static_cast<uint64_t>(tokens) + 1) * kKvDigestKeyTokens);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    p.digests[n] = z == 0 ? 1 : z;
  }
  cluster.sync();
}

}  // namespace

absl::Status KvGather(const KvGatherParams& p, const LaunchContext& context) {
  if (p.count == 0 || p.bytes == 0) return absl::OkStatus();
  if (p.count < 0 || p.sms <= 0 || p.offset % 16 != 0 || p.bytes % 16 != 0 || p.block_bytes % 16 != 0 ||
      p.offset + p.bytes > p.block_bytes || p.bytes / 16 > 0x7fffffff) {
    return absl::InvalidArgumentError("KvGather: " + std::to_string(p.bytes) + " bytes at " + std::to_string(p.offset) +
                                      " of blocks of " + std::to_string(p.block_bytes));
  }
  return ToStatus(Launch(context, GatherKernel, dim3(p.sms), dim3(kGatherThreads), 0, 1, p), "kv gather");
}

absl::Status KvDigest(const KvDigestParams& p, const LaunchContext& context) {
  if (p.count == 0) return absl::OkStatus();
  if (p.count < 0 || p.row_bytes == 0 || p.row_bytes % 16 != 0 || p.piece_bytes % p.row_bytes != 0 ||
      p.piece_bytes == 0 || p.block_bytes % p.piece_bytes != 0 || p.block_bytes / 16 > 0x7fffffff) {
    return absl::InvalidArgumentError("KvDigest: rows of " + std::to_string(p.row_bytes) + " bytes in pieces of " +
                                      std::to_string(p.piece_bytes) + " in blocks of " + std::to_string(p.block_bytes));
  }
  const int cluster = p.count < kManyDigests ? kDigestCluster : 1;
  return ToStatus(Launch(context, DigestKernel, dim3(p.count * cluster), dim3(kDigestThreads), 0, cluster, p),
                  "kv digest");
}

}  // namespace agentserve::kernels::cuda
