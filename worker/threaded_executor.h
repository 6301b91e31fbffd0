// Makes an executor that runs one step at a time take two: a thread runs what is launched, in order. It gives no speed
// (the inner executor uses all cores by itself); it lets the pipelined loop run, and be tested, without a device.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/batch.h"

namespace agentserve::worker {

// Launch, Wait and Run: one caller at a time, as for every executor.
class ThreadedExecutor final : public engine::Executor {
 public:
  explicit ThreadedExecutor(std::unique_ptr<engine::Executor> inner);
  ~ThreadedExecutor() override;

  int depth() const override { return 2; }
  absl::Status Run(const engine::StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) override;
  absl::Status Launch(const engine::StepPlan& plan) override;
  absl::Status Wait(engine::StepOutput* out) override;
  void ObserveLaunches(engine::LayerObserver* observer) override { observer_ = observer; }

 private:
  // A slice that owns what it points to.
  struct OwnedSlice {
    explicit OwnedSlice(const engine::SeqSlice& s);
    engine::SeqSlice slice;
    std::vector<engine::TokenId> tokens, history;
    std::vector<engine::BlockId> blocks;
    engine::SamplingParams sampling;
  };
  struct Job {
    uint64_t number = 0;
    std::vector<OwnedSlice> slices;
    engine::StepOutput out;
    absl::Status status;
    bool done = false;
  };

  void Work();
  void RunJob(Job* job);

  const std::unique_ptr<engine::Executor> inner_;
  engine::LayerObserver* observer_ = nullptr;             // set before the first Launch
  std::map<engine::SeqId, engine::TokenId> last_tokens_;  // of the latest step; own thread only
  std::mutex mu_;
  std::condition_variable cv_;
  std::deque<std::unique_ptr<Job>> jobs_;  // in flight, oldest first; guarded by mu_, as is `done` of each
  bool stop_ = false;                      // guarded by mu_
  std::thread thread_;
};

}  // namespace agentserve::worker
