// The GPUs of this machine, found without turning this process into a CUDA program.
#pragma once

#include <string>
#include <vector>

namespace agentserve::tools {

// Ordinals of the usable GPUs. Looked up in a child process that ends at once: the CUDA driver would leave threads here
// that take SIGTERM (they ran before the supervisor blocked it) and a context that holds GPU memory. Call before there
// are other threads. `why` says why there is none.
std::vector<int> FindGpusInChild(std::string* why);

}  // namespace agentserve::tools
