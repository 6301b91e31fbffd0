// Direct epilogues of the tile GEMM: a warpgroup turns its 64 x kN accumulators into bf16 output before its next tile.
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

}  // namespace agentserve::kernels::cuda
