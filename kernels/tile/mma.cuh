// Warp-level tensor core product m16n8k16 in bf16 with fp32 accumulation, and ldmatrix that feeds it.
//
// With g = lane / 4 and t = lane % 4, a lane holds of
//   A (16 x 16, row-major): a0 = (g, 2t..2t+1), a1 = (g + 8, 2t..), a2 = (g, 2t + 8..), a3 = (g + 8, 2t + 8..)
//   B (16 x 8, k by n):     b0 = (k 2t..2t+1, n g), b1 = (k 2t + 8..2t + 9, n g)
//   C, D (16 x 8):          c0, c1 = (g, 2t), (g, 2t + 1); c2, c3 = (g + 8, 2t), (g + 8, 2t + 1)
// Two bf16 a register, the lower column (A) or k (B) in the low half. So two neighbouring C tiles (columns 0-7 and
// 8-15), rounded and packed, are one A fragment: {c0c1, c2c3} of the first, then of the second.
#pragma once

#include <cstdint>

#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

// c += a b.
__device__ __forceinline__ void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
// Result i of a lane: columns 2t, 2t + 1 of row g of matrix i.
//   A fragment of a row-major tile: matrices (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (8-15, 8-15).
//   B fragment of a tile stored [n][k]: matrices (n, k 0-7), (n, k 8-15); two n tiles a call.
__device__ __forceinline__ void LdMatrixX4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
// The same with each matrix transposed: result i is rows 2t, 2t + 1 of column g. B fragment of a tile stored [k][n]:
// matrices (k 0-7, n), (k 8-15, n).
__device__ __forceinline__ void LdMatrixX4Trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
// Two matrices; lanes 0-15 give the addresses.
__device__ __forceinline__ void LdMatrixX2(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void LdMatrixX2Trans(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile whose rows are 128 bytes: the chunk is XORed with the
// row modulo 8, so that ldmatrix (8 rows, one chunk) and row-wise writes are both free of bank conflicts. It is also
// the 128-byte swizzle of the tensor copy engine when the tile is 1024-byte aligned.
__device__ __forceinline__ uint32_t Swizzle128(uint32_t row, uint32_t chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

}  // namespace agentserve::kernels::cuda
