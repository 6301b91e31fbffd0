#pragma once

namespace agentserve::tools {

// `agentserve bench step`: the model alone, in this process. Returns the exit code.
int RunBenchStep(int argc, const char* const* argv);

}  // namespace agentserve::tools
