// Token ids that have the content model's equalities: tokens are equal where origins are.
#pragma once

#include <span>
#include <vector>

#include "base/hash.h"
#include "engine/ids.h"
#include "tools/workload/workload.h"

namespace agentserve::sim {

inline constexpr uint32_t kSimVocab = 1u << 20;
// Ends a simulated answer; no content has it.
inline constexpr engine::TokenId kStopToken = 0;

engine::TokenId TokenAt(uint64_t origin, uint32_t position);
// The first `tokens` tokens.
std::vector<engine::TokenId> Tokens(std::span<const workload::Span> spans, uint32_t tokens);
// Names of the full blocks of the first `tokens` tokens: equal where all tokens up to the block's end are.
void BlockNames(std::span<const workload::Span> spans, uint32_t tokens, uint32_t block_tokens,
                std::vector<base::Hash128>* out);

}  // namespace agentserve::sim
