// The main function that both worker programs share: flags, log, model, node, signals, drain, exit code.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>

#include "model/model.h"
#include "worker/node.h"
#include "worker/run_loop.h"

namespace agentserve::worker {

// A worker's loop and service, as the main function sees it.
class Program {
 public:
  virtual ~Program() = default;
  virtual grpc::Service* service() = 0;
  virtual void Start() = 0;
  virtual void Drain() = 0;
  virtual void Stop() = 0;
  virtual bool ended() const = 0;
  virtual int Wait() = 0;
  virtual double prefill_tokens_per_s() const = 0;
};

// What a node needs to know of a loaded model; keeps it alive.
absl::StatusOr<ModelInfo> MakeModelInfo(const std::shared_ptr<model::Model>& model, uint32_t block_tokens);
// Loads the folder named by the options. Errors name file and field.
absl::StatusOr<ModelInfo> LoadModelInfo(const NodeOptions& options);

// Runs until a signal has drained it, or its executor failed. Returns the exit code (base/flags.h).
// SIGTERM or SIGINT: finish what runs, take nothing new; the second one, or --drain-timeout-s: leave at once.
int RunWorker(int argc, const char* const* argv, Role role,
              const std::function<std::unique_ptr<Program>(Node*, BlockListener*)>& make_program);

}  // namespace agentserve::worker
