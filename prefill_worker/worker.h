// A whole prefill worker over a node: loop and service. Used by main and by tests that run workers in one process.
#pragma once

#include <memory>

#include "prefill_worker/service.h"
#include "worker/run_worker.h"

namespace agentserve::prefill_worker {

class Worker final : public worker::Program {
 public:
  // `listener` may be null; it and `node` outlive the worker.
  explicit Worker(worker::Node* node, worker::BlockListener* listener = nullptr);
  ~Worker() override;

  grpc::Service* service() override { return &service_; }
  void Start() override { loop_.Start(); }
  void Drain() override { loop_.Drain(); }
  void Stop() override { loop_.Stop(); }
  bool ended() const override { return loop_.ended(); }
  int Wait() override { return loop_.Wait(); }
  double prefill_tokens_per_s() const override { return loop_.prefill_tokens_per_s(); }

 private:
  Loop loop_;
  Service service_;
};

}  // namespace agentserve::prefill_worker
