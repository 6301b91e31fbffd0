// How every GPU operation of this library is launched and how errors come back.
//
// All launch functions are asynchronous on `stream`, allocate nothing, may be captured into a graph, and return the
// launch's status (not the kernel's: that one comes with the next synchronisation). Pointers are device memory unless
// said otherwise. bf16 values travel as __nv_bfloat16.
//
// Programmatic dependent launch (PDL). With `pdl` a kernel may begin while the one before it in the stream still runs.
// The rules that keep the chain correct:
//   1. Before `griddepcontrol.wait` a kernel reads only constants: weights, tables, its parameters.
//   2. EVERY kernel of a chain executes the wait, in every thread that touches other memory, before its first such
//      access. So whatever runs after a wait sees all earlier kernels of the stream complete, not only the last one.
//   3. A kernel may trigger `griddepcontrol.launch_dependents` before its own wait (the small kernels of large batches
//      do): then the next one may begin while kernels before this one still run. What a kernel reads before its wait
//      must be older than the last kernel that triggers after its wait; attention does, and cublasLt's kernels trigger
//      only by ending, so a chain never runs ahead of more than one layer.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/status/status.h"

namespace agentserve::kernels::cuda {

struct LaunchContext {
  cudaStream_t stream = nullptr;
  bool pdl = false;
  int num_sms = 132;
};

// OK, or INTERNAL with the name and text of the error and `what` was done ("decode attention").
absl::Status ToStatus(cudaError_t error, const char* what);

// kernel<<<grid, block, shared, stream>>>(args...) with the PDL attribute if the context asks for it. `cluster` 1 = no
// clusters.
template <typename... Params, typename... Args>
cudaError_t Launch(const LaunchContext& context, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   int cluster, Args&&... args) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = attributes;
  if (context.pdl) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))..., nullptr};
  static_assert(sizeof...(Params) == sizeof...(Args));
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
}

}  // namespace agentserve::kernels::cuda
