// For tests: runs steps of a toy model two at a time. A launched step runs when it is told to, or at the latest when it
// is waited for, from its own copy of the plan, as a device would.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/batch.h"
#include "engine/testing/toy_model.h"

namespace agentserve::engine {

class ToyPipeline final : public Executor {
 public:
  explicit ToyPipeline(ToyExecutor* model) : model_(model) {}

  int depth() const override { return 2; }
  absl::Status Run(const StepPlan& plan, LayerObserver* observer, StepOutput* out) override {
    if (!jobs_.empty()) return absl::FailedPreconditionError("steps are in flight");
    return model_->Run(plan, observer, out);
  }
  absl::Status Launch(const StepPlan& plan) override {
    if (jobs_.size() >= 2) return absl::FailedPreconditionError("two steps are in flight already");
    auto job = std::make_unique<Job>();
    job->slices.reserve(plan.slices.size());
    for (const SeqSlice& slice : plan.slices) {
      if (slice.input_pending && (jobs_.empty() || slice.tokens.size() != 1)) {
        return absl::InvalidArgumentError("a placeholder without the step that samples the token");
      }
      job->slices.emplace_back(slice);
    }
    jobs_.push_back(std::move(job));
    return absl::OkStatus();
  }
  absl::Status Wait(StepOutput* out) override {
    if (jobs_.empty()) return absl::FailedPreconditionError("no step is in flight");
    if (!jobs_.front()->done) RunOne();
    *out = std::move(jobs_.front()->out);
    const absl::Status status = jobs_.front()->status;
    jobs_.pop_front();
    if (!status.ok()) jobs_.clear();
    return status;
  }

  // Runs the oldest launched step that has not run yet. What follows a step that failed never runs.
  void RunOne() {
    for (const auto& job : jobs_) {
      if (!job->status.ok()) return;
      if (job->done) continue;
      RunJob(job.get());
      return;
    }
  }
  // The next step to run fails instead, having written nothing.
  void FailNext() { fail_next_ = true; }
  // Placeholders for tokens that the step before did not sample; a test expects 0.
  uint64_t orphans() const { return orphans_; }

 private:
  struct Copy {
    explicit Copy(const SeqSlice& s)
        : slice(s),
          tokens(s.tokens.begin(), s.tokens.end()),
          history(s.history.begin(), s.history.end()),
          blocks(s.blocks.begin(), s.blocks.end()) {
      if (s.sampling) sampling = *s.sampling;
    }
    SeqSlice slice;
    std::vector<TokenId> tokens, history;
    std::vector<BlockId> blocks;
    SamplingParams sampling;
  };
  struct Job {
    std::vector<Copy> slices;
    StepOutput out;
    absl::Status status;
    bool done = false;
  };

  void RunJob(Job* job) {
    job->done = true;
    if (std::exchange(fail_next_, false)) {
      job->status = absl::UnavailableError("told to fail");
      return;
    }
    StepPlan plan;
    for (Copy& copy : job->slices) {
      SeqSlice slice = copy.slice;
      if (slice.input_pending) {
        const auto token = last_tokens_.find(slice.seq);
        orphans_ += token == last_tokens_.end();
        copy.tokens[0] = token == last_tokens_.end() ? 0 : token->second;
        if (slice.sample) copy.history.back() = copy.tokens[0];
        slice.input_pending = false;
      }
      slice.tokens = copy.tokens;
      slice.history = copy.history;
      slice.blocks = copy.blocks;
      slice.sampling = &copy.sampling;
      plan.slices.push_back(slice);
    }
    job->status = model_->Run(plan, nullptr, &job->out);
    last_tokens_.clear();
    for (const SampledToken& token : job->out.tokens) last_tokens_[token.seq] = token.token;
  }

  ToyExecutor* const model_;
  std::deque<std::unique_ptr<Job>> jobs_;  // oldest first
  std::map<SeqId, TokenId> last_tokens_;
  uint64_t orphans_ = 0;
  bool fail_next_ = false;
};

}  // namespace agentserve::engine
