#include "engine/worker_limits.h"

#include <cmath>
#include <limits>

#include "base/strings.h"

namespace agentserve::engine {
namespace {

// Biases beyond this (1024 on the wire) would make the sampler's set-up cost more than a step.
constexpr size_t kMaxLogitBias = 1024;
constexpr size_t kMaxStopTokens = 1024;

absl::Status CheckSampling(const SamplingParams& s, uint32_t vocab_size) {
  const auto in = [](float v, float low, float high) { return std::isfinite(v) && v >= low && v <= high; };
  if (!in(s.temperature, 0, 100)) return absl::InvalidArgumentError("sampling.temperature must be finite and >= 0");
  if (!in(s.top_p, 0, 1)) return absl::InvalidArgumentError("sampling.top_p must be in [0, 1]");
  if (!in(s.min_p, 0, 1)) return absl::InvalidArgumentError("sampling.min_p must be in [0, 1]");
  if (!in(s.repetition_penalty, 1e-6f, 1e6f)) {
    return absl::InvalidArgumentError("sampling.repetition_penalty must be finite and > 0");
  }
  if (!in(s.presence_penalty, -1e6f, 1e6f) || !in(s.frequency_penalty, -1e6f, 1e6f)) {
    return absl::InvalidArgumentError("sampling penalties must be finite");
  }
  if (s.logit_bias.size() > kMaxLogitBias || s.stop_token_ids.size() > kMaxStopTokens) {
    return absl::InvalidArgumentError("sampling.logit_bias and stop_token_ids take at most 1024 entries");
  }
  for (const auto& [token, bias] : s.logit_bias) {
    if (token >= vocab_size || !std::isfinite(bias)) {
      return absl::InvalidArgumentError(base::StrCat("sampling.logit_bias of token ", token,
                                                     ": the id must be below the vocabulary size ", vocab_size,
                                                     " and the bias finite"));
    }
  }
  if (s.top_logprobs > 20) return absl::InvalidArgumentError("sampling.top_logprobs must be at most 20");
  return absl::OkStatus();
}

absl::Status CheckSpec(const SequenceSpec& s, uint32_t vocab_size) {
  if (s.tokens.empty() || s.prompt_tokens == 0 || s.prompt_tokens > s.tokens.size()) {
    return absl::InvalidArgumentError(base::StrCat("prompt_tokens is ", s.prompt_tokens, " of ", s.tokens.size(),
                                                   " tokens; it must be at least 1 and at most all of them"));
  }
  for (size_t i = 0; i < s.tokens.size(); ++i) {
    if (s.tokens[i] >= vocab_size) {
      return absl::InvalidArgumentError(
          base::StrCat("tokens[", i, "] is ", s.tokens[i], " but the vocabulary has ", vocab_size, " tokens"));
    }
  }
  if (s.tokens.size() - s.prompt_tokens >= s.sampling.max_tokens) {
    return absl::InvalidArgumentError(base::StrCat("max_tokens is ", s.sampling.max_tokens, " and ",
                                                   s.tokens.size() - s.prompt_tokens,
                                                   " tokens are generated already; nothing is left to do"));
  }
  return CheckSampling(s.sampling, vocab_size);
}

}  // namespace

std::optional<Failure> RefusalOf(const SequenceSpec& spec, base::TimeNs budget_ns, const AdmissionLimits& limits,
                                 const Planner& planner) {
  if (absl::Status s = CheckSpec(spec, limits.vocab_size); !s.ok()) {
    return Failure{s.code(), "INVALID", base::MessageOf(s)};
  }
  if (budget_ns <= 0) {
    return Failure{absl::StatusCode::kDeadlineExceeded, "DEADLINE", "the time budget was over on arrival"};
  }
  if (!planner.CanFit(spec.tokens.size())) {
    return Failure{absl::StatusCode::kInvalidArgument, "TOO_LONG",
                   base::StrCat("the sequence has ", spec.tokens.size(), " tokens; this worker takes at most ",
                                planner.options().context_length - 1, " (its context or its --kv-blocks)")};
  }
  if (planner.waiting() >= limits.queue.max_waiting ||
      planner.pending_tokens() + spec.tokens.size() > limits.queue.max_waiting_tokens) {
    return Failure{absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                   base::StrCat(planner.waiting(), " sequences (", planner.pending_tokens(),
                                " tokens) already wait on this worker; send it elsewhere or later")};
  }
  return std::nullopt;
}

base::TimeNs DeadlineOf(base::TimeNs now, base::TimeNs budget_ns) {
  constexpr base::TimeNs kEnd = std::numeric_limits<base::TimeNs>::max();
  return budget_ns > kEnd - now ? kEnd : now + budget_ns;
}

}  // namespace agentserve::engine
