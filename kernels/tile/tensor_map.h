// Host side of TMA: bf16 tensor maps. The driver's encoder is found through the runtime, so nothing links libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

enum class TmaSwizzle : uint8_t { kNone, k128B };

// Dimensions innermost first. The innermost is contiguous; stride[i] (bytes, multiple of 16) is that of dimension i
// + 1.
struct TensorShape {
  int rank = 2;
  uint64_t size[4] = {1, 1, 1, 1};
  uint64_t stride[3] = {0, 0, 0};
  uint32_t box[4] = {1, 1, 1, 1};  // at most 256 each; with k128B at most 64 bf16 innermost
  TmaSwizzle swizzle = TmaSwizzle::k128B;
};

// `base` is 16-byte aligned device memory. The map stays valid as long as `base` is the same allocation.
inline absl::Status EncodeBf16(const void* base, const TensorShape& shape, CUtensorMap* map) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(entry) : nullptr;
  }();
  if (encode == nullptr) return absl::FailedPreconditionError("the driver has no cuTensorMapEncodeTiled");
  cuuint64_t size[4], stride[3];
  cuuint32_t box[4], step[4] = {1, 1, 1, 1};
  for (int i = 0; i < shape.rank; ++i) {
    size[i] = shape.size[i];
    box[i] = shape.box[i];
    if (i + 1 < shape.rank) stride[i] = shape.stride[i];
  }
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(shape.rank), const_cast<void*>(base), size,
             stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             shape.swizzle == TmaSwizzle::k128B ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return absl::InvalidArgumentError("cuTensorMapEncodeTiled refused the tensor");
  return absl::OkStatus();
}

// Row-major [rows][columns] matrix read or written in boxes of box_rows x box_columns.
inline absl::Status EncodeMatrix(const void* base, uint64_t rows, uint64_t columns, uint32_t box_rows,
                                 uint32_t box_columns, CUtensorMap* map) {
  TensorShape shape;
  shape.size[0] = columns;
  shape.size[1] = rows;
  shape.stride[0] = columns * 2;
  shape.box[0] = box_columns;
  shape.box[1] = box_rows;
  return EncodeBf16(base, shape, map);
}

}  // namespace agentserve::kernels::cuda
