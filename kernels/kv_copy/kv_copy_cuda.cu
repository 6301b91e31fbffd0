#include <string>

#include "kernels/cuda/pdl.cuh"
#include "kernels/kv_copy/kv_copy_cuda.h"
#include "kernels/kv_copy/kv_digest.h"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {
namespace {

// A link's latency is about 2 us: 64 KiB in flight from one SM are more than its share of 371 GB/s over 32 SMs needs.
constexpr int kThreads = 512, kWarps = kThreads / 32, kVectors = 8;
constexpr uint32_t kUnit = 32 * kVectors;  // vectors that a warp takes at a time, of one block

__device__ __forceinline__ uint64_t WarpSum64(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Which vectors of a block count.
struct Rows {
  uint32_t valid, piece;  // vectors of a piece: of the valid rows, all
  __device__ __forceinline__ bool Count(uint32_t at) const { return valid == piece || at % piece < valid; }
};

// Adds the digest terms of this lane's vectors, which are 32 apart from `at` on.
__device__ __forceinline__ uint64_t MixUnit(const uint4 (&data)[kVectors], uint32_t at, uint32_t end,
                                            const Rows& rows) {
  uint64_t sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i, at += 32) {
    const uint64_t index = static_cast<uint64_t>(at) + 1;
    const uint64_t a = (static_cast<uint64_t>(data[i].y) << 32 | data[i].x) ^ (index * kKvDigestKeyA);
    const uint64_t b = (static_cast<uint64_t>(data[i].w) << 32 | data[i].z) ^ (index * kKvDigestKeyB);
    if (at < end && rows.Count(at)) sum += (a * b) ^ __umul64hi(a, b);
  }
  return sum;
}

// The last block of the grid to come here moves the sums out, zeroes what the next launch needs zeroed, and tells. One
// thread fences for its block: what the others wrote before the barrier is covered by its fence.
__device__ __forceinline__ void Arrive(const KvGatherParams& p) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(p.done.arrived, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  if (p.sums.out != nullptr) {
    for (int n = threadIdx.x; n < p.count; n += kThreads) {
      p.sums.out[n] = atomicExch(reinterpret_cast<unsigned long long*>(p.sums.sums + n), 0ull);
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  *p.done.arrived = 0;
  if (p.done.word != nullptr) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p.done.word), "r"(p.done.ticket) : "memory");
  }
}

// The pieces of all blocks form one range of units, of which every warp takes an equal share of neighbours;
// neighbouring shares are on different SMs, so that few units are spread over all of them.
template <bool kCopy, bool kSum>
__global__ __launch_bounds__(kThreads) void WalkKernel(const KvGatherParams p) {
  PdlWait();
  PdlTrigger();
  const uint32_t begin = static_cast<uint32_t>(p.offset / 16), end = begin + static_cast<uint32_t>(p.bytes / 16);
  const uint32_t units = (end - begin + kUnit - 1) / kUnit;  // of a block
  const uint64_t all = static_cast<uint64_t>(p.count) * units;
  const uint32_t warp = threadIdx.x / 32 * gridDim.x + blockIdx.x, warps = kWarps * gridDim.x, lane = threadIdx.x % 32;
  const uint32_t last = static_cast<uint32_t>(all * (warp + 1) / warps);
  uint64_t sum = 0;
  for (uint32_t unit = static_cast<uint32_t>(all * warp / warps); unit < last; ++unit) {
    const uint32_t n = unit / units, at = begin + unit % units * kUnit + lane;
    const KvMove move = p.blocks[n];
    const std::byte* from = p.src + static_cast<size_t>(move.from) * p.block_bytes;
    uint4 data[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (at + i * 32 < end) data[i] = LoadStreamCoherent16(from + static_cast<size_t>(at + i * 32) * 16);
    }
    if constexpr (kCopy) {
      std::byte* to = p.dst + static_cast<size_t>(move.to) * p.block_bytes;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (at + i * 32 < end) Store16(to + static_cast<size_t>(at + i * 32) * 16, data[i]);
      }
    }
    if constexpr (kSum) {
      const Rows rows = {move.tokens * static_cast<uint32_t>(p.sums.row_bytes / 16),
                         static_cast<uint32_t>(p.sums.piece_bytes / 16)};
      sum += MixUnit(data, at, end, rows);
      if (unit + 1 == last || (unit + 1) / units != n) {  // the last of this block in this share
        const uint64_t whole = WarpSum64(sum);
        if (lane == 0) atomicAdd(reinterpret_cast<unsigned long long*>(p.sums.sums + n), whole);
        sum = 0;
      }
    }
  }
  if (p.done.arrived != nullptr) Arrive(p);
}

