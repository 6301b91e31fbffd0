#pragma once

namespace agentserve::tools {

// `agentserve bench step` and `agentserve bench prefill`: the model alone, in this process. They return the exit code.
int RunBenchStep(int argc, const char* const* argv);
int RunBenchPrefill(int argc, const char* const* argv);
// `agentserve bench calibrate`: step times for the simulator.
int RunBenchCalibrate(int argc, const char* const* argv);

}  // namespace agentserve::tools
