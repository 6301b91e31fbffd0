// The model's benches without the rest of the program: agentserve-bench-step step|prefill [flags].
#include <cstdio>
#include <string>

#include "base/flags.h"
#include "model/bench/command.h"

int main(int argc, char** argv) {
  using namespace agentserve;
  const std::string word = argc > 1 ? argv[1] : "";
  if (word == "prefill") return model::RunPrefillCommand(argc - 1, argv + 1, {"agentserve-bench-step prefill", {}});
  if (word == "step") return model::RunStepCommand(argc - 1, argv + 1, {"agentserve-bench-step step", {}});
  std::fprintf(stderr, "Usage: agentserve-bench-step step|prefill [flags]; --help after the word shows them\n");
  return base::kExitConfig;
}