// A block takes every gridDim-th piece.
__global__ __launch_bounds__(kThreads) void PiecesKernel(const KvCopyPiecesParams p) {
  __shared__ KvPiece next;
  PdlWait();
  PdlTrigger();
  for (int n = blockIdx.x; n < p.count; n += gridDim.x) {
    if (threadIdx.x == 0) next = p.pieces[n];
    __syncthreads();
    const KvPiece piece = next;
    const uint32_t end = piece.bytes / 16;
    for (uint32_t first = threadIdx.x; first < end; first += kThreads * kVectors) {
      uint4 data[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const uint32_t at = first + i * kThreads;
        if (at < end) data[i] = LoadStreamCoherent16(piece.from + static_cast<size_t>(at) * 16);
      }
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const uint32_t at = first + i * kThreads;
        if (at < end) Store16(piece.to + static_cast<size_t>(at) * 16, data[i]);
      }
    }
    __syncthreads();
  }
}

absl::Status Check(const KvGatherParams& p, const char* what) {
  const KvSumsTarget& s = p.sums;
  bool ok = p.count >= 0 && p.sms > 0 && p.offset % 16 == 0 && p.bytes % 16 == 0 && p.block_bytes % 16 == 0 &&
            p.offset + p.bytes <= p.block_bytes && p.block_bytes / 16 <= 0x7fffffff &&
            static_cast<uint64_t>(p.count) * ((p.bytes / 16 + kUnit - 1) / kUnit) <= 0xffffffffu;
  if (s.sums != nullptr) {
    ok = ok && s.row_bytes != 0 && s.row_bytes % 16 == 0 && s.piece_bytes != 0 && s.piece_bytes % s.row_bytes == 0 &&
         p.block_bytes % s.piece_bytes == 0 && p.offset % s.piece_bytes == 0 && p.bytes % s.piece_bytes == 0;
  }
  ok = ok && (p.done.arrived != nullptr || (s.out == nullptr && p.done.word == nullptr));
  if (ok) return absl::OkStatus();
  return absl::InvalidArgumentError(std::string(what) + ": " + std::to_string(p.bytes) + " bytes at " +
                                    std::to_string(p.offset) + " of blocks of " + std::to_string(p.block_bytes) +
                                    ", rows of " + std::to_string(s.row_bytes) + " in pieces of " +
                                    std::to_string(s.piece_bytes));
}

}  // namespace

absl::Status KvGather(const KvGatherParams& p, const LaunchContext& context) {
  if (absl::Status s = Check(p, "KvGather"); !s.ok()) return s;
  const auto kernel = p.sums.sums != nullptr ? WalkKernel<true, true> : WalkKernel<true, false>;
  return ToStatus(Launch(context, kernel, dim3(p.sms), dim3(kThreads), 0, 1, p), "kv gather");
}

absl::Status KvSums(const KvGatherParams& p, const LaunchContext& context) {
  if (absl::Status s = Check(p, "KvSums"); !s.ok()) return s;
  if (p.sums.sums == nullptr) return absl::InvalidArgumentError("KvSums: no place for the sums");
  return ToStatus(Launch(context, WalkKernel<false, true>, dim3(p.sms), dim3(kThreads), 0, 1, p), "kv sums");
}

absl::Status KvCopyPieces(const KvCopyPiecesParams& p, const LaunchContext& context) {
  if (p.count == 0) return absl::OkStatus();
  if (p.count < 0 || p.sms <= 0)
    return absl::InvalidArgumentError("KvCopyPieces: " + std::to_string(p.count) + " pieces");
  return ToStatus(Launch(context, PiecesKernel, dim3(p.count < p.sms ? p.count : p.sms), dim3(kThreads), 0, 1, p),
                  "kv pieces");
}

}  // namespace agentserve::kernels::cuda
