#include <cuda_bf16.h>

#include "kernels/cuda/pdl.cuh"
#include "kernels/embedding/embedding_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

// One block per row, 16 bytes per thread and turn.
__global__ void EmbeddingKernel(EmbeddingParams p) {
  PdlWait();
  PdlTrigger();
  const int row = blockIdx.x;
  int id = p.ids[row];
  if (p.from != nullptr && p.from[row] >= 0) id = p.sampled[p.from[row]];
  const uint4* from = reinterpret_cast<const uint4*>(p.table + static_cast<size_t>(id) * p.n);
  uint4* to = reinterpret_cast<uint4*>(p.out + static_cast<size_t>(row) * p.n);
  for (int i = threadIdx.x; i < p.n / 8; i += blockDim.x) to[i] = from[i];
}

__global__ void GatherRowsKernel(const __nv_bfloat16* rows, const int32_t* index, int n, __nv_bfloat16* out) {
  PdlWait();
  PdlTrigger();
  const uint4* from = reinterpret_cast<const uint4*>(rows + static_cast<size_t>(index[blockIdx.x]) * n);
  uint4* to = reinterpret_cast<uint4*>(out + static_cast<size_t>(blockIdx.x) * n);
  for (int i = threadIdx.x; i < n / 8; i += blockDim.x) to[i] = from[i];
}

}  // namespace

absl::Status Embedding(const EmbeddingParams& params, const LaunchContext& context) {
  if (params.rows == 0) return absl::OkStatus();
  return ToStatus(Launch(context, EmbeddingKernel, dim3(params.rows), dim3(128), 0, 1, params), "embedding");
}

absl::Status GatherRows(const __nv_bfloat16* rows, const int32_t* index, int count, int n, __nv_bfloat16* out,
                        const LaunchContext& context) {
  if (count == 0) return absl::OkStatus();
  return ToStatus(Launch(context, GatherRowsKernel, dim3(count), dim3(128), 0, 1, rows, index, n, out), "gather rows");
}

}  // namespace agentserve::kernels::cuda
