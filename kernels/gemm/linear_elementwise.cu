#include "kernels/cuda/pdl.cuh"
#include "kernels/gemm/epilogue.cuh"
#include "kernels/gemm/linear_elementwise.h"
#include "kernels/tile/reduce.cuh"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Applies f to the eight pairs of bf16 values in two vectors.
template <typename F>
__device__ __forceinline__ uint4 Combine(uint4 a, uint4 b, F f) {
  const uint32_t* pa = &a.x;
  const uint32_t* pb = &b.x;
  uint4 out;
  uint32_t* po = &out.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 va = UnpackBf16(pa[i]), vb = UnpackBf16(pb[i]);
    po[i] = PackBf16(f(va.x, vb.x), f(va.y, vb.y));
  }
  return out;
}

__global__ void ResidualKernel(const __nv_bfloat16* product, const __nv_bfloat16* residual, __nv_bfloat16* y,
                               size_t vectors) {
  PdlTrigger();
  PdlWait();
  const size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= vectors) return;
  Store16(y + i * 8,
          Combine(Load16(product + i * 8), Load16(residual + i * 8), [](float p, float r) { return p + r; }));
}

// One vector of 8 features per thread: gate at 16 j, up at 16 j + 8.
__global__ void SwigluKernel(const __nv_bfloat16* product, __nv_bfloat16* y, size_t vectors) {
  PdlTrigger();
  PdlWait();
  const size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= vectors) return;
  Store16(y + i * 8, Combine(Load16(product + i * 16), Load16(product + i * 16 + 8),
                             [](float gate, float up) { return SwigluProduct(gate, up); }));
}

// One block per row: q and k heads are rotated 8 pairs at a time, v is copied.
__global__ void QkvKernel(const __nv_bfloat16* product, QkvOutput qkv, __nv_bfloat16* y, int n) {
  PdlTrigger();
  PdlWait();
  const int row = blockIdx.x, dim = qkv.kv.head_dim, half = dim / 2, kv_heads = qkv.kv.kv_heads;
  const int slot = qkv.slots[row];
  const size_t position = qkv.positions[row];
  const __nv_bfloat16* from = product + size_t(row) * n;
  const int chunks = half / 8, rotated = (qkv.q_heads + kv_heads) * chunks;
  for (int i = threadIdx.x; i < rotated + kv_heads * 2 * chunks; i += kThreads) {
    if (i < rotated) {
      const int head = i / chunks, c = i % chunks * 8;
      const bool is_q = head < qkv.q_heads;
      if (!is_q && slot < 0) continue;
      const uint4 low = Load16(from + head * dim + c), high = Load16(from + head * dim + half + c);
      const uint4 cos = Load16(qkv.cos + position * half + c), sin = Load16(qkv.sin + position * half + c);
      uint4 out_low, out_high;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 l = UnpackBf16((&low.x)[e]), h = UnpackBf16((&high.x)[e]);
        const float2 co = UnpackBf16((&cos.x)[e]), si = UnpackBf16((&sin.x)[e]);
        const float2 a = Rotate(l.x, h.x, co.x, si.x), b = Rotate(l.y, h.y, co.y, si.y);
        (&out_low.x)[e] = PackBf16(a.x, b.x);
        (&out_high.x)[e] = PackBf16(a.y, b.y);
      }
      __nv_bfloat16* to = is_q ? y + size_t(row) * qkv.q_heads * dim + head * dim
                               : KvRow(qkv.kv, slot, qkv.kv.k_offset, head - qkv.q_heads);
      Store16(to + c, out_low);
      Store16(to + half + c, out_high);
    } else if (slot >= 0) {
      const int v = i - rotated, head = v / (2 * chunks), c = v % (2 * chunks) * 8;
      Store16(KvRow(qkv.kv, slot, qkv.kv.v_offset, head) + c, Load16(from + (qkv.q_heads + kv_heads + head) * dim + c));
    }
  }
}

constexpr int kArgmaxThreads = 1024;
constexpr int kArgmaxLoads = 4;  // in flight per thread

// The best of a block's threads is its row's choice.
__device__ __forceinline__ void Choose(Best mine, int n, Best* partial, int32_t* token, __nv_bfloat16* best) {
  mine = LaneBest(mine);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) mine = BestOp()(mine, partial[i]);
  if (token != nullptr) token[blockIdx.x] = mine.index < n ? mine.index : 0;
  if (best != nullptr) best[blockIdx.x] = __float2bfloat16_rn(mine.value);
}

