#include "worker/convert.h"

#include <algorithm>
#include <limits>

namespace agentserve::worker {

namespace wire = agentserve::common::v1;

engine::SamplingParams FromWire(const wire::SamplingParams& in, uint32_t default_max_tokens) {
  engine::SamplingParams out;
  if (in.has_temperature()) out.temperature = in.temperature();
  if (in.has_top_k()) out.top_k = in.top_k();
  if (in.has_top_p()) out.top_p = in.top_p();
  if (in.has_min_p()) out.min_p = in.min_p();
  if (in.has_repetition_penalty()) out.repetition_penalty = in.repetition_penalty();
  if (in.has_presence_penalty()) out.presence_penalty = in.presence_penalty();
  if (in.has_frequency_penalty()) out.frequency_penalty = in.frequency_penalty();
  for (const wire::LogitBias& bias : in.logit_bias()) out.logit_bias.emplace_back(bias.token_id(), bias.bias());
  out.seed = in.seed();
  out.max_tokens = in.has_max_tokens() ? in.max_tokens() : default_max_tokens;
  out.min_tokens = in.min_tokens();
  out.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  out.ignore_eos = in.ignore_eos();
  if (in.has_top_logprobs()) out.top_logprobs = static_cast<int>(std::min(in.top_logprobs(), 1000u));
  return out;
}

base::TimeNs BudgetNs(uint64_t budget_ms) {
  constexpr uint64_t kMost = static_cast<uint64_t>(std::numeric_limits<base::TimeNs>::max() / base::kNsPerMs);
  return static_cast<base::TimeNs>(std::min(budget_ms, kMost)) * base::kNsPerMs;
}

void ToWire(const engine::SampledToken& token, wire::Logprobs* logprobs) {
  logprobs->set_logprob(token.logprob);
  for (const engine::TokenLogprob& t : token.top) {
    wire::TokenLogprob* top = logprobs->add_top();
    top->set_token_id(t.token);
    top->set_logprob(t.logprob);
  }
}

void ToWire(const engine::Load& load, wire::WorkerLoad* out) {
  out->set_running(load.running);
  out->set_waiting(load.waiting);
  out->set_waiting_tokens(static_cast<uint32_t>(std::min<uint64_t>(load.waiting_tokens, 0xffffffffu)));
  out->set_available_blocks(load.available_blocks);
  out->set_total_blocks(load.total_blocks);
  out->set_cached_blocks(load.cached_blocks);
  out->set_preemptions(load.preemptions);
  out->set_steps(load.steps);
  out->set_parked_blocks(load.parked_blocks);
  out->set_host_blocks(load.host_blocks);
  out->set_host_total_blocks(load.host_total_blocks);
}

wire::FinishReason ToWire(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return wire::FINISH_REASON_UNSPECIFIED;
    case engine::FinishReason::kStop:
      return wire::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return wire::FINISH_REASON_LENGTH;
    case engine::FinishReason::kCancelled:
      return wire::FINISH_REASON_CANCELLED;
  }
  return wire::FINISH_REASON_UNSPECIFIED;
}

}  // namespace agentserve::worker
