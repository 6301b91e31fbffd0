// Epilogues of the tile GEMM: one warpgroup turns its 64 x kN accumulators into bf16 output.
//
// Output leaves in chunks of 64 x 64 (8 KB with the 128-byte swizzle) that pass through a small ring of shared buffers;
// thread 0 of the warpgroup issues the TMA copies. Warp w only ever touches rows 16 w .. 16 w + 15 of a buffer.
#pragma once

#include "kernels/gemm/epilogue.cuh"
#include "kernels/gemm/tile_args.h"
#include "kernels/tile/tma.cuh"
#include "kernels/tile/wgmma.cuh"

namespace agentserve::kernels::cuda {

inline constexpr int kChunkColumns = 64;
inline constexpr int kChunkBytes = 64 * kChunkColumns * 2;

// 8 x 8 matrices of 16-bit values between the accumulator's thread map and rows of 16 bytes in shared memory: lane l
// gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void StoreMatrices(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void LoadMatrices(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// One warpgroup's view of its output buffers, and where its accumulators lie in y.
template <int kBuffers>
struct OutputRing {
  uint8_t* buffers;   // kBuffers * kChunkBytes, 1024-byte aligned
  uint64_t* arrived;  // [kBuffers] residual chunks
  int barrier_id;     // hardware barrier of the 128 threads
  int row0, column0;  // of the accumulators, in x rows and w rows
  uint32_t next = 0;  // chunks so far, over all tiles
  __device__ bool Issuer() const { return threadIdx.x % 128 == 0; }
  __device__ void Sync() const { NamedBarrierSync(barrier_id, 128); }
  __device__ uint8_t* Buffer(uint32_t chunk) const { return buffers + chunk % kBuffers * kChunkBytes; }
  // Address that this lane gives for groups of 8 columns g and g + 1 (g even, 0..6) of its warp's 16 rows.
  __device__ uint32_t LaneAddress(uint32_t chunk, int g) const {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    return SharedAddress(Buffer(chunk)) + row * 128 + (((g + lane / 16) ^ (row & 7)) << 4);
  }
  // All but the last kPending committed chunk groups have been read out of their buffers.
  template <int kPending>
  __device__ void WaitFree() const {
    if (Issuer()) TmaStoreWaitRead<kPending>();
    Sync();
  }
  // Every thread has written its part of `count` chunks from `next`: send them to columns from `column` of y.
  __device__ void Send(const CUtensorMap* y, int column, int count) const {
    FenceProxyAsyncShared();
    Sync();
    if (!Issuer()) return;
    for (int i = 0; i < count; ++i) TmaStore2d(y, Buffer(next + i), column + i * kChunkColumns, row0);
    TmaStoreCommit();
  }
};

// kNone.
template <int kN, int kBuffers>
__device__ __forceinline__ void StorePlain(const TileArgs& args, float (&d)[kN / 2], OutputRing<kBuffers>& ring) {
#pragma unroll
  for (int c = 0; c < kN / kChunkColumns; ++c, ++ring.next) {
    ring.template WaitFree<kBuffers - 1>();
#pragma unroll
    for (int g = 0; g < 8; g += 2) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = PackBf16(d[c * 32 + g * 4 + 2 * i], d[c * 32 + g * 4 + 2 * i + 1]);
      StoreMatrices(ring.LaneAddress(ring.next, g), r);
    }
    ring.Send(&args.y, ring.column0 + c * kChunkColumns, 1);
  }
}

// Starts the copy of residual chunk c of this tile into the buffer where the chunk will be formed.
template <int kBuffers>
__device__ __forceinline__ void FetchResidual(const TileArgs& args, const OutputRing<kBuffers>& ring, int c) {
  uint64_t* arrived = ring.arrived + (ring.next + c) % kBuffers;
  MbarrierArriveExpect(arrived, kChunkBytes);
  TmaLoad2d(ring.Buffer(ring.next + c), &args.residual, arrived, ring.column0 + c * kChunkColumns, ring.row0);
}

// kResidual; the first kBuffers chunks (or all, if fewer) have been fetched. Two roundings: product, then sum.
template <int kN, int kBuffers>
__device__ __forceinline__ void StoreResidual(const TileArgs& args, float (&d)[kN / 2], OutputRing<kBuffers>& ring) {
  constexpr int kChunks = kN / kChunkColumns;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const uint32_t chunk = ring.next + c;
    MbarrierWait(ring.arrived + chunk % kBuffers, chunk / kBuffers & 1);
#pragma unroll
    for (int g = 0; g < 8; g += 2) {
      uint32_t r[4];
      const uint32_t address = ring.LaneAddress(chunk, g);
      LoadMatrices(address, r);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 residual = UnpackBf16(r[i]);
        const float* p = &d[c * 32 + g * 4 + 2 * i];
        r[i] = PackBf16(RoundBf16(p[0]) + residual.x, RoundBf16(p[1]) + residual.y);
      }
      StoreMatrices(address, r);
    }
    FenceProxyAsyncShared();
    ring.Sync();
    if (ring.Issuer()) {
      TmaStore2d(&args.y, ring.Buffer(chunk), ring.column0 + c * kChunkColumns, ring.row0);
      TmaStoreCommit();
      if (c + kBuffers < kChunks) {
        TmaStoreWaitRead<0>();
        FetchResidual(args, ring, c + kBuffers);
      }
    }
  }
  ring.next += kChunks;
}