// One block per row.
__global__ void __launch_bounds__(kArgmaxThreads)
    ArgmaxKernel(const __nv_bfloat16* logits, int n, int32_t* token, __nv_bfloat16* best) {
  PdlTrigger();
  PdlWait();
  __shared__ Best partial[kArgmaxThreads / 32];
  const __nv_bfloat16* row = logits + size_t{blockIdx.x} * n;
  Best mine{-INFINITY, 0x7fffffff};
  constexpr int kStep = kArgmaxThreads * 8;
  for (int first = static_cast<int>(threadIdx.x) * 8; first < n; first += kStep * kArgmaxLoads) {
    uint4 eight[kArgmaxLoads];
#pragma unroll
    for (int u = 0; u < kArgmaxLoads; ++u) eight[u] = Load16(row + min(first + u * kStep, n - 8));
#pragma unroll
    for (int u = 0; u < kArgmaxLoads; ++u) {
      const int at = min(first + u * kStep, n - 8);  // the last vector again changes nothing
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 pair = UnpackBf16((&eight[u].x)[e]);
        mine = BestOp()(mine, {pair.x, at + 2 * e});
        mine = BestOp()(mine, {pair.y, at + 2 * e + 1});
      }
    }
  }
  Choose(mine, n, partial, token, best);
}

// The same over strips whose best is known.
__global__ void __launch_bounds__(kArgmaxThreads)
    ArgmaxStripsKernel(const Best* strips, int slots, int n, int32_t* token, __nv_bfloat16* best) {
  PdlTrigger();
  PdlWait();
  __shared__ Best partial[kArgmaxThreads / 32];
  Best mine{-INFINITY, 0x7fffffff};
  for (int i = static_cast<int>(threadIdx.x); i < slots; i += static_cast<int>(blockDim.x)) {
    mine = BestOp()(mine, strips[size_t{blockIdx.x} * slots + i]);
  }
  Choose(mine, n, partial, token, best);
}

dim3 Blocks(size_t vectors) { return dim3(static_cast<unsigned>((vectors + kThreads - 1) / kThreads)); }

}  // namespace

absl::Status ApplyEpilogue(const LinearParams& params, const __nv_bfloat16* product, int first_row, int rows,
                           const LaunchContext& context) {
  const size_t first = static_cast<size_t>(first_row), n = static_cast<size_t>(params.n);
  switch (params.epilogue) {
    case LinearEpilogue::kNone:
      return absl::InternalError("no epilogue to apply");
    case LinearEpilogue::kResidual: {
      const size_t vectors = static_cast<size_t>(rows) * n / 8;
      return ToStatus(Launch(context, ResidualKernel, Blocks(vectors), dim3(kThreads), 0, 1, product,
                             params.residual + first * n, params.y + first * n, vectors),
                      "residual");
    }
    case LinearEpilogue::kSwiglu: {
      const size_t vectors = static_cast<size_t>(rows) * n / 16;
      return ToStatus(Launch(context, SwigluKernel, Blocks(vectors), dim3(kThreads), 0, 1, product,
                             params.y + first * n / 2, vectors),
                      "swiglu");
    }
    case LinearEpilogue::kQkv: {
      QkvOutput qkv = params.qkv;
      qkv.positions += first;
      qkv.slots += first;
      __nv_bfloat16* q = params.y + first * static_cast<size_t>(qkv.q_heads) * qkv.kv.head_dim;
      return ToStatus(Launch(context, QkvKernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, 1, product, qkv,
                             q, params.n),
                      "rope and kv write");
    }
  }
  return absl::InternalError("unknown epilogue");
}

absl::Status ArgmaxRows(const __nv_bfloat16* logits, int rows, int n, int32_t* token, __nv_bfloat16* best,
                        const LaunchContext& context) {
  return ToStatus(Launch(context, ArgmaxKernel, dim3(static_cast<unsigned>(rows)), dim3(kArgmaxThreads), 0, 1, logits,
                         n, token, best),
                  "argmax");
}

absl::Status ArgmaxStrips(const Best* strips, int rows, int slots, int n, int32_t* token, __nv_bfloat16* best,
                          const LaunchContext& context) {
  return ToStatus(Launch(context, ArgmaxStripsKernel, dim3(static_cast<unsigned>(rows)), dim3(kArgmaxThreads), 0, 1,
                         strips, slots, n, token, best),
                  "argmax");
}

}  // namespace agentserve::kernels::cuda
