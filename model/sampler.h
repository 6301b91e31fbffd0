// Chooses a token from one row of logits. Deterministic: the same logits, parameters, seed and history give the same
// token on every worker.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampling_params.h"

namespace agentserve::model {

struct SampleInput {
  std::span<const float> logits;  // one per vocabulary entry
  const engine::SamplingParams* params = nullptr;
  // All tokens so far; the first `prompt_tokens` are prompt. Its size is the position being sampled.
  std::span<const engine::TokenId> history;
  uint32_t prompt_tokens = 0;
  // Masked while fewer than params->min_tokens tokens are out (with params->stop_token_ids).
  std::span<const engine::TokenId> end_tokens;
};

// Order of operations, as in Hugging Face and OpenAI's field meanings: repetition penalty (prompt and output), presence
// and frequency penalties (output only), logit bias, min_tokens mask, then temperature, top-k, top-p, min-p, draw.
// Candidates are ordered by logit descending, id ascending, so ties never depend on the sort. Owns scratch memory that
// grows to the vocabulary once; not thread-safe.
class Sampler {
 public:
  // DATA_LOSS if no logit is a finite number. Biases and masks that leave no token at all are ignored.
  absl::StatusOr<engine::SampledToken> Sample(const SampleInput& in);

 private:
  struct Candidate {
    float logit;
    engine::TokenId id;
    double weight;  // exp((logit - max) / temperature)
  };
  void Adjust(const SampleInput& in);
  void Penalize(const SampleInput& in);
  engine::TokenId Draw(const SampleInput& in, std::span<const float> logits, float max_logit);
  void SelectTop(size_t k);
  void FillLogprobs(const SampleInput& in, engine::SampledToken* out);

  std::vector<float> work_;       // adjusted logits
  std::vector<uint32_t> counts_;  // per token id; zero between calls
  std::vector<Candidate> candidates_;
  size_t ordered_ = 0;  // candidates_[0, ordered_) are the best, best first
};

}  // namespace agentserve::model
