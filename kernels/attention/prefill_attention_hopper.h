// The TMA + wgmma kernels, one translation unit per configuration.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {

// Everything one launch needs. Maps: q [tokens][q_heads][D] in boxes of 64 columns x 1 head x tile rows; k, v
// [blocks][kv_heads * block_tokens][D] in boxes of 64 columns x page_rows x 1 block; *_run
// the same in boxes of as many blocks as make half a tile, 64 keys.
struct PrefillLaunch {
  CUtensorMap q, k, v, k_run, v_run;
  PrefillAttentionParams params;
  float scale_log2 = 0;
  int pages_per_block = 0;  // block_tokens / page_rows
  int page_rows = 0;        // divides block_tokens; 16, 32 or 64
  int items = 0;            // num_tiles * q_heads
  int* counters = nullptr;  // [0] next item, [1] finished blocks; null: static schedule
};

cudaError_t LaunchPrefill64(const PrefillLaunch& launch, const LaunchContext& context);
cudaError_t LaunchPrefill128(const PrefillLaunch& launch, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
