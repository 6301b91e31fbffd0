// Device side of programmatic dependent launch; the rules are in kernels/cuda/launch.h. Both do nothing in a kernel
// launched without the attribute.
#pragma once

namespace agentserve::kernels::cuda {

// Until all kernels before this one in the stream are complete and their writes visible.
__device__ __forceinline__ void PdlWait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel may be scheduled once every block has said so (or has ended).
__device__ __forceinline__ void PdlTrigger() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace agentserve::kernels::cuda
