// agentserve-prefill-worker.
#include "prefill_worker/worker.h"

int main(int argc, char** argv) {
  return agentserve::worker::RunWorker(
      argc, argv, agentserve::worker::Role::kPrefill,
      [](agentserve::worker::Node* node) { return std::make_unique<agentserve::prefill_worker::Worker>(node); });
}
