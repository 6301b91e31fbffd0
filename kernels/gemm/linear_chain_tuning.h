// Knobs of LinearChain that change speed, never results; for the bench.
#pragma once

#include "kernels/gemm/linear_chain.h"

namespace agentserve::kernels::cuda {

struct LinearChainTuning {
  int stages = 11;                // ring depth at most
  int shared_bytes = 225 * 1024;  // of a block at most: what is left stays for the attention kernel beside it
};
absl::Status LaunchLinearChain(const LinearChainParams& params, const LinearChainTuning& tuning,
                               const LaunchContext& context);

}  // namespace agentserve::kernels::cuda
