// Knobs of the few-rows kernels that change speed, never results; for the bench.
#pragma once

#include "kernels/gemm/linear_chain.h"

namespace agentserve::kernels::cuda {

struct LinearChainTuning {
  int stages = 6;                 // of 32 KiB of weights in flight per block, at most
  int shared_bytes = 224 * 1024;  // of a block at most: what is left stays for the kernels before and after
  int prefetch_stages = 0;        // more of them into L2, ahead of the ring
  int trigger_lead = 2;           // the next kernel may start when so many stages are still to be sent for
};
absl::Status LaunchLinearChain(const LinearChainParams& params, const LinearChainTuning& tuning,
                               const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
