// agentserve-decode-worker.
#include "decode_worker/worker.h"

int main(int argc, char** argv) {
  using agentserve::worker::BlockListener;
  using agentserve::worker::Node;
  return agentserve::worker::RunWorker(argc, argv, agentserve::worker::Role::kDecode,
                                       [](Node* node, BlockListener* listener) {
                                         return std::make_unique<agentserve::decode_worker::Worker>(node, listener);
                                       });
}
