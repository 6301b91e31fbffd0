// Prefill attention with warp-level tensor core instructions: the plain variant, for pools that the TMA kernel cannot
// read and as the yardstick of its tests. Head dims 64 and 128, any block size.
#pragma once

#include "absl/status/status.h"
#include "kernels/attention/attention_cuda.h"

namespace agentserve::kernels::cuda {

absl::Status PrefillAttentionMma(const PrefillAttentionParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
