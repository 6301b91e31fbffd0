#include "kernels/attention/prefill_attention_hopper.h"
#include "kernels/attention/prefill_attention_kernel.cuh"

namespace agentserve::kernels::cuda {

cudaError_t LaunchPrefill128(const PrefillLaunch& launch, const LaunchContext& context) {
  return LaunchPrefill<PrefillConfig<128, 2, 1, 3>>(launch, context);
}

}  // namespace agentserve::kernels::cuda
