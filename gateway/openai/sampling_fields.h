// Members that chat and text completions share.
#pragma once

#include "gateway/openai/fields.h"
#include "gateway/openai/request.h"

namespace agentserve::gateway {

// temperature, top_p, top_k, min_p, penalties, seed, stop, stop_token_ids, logit_bias, min_tokens, ignore_eos, n,
// include_stop_str_in_output. Not max_tokens and logprobs, whose rules differ.
void ReadSampling(Fields& f, const ParseContext& ctx, common::v1::SamplingParams* out, uint32_t* n);

// stream, stream_options, return_token_ids, timeline.
void ReadReplyOptions(Fields& f, ReplyOptions* out);

// model, cache_salt, skip_special_tokens into `out`; refuses members whose silent loss would change the result.
void ReadCommon(Fields& f, const ParseContext& ctx, pb::GenerateRequest* out);

// The largest value of max_tokens that is passed on; more is refused as a mistake.
inline constexpr int64_t kMaxTokensLimit = 2'147'483'647;

}  // namespace agentserve::gateway
