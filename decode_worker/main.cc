// agentserve-decode-worker.
#include "decode_worker/worker.h"

int main(int argc, char** argv) {
  return agentserve::worker::RunWorker(
      argc, argv, agentserve::worker::Role::kDecode,
      [](agentserve::worker::Node* node) { return std::make_unique<agentserve::decode_worker::Worker>(node); });
}
