#include "engine/sequence.h"

#include <algorithm>

namespace agentserve::engine {

FinishReason StopAfter(const StopInput& in, const SamplingParams& sampling, const std::vector<TokenId>& end_tokens,
                       uint32_t context_length) {
  const auto in_list = [&](const std::vector<TokenId>& ids) {
    return std::find(ids.begin(), ids.end(), in.token) != ids.end();
  };
  if (in.generated > sampling.min_tokens) {
    if (!sampling.ignore_eos && in_list(end_tokens)) return FinishReason::kStop;
    if (in_list(sampling.stop_token_ids)) return FinishReason::kStop;
  }
  if (in.generated >= sampling.max_tokens) return FinishReason::kLength;
  if (in.total >= context_length) return FinishReason::kLength;
  return FinishReason::kNone;
}

}  // namespace agentserve::engine
