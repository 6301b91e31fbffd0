// agentserve-prefill-worker.
#include "prefill_worker/worker.h"

int main(int argc, char** argv) {
  using agentserve::worker::BlockListener;
  using agentserve::worker::Node;
  return agentserve::worker::RunWorker(argc, argv, agentserve::worker::Role::kPrefill,
                                       [](Node* node, BlockListener* listener) {
                                         return std::make_unique<agentserve::prefill_worker::Worker>(node, listener);
                                       });
}
