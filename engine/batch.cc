#include "engine/batch.h"

namespace agentserve::engine {

absl::Status Executor::Launch(const StepPlan&) {
  return absl::FailedPreconditionError("this executor runs one step at a time: use Run");
}

absl::Status Executor::Wait(StepOutput*) {
  return absl::FailedPreconditionError("this executor runs one step at a time: use Run");
}

}  // namespace agentserve::engine
