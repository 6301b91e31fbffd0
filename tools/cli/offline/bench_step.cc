#include "tools/cli/bench/bench_step.h"

#include "model/bench/command.h"
#include "tools/cli/paths.h"

namespace agentserve::tools {

int RunBenchStep(int argc, const char* const* argv) {
  return model::RunStepCommand(argc, argv, {"agentserve bench step", FindBundledModel});
}

int RunBenchPrefill(int argc, const char* const* argv) {
  return model::RunPrefillCommand(argc, argv, {"agentserve bench prefill", FindBundledModel});
}

}  // namespace agentserve::tools
