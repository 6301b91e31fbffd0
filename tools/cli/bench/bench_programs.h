#pragma once

namespace agentserve::tools {

// `agentserve bench kernels` and `agentserve bench handoff`: run the bench programs of the build one after the other. A
// line that is a JSON object goes to --json, with the program's name added; all others are shown. They return the exit
// code.
int RunBenchKernels(int argc, const char* const* argv);
int RunBenchHandoff(int argc, const char* const* argv);
// `agentserve bench agents`: agent workloads against a running cluster.
int RunBenchAgents(int argc, const char* const* argv);

}  // namespace agentserve::tools
