#include "router/service/reply_stream.h"

namespace agentserve::router {

size_t QueuedWeight(const v1::GenerateResponse& e) {
  const v1::Delta& d = e.delta();
  size_t bytes = kEventBytes + d.text().size() + 4 * static_cast<size_t>(d.token_ids_size());
  for (const auto& t : d.logprob_texts()) bytes += 16 + t.size();
  return bytes + 64 * static_cast<size_t>(d.logprobs_size());
}

bool JoinDeltas(const v1::GenerateResponse& event, v1::GenerateResponse* last) {
  if (!event.has_delta() || !last->has_delta() || last->delta().index() != event.delta().index()) return false;
  v1::Delta* to = last->mutable_delta();
  to->mutable_text()->append(event.delta().text());
  to->mutable_token_ids()->MergeFrom(event.delta().token_ids());
  to->mutable_logprobs()->MergeFrom(event.delta().logprobs());
  to->mutable_logprob_texts()->MergeFrom(event.delta().logprob_texts());
  return true;
}

}  // namespace agentserve::router
