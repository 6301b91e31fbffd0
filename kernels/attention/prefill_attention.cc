// Checks and dispatch of PrefillAttention.
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/prefill_attention_mma.h"

namespace agentserve::kernels::cuda {

size_t PrefillWorkspaceBytes() { return 256; }

absl::Status PrefillAttention(const PrefillAttentionParams& params, const LaunchContext& context) {
  if (params.kv.head_dim != 64 && params.kv.head_dim != 128) {
    return absl::InvalidArgumentError("prefill attention: head_dim must be 64 or 128");
  }
  if (params.kv.kv_heads == 0 || params.q_heads % static_cast<int>(params.kv.kv_heads) != 0) {
    return absl::InvalidArgumentError("prefill attention: q_heads must be a multiple of kv_heads");
  }
  if (params.num_tiles == 0) return absl::OkStatus();
  return PrefillAttentionMma(params, context);
}

}  // namespace agentserve::kernels::cuda