// kSwiglu: groups of 8 columns alternate gate and up, so that both halves of a feature are in one thread.
template <int kN, int kBuffers>
__device__ __forceinline__ void StoreSwiglu(const TileArgs& args, float (&d)[kN / 2], OutputRing<kBuffers>& ring) {
  static_assert(kN % (2 * kChunkColumns) == 0);
#pragma unroll
  for (int c = 0; c < kN / (2 * kChunkColumns); ++c, ++ring.next) {
    ring.template WaitFree<kBuffers - 1>();
#pragma unroll
    for (int g = 0; g < 8; g += 2) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* gate = &d[c * 64 + (g + i / 2) * 8 + i % 2 * 2];
        const float* up = gate + 4;
        r[i] = PackBf16(SwigluProduct(RoundBf16(gate[0]), RoundBf16(up[0])),
                        SwigluProduct(RoundBf16(gate[1]), RoundBf16(up[1])));
      }
      StoreMatrices(ring.LaneAddress(ring.next, g), r);
    }
    ring.Send(&args.y, ring.column0 / 2 + c * kChunkColumns, 1);
  }
}

// cos and sin of this thread's two rows (l / 4 and + 8) and its columns of groups 0 .. kDim / 16 - 1, as bf16 pairs.
template <int kDim>
struct Angles {
  uint32_t cos[2][kDim / 16], sin[2][kDim / 16];
  __device__ __forceinline__ void Load(const TileArgs& args, int row0) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + threadIdx.x % 128 / 32 * 16 + lane / 4 + half * 8;
      const size_t position = row < args.m ? args.qkv.positions[row] : 0;
      const size_t from = position * (kDim / 2) + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) {
        cos[half][j] = *reinterpret_cast<const uint32_t*>(args.qkv.cos + from + 8 * j);
        sin[half][j] = *reinterpret_cast<const uint32_t*>(args.qkv.sin + from + 8 * j);
      }
    }
  }
};

// Copies this warp's 16 rows of `count` chunks (the row of one head) to the pool; slots of -1 and rows past m are left
// out.
template <int kBuffers>
__device__ __forceinline__ void WriteKv(const TileArgs& args, const OutputRing<kBuffers>& ring, size_t offset, int head,
                                        int count) {
  __syncwarp();
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x % 128 / 32 * 16, part = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = warp_row + i * 4 + lane / 8;
    const int slot = ring.row0 + row < args.m ? args.qkv.slots[ring.row0 + row] : -1;
    if (slot < 0) continue;
    __nv_bfloat16* to = KvRow(args.qkv.kv, slot, offset, head) + part * 8;
    for (int c = 0; c < count; ++c) {
      const uint8_t* from = ring.Buffer(ring.next + c) + row * 128 + ((part ^ (row & 7)) << 4);
      *reinterpret_cast<uint4*>(to + c * kChunkColumns) = *reinterpret_cast<const uint4*>(from);
    }
  }
}

// Rounds one head to bf16, rotates it if asked to, and writes it to the buffers from ring.next.
template <int kDim, int kBuffers>
__device__ __forceinline__ void FormHead(const float* d, const Angles<kDim>& angles, bool rotate,
                                         const OutputRing<kBuffers>& ring) {
  constexpr int kHalf = kDim / 16;  // groups of 8 columns in half a head
#pragma unroll
  for (int j = 0; j < kHalf; j += 2) {
    uint32_t low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int g = j + i / 2;
      const float* a = d + g * 4 + i % 2 * 2;
      const float* b = a + kHalf * 4;
      float2 first = make_float2(RoundBf16(a[0]), RoundBf16(b[0]));
      float2 second = make_float2(RoundBf16(a[1]), RoundBf16(b[1]));
      if (rotate) {
        const float2 cos = UnpackBf16(angles.cos[i % 2][g]), sin = UnpackBf16(angles.sin[i % 2][g]);
        first = Rotate(first.x, first.y, cos.x, sin.x);
        second = Rotate(second.x, second.y, cos.y, sin.y);
      }
      low[i] = PackBf16(first.x, second.x);
      high[i] = PackBf16(first.y, second.y);
    }
    StoreMatrices(ring.LaneAddress(ring.next, j), low);
    StoreMatrices(ring.LaneAddress(ring.next + (j + kHalf) / 8, (j + kHalf) % 8), high);
  }
}

// kQkv: whole heads per warpgroup; q goes to y, k and v row by row to the paged pool.
template <int kN, int kDim, int kBuffers>
__device__ __forceinline__ void StoreQkv(const TileArgs& args, float (&d)[kN / 2], const Angles<kDim>& angles,
                                         OutputRing<kBuffers>& ring) {
  constexpr int kChunks = kDim / kChunkColumns;
  static_assert(kN % kDim == 0 && kBuffers % kChunks == 0);
  const int q_heads = args.qkv.q_heads, kv_heads = static_cast<int>(args.qkv.kv.kv_heads);
#pragma unroll
  for (int h = 0; h < kN / kDim; ++h, ring.next += kChunks) {
    const int head = ring.column0 / kDim + h;
    ring.template WaitFree<kBuffers / kChunks - 1>();
    FormHead<kDim>(&d[h * kDim / 2], angles, head < q_heads + kv_heads, ring);
    if (head < q_heads) {
      ring.Send(&args.y, head * kDim, kChunks);
      continue;
    }
    if (head < q_heads + kv_heads) {
      WriteKv(args, ring, args.qkv.kv.k_offset, head - q_heads, kChunks);
    } else if (head < q_heads + 2 * kv_heads) {
      WriteKv(args, ring, args.qkv.kv.v_offset, head - q_heads - kv_heads, kChunks);
    }
    if (ring.Issuer()) TmaStoreCommit();  // an empty group: one group per head
  }
}

}  // namespace agentserve::kernels::cuda
