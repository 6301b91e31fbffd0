// Warpgroup matrix multiply (wgmma) on bf16 with fp32 accumulators: d[64][N] (+)= a[64][16] b[N][16]^T per instruction.
//
// Accumulator of one thread: warp w of the warpgroup and lane l hold rows 16 w + l / 4 (even pairs) and + 8 (odd
// pairs):
//   d[4 j + 0, 1] = row 16 w + l / 4,     columns 8 j + 2 (l % 4) + 0, 1
//   d[4 j + 2, 3] = row 16 w + l / 4 + 8, the same columns
// A from registers (RS) is a[4] of bf16 pairs with the same map: a[0] row l / 4, columns 2 (l % 4) + 0, 1; a[1] row +
// 8; a[2] columns + 8; a[3] both. So an accumulator becomes the A of the next product pair by pair, without shuffles.
//
// Use: WgmmaFence(); Wgmma<N>::SS(...) ...; WgmmaCommit(); ... WgmmaWait<pending groups>(). Between the fence and the
// wait nothing else touches the accumulators (or A registers).
#pragma once

#include <cstdint>

#include "kernels/tile/mbarrier.cuh"

namespace agentserve::kernels::cuda {

// Descriptors of operands in shared memory with the 128-byte swizzle, as TMA writes them (tile base 1024-byte aligned).
//
// K-major: rows of 64 k values (128 bytes), 8 rows per 1024-byte atom, atoms of successive rows adjacent. The next 16 k
// values are at + 32 bytes of the start address.
__device__ __forceinline__ uint64_t DescriptorKMajor(const void* tile) {
  constexpr uint64_t kLeading = 1, kStride = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t{(SharedAddress(tile) & 0x3ffff) >> 4} | kLeading << 16 | kStride << 32 | kSwizzle128 << 62;
}
// MN-major (transposed): rows are k, each of 64 contiguous m or n values (128 bytes); chunks of 64 values are
// `chunk_bytes` apart (k rows * 128 for a TMA box of 64 columns). The next 16 k values are at + 2048 bytes.
__device__ __forceinline__ uint64_t DescriptorMnMajor(const void* tile, uint32_t chunk_bytes) {
  constexpr uint64_t kStride = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t{(SharedAddress(tile) & 0x3ffff) >> 4} | uint64_t{chunk_bytes >> 4} << 16 | kStride << 32 |
         kSwizzle128 << 62;
}
// The descriptor `bytes` (a multiple of 16) further on.
__device__ __forceinline__ uint64_t DescriptorAdvance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving or copying the registers across this point.
template <int kCount>
__device__ __forceinline__ void KeepInRegisters(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

enum class BMajor : int { kK = 0, kMn = 1 };

// SS: both operands by descriptor (A K-major). RS: A in registers. `accumulate` false starts from zero.
template <int kN>
struct Wgmma;

// clang-format off
#define AGENTSERVE_ACC8(i)                                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define AGENTSERVE_ACC16(i) AGENTSERVE_ACC8(i), AGENTSERVE_ACC8(i + 8)
#define AGENTSERVE_ACC32(i) AGENTSERVE_ACC16(i), AGENTSERVE_ACC16(i + 16)
#define AGENTSERVE_ACC64(i) AGENTSERVE_ACC32(i), AGENTSERVE_ACC32(i + 32)

#define AGENTSERVE_REGS0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define AGENTSERVE_REGS16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AGENTSERVE_REGS32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define AGENTSERVE_REGS48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AGENTSERVE_REGS64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define AGENTSERVE_REGS80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define AGENTSERVE_REGS96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define AGENTSERVE_REGS112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define AGENTSERVE_PACK(...) __VA_ARGS__

// o0 .. o6: the operand numbers that follow the N / 2 accumulators.
#define AGENTSERVE_WGMMA(n, regs, accs, o0, o1, o2, o3, o4, o5, o6)                                                  \
  template <>                                                                                                       \
  struct Wgmma<n> {                                                                                                 \
    static constexpr int kAccumulators = n / 2;                                                                     \
    template <BMajor kB = BMajor::kK>                                                                               \
    static __device__ __forceinline__ void SS(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) {         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" regs "}, %" #o0 ", %" #o1           \
                   ", p, 1, 1, 0, %" #o3 ";\n}"                                                                     \
                   : accs                                                                                           \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)));                 \
    }                                                                                                               \
    template <BMajor kB = BMajor::kK>                                                                               \
    static __device__ __forceinline__ void RS(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b,                \
                                              bool accumulate) {                                                    \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" regs "}, {%" #o0 ", %" #o1 ", %" #o2 \
                   ", %" #o3 "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}"                                                   \
                   : accs                                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),         \
                     "n"(static_cast<int>(kB)));                                                                    \
    }                                                                                                               \
  };

AGENTSERVE_WGMMA(64, AGENTSERVE_REGS0 AGENTSERVE_REGS16,
                 AGENTSERVE_PACK(AGENTSERVE_ACC32(0)), 32, 33, 34, 35, 36, 37, 38)
AGENTSERVE_WGMMA(96, AGENTSERVE_REGS0 AGENTSERVE_REGS16 AGENTSERVE_REGS32,
                 AGENTSERVE_PACK(AGENTSERVE_ACC32(0), AGENTSERVE_ACC16(32)), 48, 49, 50, 51, 52, 53, 54)
AGENTSERVE_WGMMA(128, AGENTSERVE_REGS0 AGENTSERVE_REGS16 AGENTSERVE_REGS32 AGENTSERVE_REGS48,
                 AGENTSERVE_PACK(AGENTSERVE_ACC64(0)), 64, 65, 66, 67, 68, 69, 70)
AGENTSERVE_WGMMA(160, AGENTSERVE_REGS0 AGENTSERVE_REGS16 AGENTSERVE_REGS32 AGENTSERVE_REGS48 AGENTSERVE_REGS64,
                 AGENTSERVE_PACK(AGENTSERVE_ACC64(0), AGENTSERVE_ACC16(64)), 80, 81, 82, 83, 84, 85, 86)
AGENTSERVE_WGMMA(192, AGENTSERVE_REGS0 AGENTSERVE_REGS16 AGENTSERVE_REGS32 AGENTSERVE_REGS48 AGENTSERVE_REGS64 AGENTSERVE_REGS80,
                 AGENTSERVE_PACK(AGENTSERVE_ACC64(0), AGENTSERVE_ACC32(64)), 96, 97, 98, 99, 100, 101, 102)
AGENTSERVE_WGMMA(256, AGENTSERVE_REGS0 AGENTSERVE_REGS16 AGENTSERVE_REGS32 AGENTSERVE_REGS48 AGENTSERVE_REGS64 AGENTSERVE_REGS80 AGENTSERVE_REGS96 AGENTSERVE_REGS112,
                 AGENTSERVE_PACK(AGENTSERVE_ACC64(0), AGENTSERVE_ACC64(64)), 128, 129, 130, 131, 132, 133, 134)
#undef AGENTSERVE_ACC8
#undef AGENTSERVE_ACC16
#undef AGENTSERVE_ACC32
#undef AGENTSERVE_ACC64
#undef AGENTSERVE_REGS0
#undef AGENTSERVE_REGS16
#undef AGENTSERVE_REGS32
#undef AGENTSERVE_REGS48
#undef AGENTSERVE_REGS64
#undef AGENTSERVE_REGS80
#undef AGENTSERVE_REGS96
#undef AGENTSERVE_REGS112
#undef AGENTSERVE_PACK
#undef AGENTSERVE_WGMMA
// clang-format on

}  // namespace agentserve::kernels::cuda
