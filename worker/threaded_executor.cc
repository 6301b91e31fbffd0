#include "worker/threaded_executor.h"

#include <algorithm>
#include <utility>

namespace agentserve::worker {

using engine::SeqSlice;
using engine::StepPlan;

ThreadedExecutor::OwnedSlice::OwnedSlice(const SeqSlice& s)
    : slice(s),
      tokens(s.tokens.begin(), s.tokens.end()),
      history(s.history.begin(), s.history.end()),
      blocks(s.blocks.begin(), s.blocks.end()) {
  if (s.sampling != nullptr) sampling = *s.sampling;
}

ThreadedExecutor::ThreadedExecutor(std::unique_ptr<engine::Executor> inner)
    : inner_(std::move(inner)), thread_([this] { Work(); }) {}

ThreadedExecutor::~ThreadedExecutor() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  cv_.notify_all();
  thread_.join();
}

absl::Status ThreadedExecutor::Run(const StepPlan& plan, engine::LayerObserver* observer, engine::StepOutput* out) {
  {
    const std::lock_guard lock(mu_);
    if (!jobs_.empty()) return absl::FailedPreconditionError("Run while launched steps are in flight");
  }
  return inner_->Run(plan, observer, out);
}

absl::Status ThreadedExecutor::Launch(const StepPlan& plan) {
  auto job = std::make_unique<Job>();
  job->number = plan.number;
  job->slices.reserve(plan.slices.size());
  for (const SeqSlice& slice : plan.slices) job->slices.emplace_back(slice);
  {
    const std::lock_guard lock(mu_);
    if (jobs_.size() >= static_cast<size_t>(depth())) {
      return absl::FailedPreconditionError("Launch while two steps are in flight");
    }
    jobs_.push_back(std::move(job));
  }
  cv_.notify_all();
  return absl::OkStatus();
}

absl::Status ThreadedExecutor::Wait(engine::StepOutput* out) {
  std::unique_lock lock(mu_);
  if (jobs_.empty()) return absl::FailedPreconditionError("Wait while no step is in flight");
  cv_.wait(lock, [&] { return jobs_.front()->done; });
  const std::unique_ptr<Job> job = std::move(jobs_.front());
  jobs_.pop_front();
  if (!job->status.ok()) jobs_.clear();  // never started: see Work
  *out = std::move(job->out);
  return job->status;
}

void ThreadedExecutor::Work() {
  std::unique_lock lock(mu_);
  for (;;) {
    // Nothing runs after a step that failed, until Wait has thrown the rest away.
    const auto next = [&]() -> Job* {
      for (const auto& job : jobs_) {
        if (!job->done) return job.get();
        if (!job->status.ok()) return nullptr;
      }
      return nullptr;
    };
    cv_.wait(lock, [&] { return stop_ || next() != nullptr; });
    if (stop_) return;
    Job* job = next();
    lock.unlock();
    RunJob(job);
    lock.lock();
    job->done = true;
    cv_.notify_all();
  }
}

void ThreadedExecutor::RunJob(Job* job) {
  StepPlan plan;
  plan.number = job->number;
  plan.slices.reserve(job->slices.size());
  for (OwnedSlice& owned : job->slices) {
    SeqSlice slice = owned.slice;
    if (slice.input_pending) {
      const auto token = last_tokens_.find(slice.seq);
      if (token == last_tokens_.end()) {
        job->status = absl::InternalError("a placeholder for a token that the step before did not sample");
        return;
      }
      owned.tokens.back() = token->second;
      if (slice.sample) owned.history.back() = token->second;
      slice.input_pending = false;
    }
    slice.tokens = owned.tokens;
    slice.history = owned.history;
    slice.blocks = owned.blocks;
    if (slice.sampling != nullptr) slice.sampling = &owned.sampling;
    plan.slices.push_back(slice);
  }
  job->status = inner_->Run(plan, observer_, &job->out);
  last_tokens_.clear();
  for (const engine::SampledToken& t : job->out.tokens) last_tokens_[t.seq] = t.token;
}

}  // namespace agentserve::worker
