#include "decode_worker/worker.h"

#include "base/check.h"

namespace agentserve::decode_worker {
namespace {

worker::RunLoopOptions LoopOptions(worker::Node* node, worker::BlockListener* listener) {
  worker::RunLoopOptions o;
  o.worker_id = node->options().worker_id;
  o.incarnation = node->incarnation();
  o.pool = node->pool();
  o.executor = node->executor();
  o.listener = listener;
  o.metrics = node->metrics();
  o.pipeline_steps = node->options().pipeline_steps != "off";
  o.exit_failpoint = "dc.exit_at_step";
  return o;
}

Options CoreOptions(worker::Node* node) {
  Options o;
  o.pool = {node->pool()->options().num_blocks, node->options().prefix_cache};
  o.planner = node->PlannerOptions();
  o.vocab_size = node->model().vocab_size;
  o.tiers = node->TierOptions();
  return o;
}

kvstore::PeerOptions PeerOptions(worker::Node* node) {
  kvstore::PeerOptions o;
  o.layout = node->model().layout;
  o.memory = &node->pool()->memory();
  const auto mode = kvstore::ParseTransportMode(node->options().kv_transport);
  AS_CHECK(mode.ok()) << "the node checked its options";
  o.mode = *mode;
  // A read that takes longer than this is worth less than computing the prompt again.
  o.read_timeout_ms = 3000;
  return o;
}

}  // namespace

Worker::Worker(worker::Node* node, worker::BlockListener* listener)
    : loop_(LoopOptions(node, listener), CoreOptions(node), PeerOptions(node), node->TakeHostStore()),
      service_(&loop_) {}

Worker::~Worker() {
  loop_.Stop();
  loop_.Wait();
}

}  // namespace agentserve::decode_worker
