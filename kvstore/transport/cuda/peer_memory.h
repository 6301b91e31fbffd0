// Blocks of another process' GPU memory.
#pragma once

#include <memory>

#include "kvstore/transport/cuda/cuda_memory.h"

namespace agentserve::kvstore::cuda {

// As BlockMemory::Import. Maps directly if the device of `local` reaches the owner's, else stages through the host,
// reading on the owner's device.
absl::StatusOr<std::unique_ptr<PeerMemory>> ImportPeer(CudaMemory* local, base::UniqueFd fd, const MemoryFacts& facts,
                                                       const ImportOptions& options);

}  // namespace agentserve::kvstore::cuda
