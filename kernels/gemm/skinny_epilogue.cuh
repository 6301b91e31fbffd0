// Epilogues of the few-rows kernels. One warp holds a finished tile as the C fragments of m16n8k16: with g = lane / 4
// and t = lane % 4, of token tile j: c0, c1 = weight row g of tokens 8 j + 2 t, 8 j + 2 t + 1; c2, c3 = row g + 8. The
// two groups of 8 weight rows are chosen so that every epilogue finds its partners in one lane: gate and up of a
// feature, the two halves of a RoPE pair.
#pragma once

#include "kernels/gemm/skinny_args.h"
#include "kernels/tile/reduce.cuh"
#include "kernels/tile/vec.cuh"

namespace agentserve::kernels::cuda {

// First weight rows of a tile's two groups of 8.
struct TileRows {
  int first;
  int second;
};

__device__ __forceinline__ TileRows RowsOfTile(const SkinnyOp& a, int tile) {
  const int row = tile * kSkinnyTileRows;
  if (a.p.epilogue == LinearEpilogue::kQkv) {
    const int head_dim = static_cast<int>(a.p.qkv.kv.head_dim);
    const int head = row / head_dim;
    if (head < a.rotated_heads) {
      const int first = head * head_dim + (row - head * head_dim) / 2;
      return {first, first + head_dim / 2};
    }
  }
  return {row, row + 8};
}

// The lane's two tokens of a token tile: where they stand and where their K and V go. Only read for kQkv.
struct TokenPlaces {
  int position[2];
  int slot[2];
};

// What the epilogue of one token tile reads besides the product, as raw bf16 bits: loaded early and not looked at
// before the end, so that the latency is hidden. Residual of C element i (a), or cosine (a) and sine (b) of the lane's
// pair for token i.
struct EpilogueInputs {
  uint16_t a[4];
  uint16_t b[2];
};

__device__ __forceinline__ uint16_t LoadBitsL2(const __nv_bfloat16* p) {
  uint16_t bits;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(bits) : "l"(p) : "memory");
  return bits;
}
__device__ __forceinline__ float BitsToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ __forceinline__ void LoadTokenPlaces(const SkinnyOp& a, int lane, int token_tile, TokenPlaces& places) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = 8 * token_tile + 2 * (lane % 4) + i;
    const bool read = a.p.epilogue == LinearEpilogue::kQkv && token < a.p.m;
    places.position[i] = read ? __ldcg(a.p.qkv.positions + token) : 0;
    places.slot[i] = read ? __ldcg(a.p.qkv.slots + token) : -1;
  }
}

__device__ __forceinline__ void LoadEpilogueInputs(const SkinnyOp& a, TileRows rows, int lane, int token_tile,
                                                   const TokenPlaces& places, EpilogueInputs& in) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = 8 * token_tile + 2 * t + i;
    in.a[i] = in.a[i + 2] = in.b[i] = 0;
    if (token >= a.p.m) continue;
    if (a.p.epilogue == LinearEpilogue::kResidual) {
      const __nv_bfloat16* residual = a.p.residual + static_cast<size_t>(token) * a.p.n;
      in.a[i] = LoadBitsL2(residual + rows.first + g);
      in.a[i + 2] = LoadBitsL2(residual + rows.second + g);
    } else if (a.p.epilogue == LinearEpilogue::kQkv) {
      const int half = static_cast<int>(a.p.qkv.kv.head_dim) / 2;
      if (rows.second - rows.first == half) {
        const size_t at = static_cast<size_t>(places.position[i]) * half + rows.first % half + g;
        in.a[i] = LoadBitsL2(a.p.qkv.cos + at);
        in.b[i] = LoadBitsL2(a.p.qkv.sin + at);
      }
    }
  }
}

// q, k and v of one token: rotated if the tile is of a q or k head, then to y or to the token's slot of the pool.
__device__ __forceinline__ void StoreQkv(const SkinnyOp& a, TileRows rows, int g, int token, float low, float high,
                                         float cosine, float sine, int slot) {
  const QkvOutput& out = a.p.qkv;
  const int head_dim = static_cast<int>(out.kv.head_dim);
  const int head = rows.first / head_dim;
  float first = RoundBf16(low), second = RoundBf16(high);
  if (head < a.rotated_heads) {
    const float x = first, y = second;
    first = RoundBf16(x * cosine) + RoundBf16(-y * sine);
    second = RoundBf16(y * cosine) + RoundBf16(x * sine);
  }
  const int at = rows.first - head * head_dim + g, step = rows.second - rows.first;
  __nv_bfloat16* row;
  if (head < out.q_heads) {
    row = a.p.y + static_cast<size_t>(token) * (out.q_heads * head_dim) + head * head_dim;
  } else {
    if (slot < 0) return;
    const int tokens = static_cast<int>(out.kv.block_tokens);
    const bool is_k = head < a.rotated_heads;
    const int kv_head = head - (is_k ? out.q_heads : a.rotated_heads);
    std::byte* block = out.kv.base + static_cast<size_t>(slot / tokens) * out.kv.block_bytes +
                       (is_k ? out.kv.k_offset : out.kv.v_offset) + kv_head * out.kv.head_bytes;
    row = reinterpret_cast<__nv_bfloat16*>(block) + (slot % tokens) * head_dim;
  }
  row[at] = __float2bfloat16_rn(first);
  row[at + step] = __float2bfloat16_rn(second);
}

__device__ __forceinline__ float SiluBf16(float gate) { return RoundBf16(gate / (1.0f + expf(-gate))); }

// Rounds and stores one finished token tile; keeps the best logit of each token if asked to.
__device__ __forceinline__ void FinishTokenTile(const SkinnyOp& a, TileRows rows, int lane, int token_tile,
                                                const float (&c)[4], const TokenPlaces& places,
                                                const EpilogueInputs& in, bool keep_best, Best (&best)[2]) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = 8 * token_tile + 2 * t + i;
    if (token >= a.p.m) continue;
    const float low = RoundBf16(c[i]), high = RoundBf16(c[i + 2]);
    if (a.p.epilogue == LinearEpilogue::kQkv) {
      StoreQkv(a, rows, g, token, low, high, BitsToFloat(in.a[i]), BitsToFloat(in.b[i]), places.slot[i]);
    } else if (a.p.epilogue == LinearEpilogue::kSwiglu) {
      a.p.y[static_cast<size_t>(token) * (a.p.n / 2) + rows.first / 2 + g] = __float2bfloat16_rn(SiluBf16(low) * high);
    } else {
      if (a.p.y != nullptr) {
        __nv_bfloat16* y = a.p.y + static_cast<size_t>(token) * a.p.n + g;
        y[rows.first] = __float2bfloat16_rn(low + BitsToFloat(in.a[i]));  // without a residual the sum is exact
        y[rows.second] = __float2bfloat16_rn(high + BitsToFloat(in.a[i + 2]));
      }
      if (keep_best) {
        best[i] = BestOp()(best[i], Best{low, rows.first + g});
        best[i] = BestOp()(best[i], Best{high, rows.second + g});
      }
    }
  }
}

}  // namespace agentserve::kernels::cuda
