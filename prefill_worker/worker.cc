#include "prefill_worker/worker.h"

namespace agentserve::prefill_worker {
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
  o.exit_failpoint = "pf.exit_at_step";
  return o;
}

Options CoreOptions(worker::Node* node) {
  Options o;
  o.pool = {node->pool()->options().num_blocks, node->options().prefix_cache};
  o.planner = node->PlannerOptions();
  o.vocab_size = node->model().vocab_size;
  o.max_offers = node->pool()->options().num_progress_slots;
  o.tiers = node->TierOptions();
  o.tiers.store_ordinary = true;  // nobody says here which prompts will be continued
  return o;
}

}  // namespace

Worker::Worker(worker::Node* node, worker::BlockListener* listener)
    : loop_(LoopOptions(node, listener), CoreOptions(node), node->TakeHostStore()), service_(&loop_) {}

Worker::~Worker() {
  loop_.Stop();
  loop_.Wait();
}

}  // namespace agentserve::prefill_worker
