// Wire messages to engine types and back. Pure.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "agentserve/common/v1/common.pb.h"
#include "base/clock.h"
#include "engine/sampling_params.h"
#include "engine/sequence.h"
#include "engine/worker_limits.h"

namespace agentserve::worker {

// Absent fields take their defaults; absent max_tokens becomes `default_max_tokens`. Values are not checked here.
engine::SamplingParams FromWire(const agentserve::common::v1::SamplingParams& wire, uint32_t default_max_tokens);

// From Start or Reserve, which have equal fields. `id` is the core's.
template <typename Message>
engine::SequenceSpec SpecFromWire(const Message& m, engine::SeqId id, uint32_t context_length) {
  engine::SequenceSpec spec;
  spec.id = id;
  spec.tokens.assign(m.tokens().begin(), m.tokens().end());
  spec.prompt_tokens = m.prompt_tokens();
  const uint32_t room = m.prompt_tokens() < context_length ? context_length - m.prompt_tokens() : 0;
  spec.sampling = FromWire(m.sampling(), room);
  spec.cache_salt = m.cache_salt();
  spec.rank = m.rank();
  return spec;
}

// Milliseconds of the wire to nanoseconds, without overflow.
base::TimeNs BudgetNs(uint64_t budget_ms);

void ToWire(const engine::SampledToken& token, agentserve::common::v1::Logprobs* logprobs);
void ToWire(const engine::Load& load, agentserve::common::v1::WorkerLoad* wire);
agentserve::common::v1::FinishReason ToWire(engine::FinishReason reason);

}  // namespace agentserve::worker
