// Offline generation: one sequence, no services. The reference path for everything that serves the same model.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampling_params.h"
#include "model/model.h"

namespace agentserve::model {

struct GenerateOptions {
  uint32_t chunk_tokens = 512;  // prompt tokens per step; never changes the result
  uint32_t block_tokens = 16;
};

struct GenerateResult {
  std::vector<engine::SampledToken> tokens;  // includes the end token, if one ended it
  engine::FinishReason finish_reason = engine::FinishReason::kNone;
  double prefill_seconds = 0;  // up to the first token
  double decode_seconds = 0;   // after it
};

// Called for each token as it is sampled; false stops (kCancelled).
using TokenCallback = std::function<bool(const engine::SampledToken&)>;

// Runs `prompt` (at least one token, all below vocab_size) and samples up to sampling.max_tokens (0 = up to the context
// length) with a private KV pool.
absl::StatusOr<GenerateResult> Generate(Model& model, const std::vector<engine::TokenId>& prompt,
                                        const engine::SamplingParams& sampling, const GenerateOptions& options,
                                        const TokenCallback& on_token);

}  // namespace agentserve::model
