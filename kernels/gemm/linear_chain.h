// Several linear layers that feed each other, as one kernel: between two attentions of a decode step that is the
// output projection, gate-up, down and the next layer's QKV (or the LM head). The stream of weights never stops: while
// the blocks wait for each other's rows, the first weights of the next layers are already on their way.
#pragma once

#include "absl/status/status.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {

inline constexpr int kMaxChainLength = 4;

// Runs ops[0] .. ops[count - 1] in this order with the results of count calls of Linear; each may read what those
// before it write, in place too. If `head` is not null it comes last (linear.k etc. as in LmHead), so count <=
// kMaxChainLength - 1 then. All ops have the same m and workspace.
struct LinearChainParams {
  const LinearParams* ops = nullptr;
  int count = 0;
  const LmHeadParams* head = nullptr;
  // Weights that the kernel after the next one reads: at the end of the chain's own stream they are sent for into L2,
  // so that the memory does not rest during the attention between. May be null.
  const void* next_weights = nullptr;  // 16-byte aligned
  size_t next_bytes = 0;
};
// True for kFast, m <= 16 and shapes whose rows fit in shared memory; otherwise call Linear one by one.
bool LinearChainSupports(const LinearChainParams& params);
// Needs all blocks on the GPU at the same time: one per multiprocessor, num_sms of the context at most.
absl::Status LinearChain(const LinearChainParams& params, const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
